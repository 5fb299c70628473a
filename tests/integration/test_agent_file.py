"""Forwards in the agent's settings file: what it says stands, and when it changes what has changed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from knot_ssh.errors import HeldByFile
from knot_ssh.ports import PortsOfServer
from tests.conftest import Pair
from tests.support.configured import ConfiguredAgent
from tests.support.ports import free_ports, free_row
from tests.support.services import answering, ask, free_port, serving
from tests.support.system import System, running_system
from tests.support.waiting import until

BUSY = 10.0
"""Seconds for what takes less than one on a machine that has nothing else to do."""
MANY = 1000

Entry = dict[str, Any]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    """A system of the test's own, whose server may be stopped."""
    with running_system(tmp_path) as system:
        yield system


def content(*entries: Entry, **settings: Any) -> str:
    """A settings file with these forwards, one a line."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(
        [*lines, "forwards:" if entries else "forwards: []", *(f"  - {json.dumps(entry)}" for entry in entries), ""]
    )


def entry(local: int, space: str, remote: int, **more: Any) -> Entry:
    return {"local_port": local, "space": space, "remote_port": remote, **more}


@contextmanager
def agent_with(system: System, name: str, text: str, folder: Path) -> Iterator[ConfiguredAgent]:
    """A running agent with this file."""
    agent = ConfiguredAgent(system, name, "alice", {}, folder)
    agent.rewrite(text)
    agent.start()
    try:
        yield agent
    finally:
        if agent.running and agent.running.process.poll() is None:
            agent.stop()


def soon(condition: Callable[[], object], what: str) -> None:
    """Wait for what an edit does."""
    until(condition, BUSY, what)


def states(agent: ConfiguredAgent) -> dict[int, str]:
    return {forward["local_port"]: forward["state"] for forward in agent.listing()["forwards"]}


def logged(agent: ConfiguredAgent, words: str) -> list[str]:
    assert agent.running
    return [line for line in agent.running.lines() if words in line]


def test_forwards_of_the_file(pair: Pair, tmp_path: Path) -> None:
    """What the file says is forwarded and shown as the file's, and an edit acts at once."""
    web, other = free_ports(2)
    with (
        serving(answering(b"one")) as one,
        serving(answering(b"two")) as two,
        agent_with(pair.system, "filed", content(entry(web, "backend-api", one)), tmp_path) as agent,
    ):
        soon(lambda: states(agent) == {web: "listening"}, "the forward listens")
        assert ask(web) == b"one"
        [shown] = json.loads(agent.knot("port", "list", "--json"))["forwards"]
        assert (shown["origin"], shown["bind"], shown["persistent"]) == ("file", "127.0.0.1", False)
        agent.rewrite(content(entry(web, "backend-api", two), entry(other, "backend-api", one, force=True)))
        soon(lambda: states(agent) == {web: "listening", other: "listening"}, "both forwards listen")
        assert (ask(web), ask(other)) == (b"two", b"one")
        agent.rewrite(content())
        soon(lambda: states(agent) == {}, "no forward is left")


def test_ranges(pair: Pair, tmp_path: Path) -> None:
    """A range is as many forwards, each to its own port of the target."""
    first = free_row(3)[0]
    with ExitStack() as stack:
        remote = free_row(3)[0]
        for number in range(3):
            stack.enter_context(serving(answering(b"%d" % number), port=remote + number))
        text = content({"local_port": f"{first}-{first + 2}", "space": "backend-api", "remote_port": f"{remote}-{remote + 2}"})
        agent = stack.enter_context(agent_with(pair.system, "ranges", text, tmp_path))
        soon(lambda: set(states(agent).values()) == {"listening"} and len(states(agent)) == 3, "three forwards listen")
        assert [ask(first + number) for number in range(3)] == [b"0", b"1", b"2"]


def test_broken_file(pair: Pair, tmp_path: Path) -> None:
    """A broken file leaves the forwards of the last good one working; list and log name the line, until it is good again."""
    local = free_port()
    with serving(answering(b"still")) as port:
        good = content(entry(local, "backend-api", port))
        with agent_with(pair.system, "broken", good, tmp_path) as agent:
            soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
            agent.rewrite(good + "  - {local_port: 1}\n")
            soon(lambda: agent.listing()["file_error"], "the file is refused")
            problem = f"{agent.file}:3: forwards.1.space: is missing"
            assert json.loads(agent.knot("port", "list", "--json"))["file_error"] == problem
            assert [problem in line for line in logged(agent, "stay as they were")] == [True]
            assert ask(local) == b"still"
            agent.file.unlink()
            soon(
                lambda: agent.listing()["file_error"] == f"cannot read {agent.file}: No such file or directory", "it is missed"
            )
            assert ask(local) == b"still"
            agent.rewrite(good)
            soon(lambda: agent.listing()["file_error"] is None, "the file is good again")
            assert [forward["counters"]["total"] for forward in agent.listing()["forwards"]] == [2]


