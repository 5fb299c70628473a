"""`knot port apply`: what it prints, what it changes, and its exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pair
from tests.support.configured import ConfiguredAgent
from tests.support.ports import free_ports
from tests.support.services import answering, ask, free_port, is_refused, serving
from tests.support.system import AgentOf
from tests.support.waiting import until

Result = subprocess.CompletedProcess[str]


class Source:
    """A space of its own, whose forwards are applied in it."""

    def __init__(self, agent: AgentOf, folder: Path) -> None:
        self.agent = agent
        self.file = folder / "forwards.yaml"

    def apply(self, *options: str, stdin: str = "") -> Result:
        return self.agent.system.run("port", "apply", *options, env=self.agent.variables, stdin=stdin)

    def apply_these(self, *forwards: dict[str, Any], options: tuple[str, ...] = ()) -> Result:
        self.file.write_text(json.dumps({"forwards": forwards}))
        return self.apply("-f", str(self.file), *options)

    def has(self) -> dict[int, str]:
        return {entry["local_port"]: f"{entry['space']}:{entry['remote_port']}" for entry in self.agent.forwards()}


@pytest.fixture(scope="module")
def agent(pair: Pair) -> AgentOf:
    return pair.system.space("applier")


@pytest.fixture
def source(agent: AgentOf, tmp_path: Path) -> Source:
    """The space without forwards."""
    source = Source(agent, tmp_path)
    assert source.apply_these().returncode == 0
    return source


def to_backend(local_port: int, remote_port: int = 3000, **more: object) -> dict[str, Any]:
    return {"local_port": local_port, "space": "backend-api", "remote_port": remote_port, **more}


def test_applies_a_file(source: Source) -> None:
    """What is new is established, what is not named is stopped, what is there already stays and is not mentioned."""
    kept, old, new = free_ports(3)
    with serving(answering(b"here")) as port:
        first = source.apply_these(to_backend(kept, port), to_backend(old, port))
        assert first.stdout.splitlines() == [
            f"Port forward established: {kept} -> backend-api:{port}",
            f"Port forward established: {old} -> backend-api:{port}",
        ]
        second = source.apply_these(to_backend(kept, port), to_backend(new, port, persistent=True))
        assert second.stdout.splitlines() == [
            f"Port forward established: {new} -> backend-api:{port}",
            f"Port forward on port {old} stopped.",
        ]
        assert ask(new) == ask(kept) == b"here"
        assert is_refused(old)
    again = source.apply("-f", str(source.file))
    assert (again.returncode, again.stdout, again.stderr) == (0, "Nothing to change.\n", "")


def test_applies_from_the_desktop(source: Source) -> None:
    """From elsewhere the lines name the source."""
    local = free_port()
    source.file.write_text(f"forwards:\n  - {{local_port: {local}, space: backend-api, remote_port: 3000}}\n")
    words = ("port", "apply", "applier", "-f", str(source.file))
    made = source.agent.system.run(*words, user="alice")
    assert made.stdout == f"Port forward established: applier:{local} -> backend-api:3000\n"
    source.file.write_text("forwards: []\n")
    stopped = source.agent.system.run(*words, user="alice")
    assert stopped.stdout == f"Port forward on port {local} stopped in space 'applier'.\n"


def test_reads_standard_input(source: Source) -> None:
    """`-f -` takes YAML or JSON from a pipe; errors name it."""
    local = free_port()
    made = source.apply("-f", "-", stdin=json.dumps({"forwards": [to_backend(local)]}))
    assert made.returncode == 0
    assert source.has() == {local: "backend-api:3000"}
    broken = source.apply("-f", "-", stdin="forwards:\n  - {local_port: 0, space: backend-api, remote_port: 1}\n")
    assert broken.returncode == 2
    assert broken.stderr.startswith("knot: standard input:2: ")


def test_dry_run_prints_a_diff(source: Source) -> None:
    """A dry run shows by port what would go and come, changes nothing, and exits 3 if something would change."""
    changed, gone, new = free_ports(3)
    source.apply_these(to_backend(changed), to_backend(gone))
    before = source.has()
    plan = source.apply_these(to_backend(changed, 3001), to_backend(new, persistent=True), options=("--dry-run",))
    assert plan.stdout.splitlines() == [
        f"- {changed} -> backend-api:3000",
        f"+ {changed} -> backend-api:3001",
        f"- {gone} -> backend-api:3000",
        f"+ {new} -> backend-api:3000 (persistent)",
    ]
    assert (plan.returncode, plan.stderr, source.has()) == (3, "", before)
    assert source.apply("-f", str(source.file)).returncode == 0
    same = source.apply("-f", str(source.file), "--dry-run")
    assert (same.returncode, same.stdout) == (0, "Nothing to change.\n")


def test_what_cannot_be_made_is_an_error_of_its_own(source: Source) -> None:
    """One forward that cannot be made keeps no other from being made; it is one line on stderr, and exit code 1."""
    good = free_port()
    with serving(answering(b"")) as taken:
        words = f"knot: {taken} -> backend-api:3000: port {taken} is taken by another process on this space\n"
        result = source.apply_these(to_backend(good), to_backend(taken))
        assert (result.returncode, result.stderr) == (1, words)
        assert result.stdout == f"Port forward established: {good} -> backend-api:3000\n"
        for options in ((), ("--dry-run",)):
            again = source.apply("-f", str(source.file), *options)
            assert (again.returncode, again.stdout, again.stderr) == (1, "", words)
        would = source.apply_these(to_backend(taken), options=("--dry-run",))
        assert (would.returncode, would.stdout, would.stderr) == (3, f"- {good} -> backend-api:3000\n", words)


def test_json_is_the_answer_of_the_api(source: Source) -> None:
    """`--json` prints the body; the exit codes are the same."""
    local = free_port()
    body = {"local_port": local, "space": "backend-api", "remote_port": 3000, "persistent": False}
    would = source.apply_these(to_backend(local), options=("--json", "--dry-run"))
    assert (would.returncode, json.loads(would.stdout)) == (3, {"applied": [body], "stopped": [], "errors": []})
    done = source.apply("-f", str(source.file), "--json")
    assert (done.returncode, json.loads(done.stdout)["applied"]) == (0, [body])
    with serving(answering(b"")) as taken:
        failed = source.apply_these(to_backend(taken), options=("--json",))
        assert (failed.returncode, failed.stderr) == (1, "")
        (error,) = json.loads(failed.stdout)["errors"]
    assert (error["local_port"], error["code"]) == (taken, "port_taken")


def test_an_unknown_space_refuses_the_whole_list(source: Source) -> None:
    """Nothing is changed when a space in the list does not exist."""
    local = free_port()
    source.apply_these(to_backend(local))
    result = source.apply_these(to_backend(free_port()), {"local_port": free_port(), "space": "nobody", "remote_port": 1})
    assert result.returncode == 1
    assert "nobody" in result.stderr
    assert source.has() == {local: "backend-api:3000"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("forwards:\n  - {local_port: 8080, space: backend-api}\n", 2),
        ("forwards:\n  - {local_port: 1, space: a, remote_port: 1}\n  - {local_port: 1, space: a, remote_port: 1}\n", 3),
        ("forwards: [\n", 2),
        ("# nothing\nports: []\n", 2),
        ("", 1),
    ],
)
def test_a_broken_file_sends_nothing(source: Source, text: str, line: int) -> None:
    """A mistake is told as FILE:LINE, is wrong usage, and nobody is asked: here there is nobody to ask."""
    source.file.write_text(text)
    nobody = {"KNOT_AGENT_SOCKET": "/nowhere/agent.sock"}
    message = source.agent.system.knot("port", "apply", "-f", str(source.file), env=nobody, code=2)
    assert message.startswith(f"knot: {source.file}:{line}: "), message


def test_unreadable_files(source: Source, tmp_path: Path) -> None:
    """A file that is none, or no text, is said to be."""
    system = source.agent.system
    assert "No such file" in system.knot("port", "apply", "-f", str(tmp_path / "none"), code=2)
    assert "Is a directory" in system.knot("port", "apply", "-f", str(tmp_path), code=2)
    source.file.write_bytes(b"\xff")
    assert "UTF-8" in system.knot("port", "apply", "-f", str(source.file), code=2)


def test_check_asks_nobody(source: Source) -> None:
    """`--check` reads a file, and says whether it will do."""
    system = source.agent.system
    source.file.write_text("forwards:\n  - {local_port: 9000-9002, space: backend-api, remote_port: 3000-3002}\n")
    assert system.knot("port", "apply", "--check", str(source.file)) == f"{source.file}: 3 forwards, no mistakes"
    source.file.write_text("forwards:\n  - {local_port: x, space: backend-api, remote_port: 3000}\n")
    assert f"{source.file}:2: " in system.knot("port", "apply", "--check", str(source.file), code=2)


def test_usage(source: Source) -> None:
    """What does not go together is wrong usage."""
    system = source.agent.system
    assert "-f FILE is missing" in system.knot("port", "apply", "applier", code=2)
    assert "--check stands alone" in system.knot("port", "apply", "--check", "a", "-f", "b", code=2)
    assert "at most one argument" in system.knot("port", "apply", "a", "b", "-f", "-", code=2)


def test_a_space_that_does_not_run(pair: Pair, tmp_path: Path) -> None:
    """Persistent forwards are stored for it; others cannot be made, and say what to do."""
    pair.system.space("sleeper", run=False)
    first, second = free_ports(2)
    text = json.dumps({"forwards": [to_backend(first, persistent=True), to_backend(second)]})
    result = pair.system.run("port", "apply", "sleeper", "-f", "-", user="alice", stdin=text)
    assert result.stdout == f"Port forward stored for when the space runs: sleeper:{first} -> backend-api:3000\n"
    assert result.returncode == 1
    assert result.stderr.startswith(f"knot: {second} -> backend-api:3000: the space 'sleeper' is not running; --persistent")


def test_forwards_of_the_agents_file(pair: Pair, tmp_path: Path) -> None:
    """What the agent's settings file makes is left alone and said to be; the list shows it; a list that wants its port gets
    an error for that alone, and `stop` is refused."""
    filed, local = free_ports(2)
    forward = {"local_port": filed, "space": "backend-api", "remote_port": 3000, "bind": "127.0.0.2"}
    agent = ConfiguredAgent(pair.system, "ruled", "alice", {"forwards": [forward], "allow_remote_bind": True}, tmp_path)
    agent.start()
    source = Source(agent, tmp_path)
    shown = f"  127.0.0.2:{filed} -> backend-api:3000 (file, direct)"
    until(lambda: shown in agent.knot("port", "list").splitlines(), what="the file's forward is there")
    alone = f"Left alone, for the agent's settings file makes them: {filed}\n"
    made = source.apply_these(to_backend(local))
    assert (made.returncode, made.stderr) == (0, alone)
    assert made.stdout == f"Port forward established: {local} -> backend-api:3000\n"
    nothing = source.apply("-f", str(source.file))
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "Nothing to change.\n", alone)
    held = source.apply_these(to_backend(local), to_backend(filed, 1))
    assert (held.returncode, held.stdout) == (1, "")
    words = f"the forward on port {filed} is made by the agent's settings file: change it there"
    assert held.stderr == f"{alone}knot: {filed} -> backend-api:1: {words}\n"
    assert words in agent.knot("port", "stop", str(filed), code=1)
    header, *rows = agent.knot("port", "list", "-o", "wide").splitlines()
    assert "ORIGIN" in header
    assert any(row.startswith(f"127.0.0.2:{filed} ") and " file " in row for row in rows)
    (tmp_path / "ruled.yaml").write_text("forwards:\n  - {local_port: 0}\n")
    trouble = until(lambda: agent.system.run("port", "list", env=agent.variables).stderr, what="the mistake is told")
    assert trouble.startswith("The agent's settings file has a mistake; its forwards stay as they last were: ")
    assert f"{tmp_path / 'ruled.yaml'}:2: " in trouble
    assert len(trouble.splitlines()) == 1