def test_start_with_a_broken_file(pair: Pair, tmp_path: Path) -> None:
    """Wrong forwards do not keep an agent from starting, with those it had; wrong settings do, in one line."""
    local = free_port()
    with serving(answering(b"kept")) as port:
        good = content(entry(local, "backend-api", port))
        with agent_with(pair.system, "boots", good, tmp_path) as agent:
            soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
            agent.stop()
            agent.rewrite(good.replace("remote_port", "remote_prot"))
            agent.start()
            soon(lambda: states(agent) == {local: "listening"}, "the forward listens again")
            assert ask(local) == b"kept"
            assert f"{agent.file}:2: forwards.0.remote_prot: is not known here" in str(agent.listing()["file_error"])
            agent.stop()
            for text, words in ((f"listen: x\n{good}", ":1: listen: "), ("forwards: [\n", ":2: ")):
                agent.rewrite(text)
                refused = agent.start_without_waiting()
                assert refused.wait() == 2
                assert refused.lines()[-1].startswith(f"knot: {agent.file}{words}")
                assert len(refused.lines()) == 1


def test_start_without_the_server(own: System, tmp_path: Path) -> None:
    """The forwards of the file are restored while the server is away, and what is new in it waits for the server."""
    target = own.space("target")
    local, new = free_ports(2)
    with serving(answering(b"alone")) as port:
        good = content(entry(local, "target", port))
        with agent_with(own, "source", good, tmp_path) as agent:
            soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
            agent.kill()
            assert own.server
            own.server.kill()
            agent.rewrite(good + f"  - {json.dumps(entry(new, target.id, port))}\n")
            running = agent.start_without_waiting()
            running.wait_for("agent ready")
            soon(lambda: states(agent) == {local: "listening", new: "waiting"}, "the forward that is known listens")
            assert ask(local) == b"alone"
            [waiting] = [forward for forward in agent.listing()["forwards"] if forward["local_port"] == new]
            assert (waiting["space"], waiting["space_id"]) == (target.id, None)
            assert waiting["reason"] == "the server has not said yet which space that is"
            own.start()
            soon(lambda: states(agent) == {local: "listening", new: "listening"}, "both listen")
            assert ask(new) == b"alone"


def test_space_that_is_made_later(pair: Pair, tmp_path: Path) -> None:
    """A space that there is none of fails its forward with the reason, and is found when it is made, and when made again."""
    local = free_port()
    with serving(answering(b"later")) as port, agent_with(pair.system, "early", "", tmp_path) as agent:
        agent.rewrite(content(entry(local, "latecomer", port)))
        soon(lambda: states(agent) == {local: "failed"}, "the forward fails")
        assert agent.listing()["forwards"][0]["reason"] == "there is no space 'latecomer' of yours in this zone"
        first = pair.system.space("latecomer")
        until(lambda: states(agent) == {local: "listening"}, 40, "the forward listens")
        assert ask(local) == b"later"
        pair.system.knot("space", "delete", "latecomer", user="alice")
        assert first.running
        first.running.wait()
        soon(lambda: states(agent) == {local: "failed"}, "the forward fails again")
        pair.system.space("latecomer")
        until(lambda: states(agent) == {local: "listening"}, 40, "the forward listens again")
        assert ask(local) == b"later"


def test_space_that_is_renamed(pair: Pair, tmp_path: Path) -> None:
    """A space that has another name is still what the file means; its new name in the file changes nothing."""
    local = free_port()
    pair.system.space("plain")
    with (
        serving(answering(b"renamed")) as port,
        agent_with(pair.system, "reader", content(entry(local, "plain", port)), tmp_path) as agent,
    ):
        soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
        pair.system.knot("space", "rename", "plain", "fancy", user="alice")
        soon(lambda: agent.listing()["forwards"][0]["space"] == "fancy", "the new name is shown")
        since = agent.listing()["forwards"][0]["counters"]["since"]
        agent.rewrite(content(entry(local, "fancy", port)))
        assert agent.running
        agent.running.wait_for("forwards of the file read")
        assert ask(local) == b"renamed"
        assert (states(agent), agent.listing()["forwards"][0]["counters"]["since"]) == ({local: "listening"}, since)


def test_nobody_else_changes_them(pair: Pair, tmp_path: Path) -> None:
    """The file takes a port over from a command, refuses to have it stopped or replaced, and gives it back."""
    local = free_port()
    with (
        serving(answering(b"by command")) as first,
        serving(answering(b"by file")) as second,
        agent_with(pair.system, "holds", content(), tmp_path) as agent,
    ):
        agent.knot("port", "forward", str(local), "backend-api", str(first))
        assert ask(local) == b"by command"
        agent.rewrite(content(entry(local, "backend-api", second)))
        soon(lambda: agent.listing()["forwards"][-1]["origin"] == "file", "the file has it")
        assert ask(local) == b"by file"
        assert "made by the agent's settings file" in agent.knot("port", "stop", str(local), code=1)
        assert "made by the agent's settings file" in agent.knot(
            "port", "forward", str(local), "backend-api", str(first), code=1
        )
        with pytest.raises(HeldByFile):
            PortsOfServer(pair.system.api("alice")).stop("holds", local)
        assert ask(local) == b"by file"
        agent.rewrite(content())
        soon(lambda: agent.listing()["forwards"][-1]["origin"] == "command", "it is given back")
        assert ask(local) == b"by command"


def test_binding_for_others(pair: Pair, tmp_path: Path) -> None:
    """A port is bound for other machines only where the file allows that."""
    local = free_port()
    with serving(answering(b"open")) as port, agent_with(pair.system, "opens", "", tmp_path) as agent:
        text = content(entry(local, "backend-api", port, bind="0.0.0.0"))
        agent.rewrite(text)
        soon(lambda: agent.listing()["file_error"], "the file is refused")
        assert "needs `allow_remote_bind: true`" in str(agent.listing()["file_error"])
        assert states(agent) == {}
        agent.rewrite("allow_remote_bind: true\n" + text)
        soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
        assert bound_at(local) == ["0.0.0.0"]
        agent.rewrite(content(entry(local, "backend-api", port)))
        soon(lambda: bound_at(local) == ["127.0.0.1"], "it listens for this machine alone")
        agent.rewrite("allow_remote_bind: true\n" + text.replace("0.0.0.0", "192.0.2.1"))
        soon(lambda: states(agent) == {local: "failed"}, "an address that is not this machine's fails it")
        assert "cannot be bound" in str(agent.listing()["forwards"][0]["reason"])
        agent.rewrite(content(entry(local, "backend-api", port)))
        soon(lambda: states(agent) == {local: "listening"}, "the forward listens")
        assert ask(local) == b"open"


def bound_at(port: int) -> list[str]:
    """The addresses at which somebody listens on this port, as the kernel knows them."""
    listing = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True).stdout
    return [line.split()[3].rpartition(":")[0] for line in listing.splitlines()]


def test_one_of_a_thousand(pair: Pair, tmp_path: Path) -> None:
    """One line changed of a thousand touches one forward."""
    first = free_row(MANY)[0]
    with serving(answering(b"before")) as before, serving(answering(b"after")) as after:
        entries = [entry(first + number, "backend-api", before) for number in range(MANY)]
        with agent_with(pair.system, "thousand", content(*entries), tmp_path) as agent:
            soon(lambda: list(states(agent).values()) == ["listening"] * MANY, "all listen")
            started = len(logged(agent, "forward started"))
            assert started == MANY
            since = {forward["local_port"]: forward["counters"]["since"] for forward in agent.listing()["forwards"]}
            entries[500]["remote_port"] = after
            agent.rewrite(content(*entries))
            soon(lambda: ask(first + 500) == b"after", "the change acts")
            assert ask(first + 501) == b"before"
            del entries[500]
            agent.rewrite(content(*entries))
            soon(lambda: len(states(agent)) == MANY - 1, "one is gone")
            kept = {forward["local_port"]: forward["counters"]["since"] for forward in agent.listing()["forwards"]}
            assert kept.items() <= since.items()
            assert (len(logged(agent, "forward started")), len(logged(agent, "forward stopped"))) == (MANY, 1)


def test_stops_at_once(pair: Pair, tmp_path: Path) -> None:
    """Watching a file does not hold up the end."""
    with agent_with(pair.system, "ends", content(), tmp_path) as agent:
        assert agent.running
        began = time.monotonic()
        assert agent.running.stop() == 0
        assert time.monotonic() - began < BUSY
        assert not logged(agent, "rror")


def test_changed_settings(pair: Pair, tmp_path: Path) -> None:
    """A setting that has changed is named in the log: it is used at the next start."""
    with agent_with(pair.system, "settles", content(connect_timeout=5), tmp_path) as agent:
        agent.rewrite(content(connect_timeout=6))
        assert agent.running
        assert "changed=connect_timeout" in agent.running.wait_for("settings take effect at the next start")
