"""Everything that is refused: one clear line, the right exit code or status, and nothing left behind."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from knot_ssh.errors import KnotError
from tests.conftest import Pair
from tests.support.services import free_port, is_refused
from tests.support.system import AgentOf, Running, System, knot_command
from tests.support.waiting import until


def stored(pair: Pair) -> list[int]:
    """The ports of all forwards of frontend."""
    return [forward["local_port"] for forward in pair.frontend.forwards()]


@pytest.mark.parametrize("port", ["0", "65536", "abc", "-1", "1.5", "\uff18\uff10", "", "99999999999999999999"])
@pytest.mark.parametrize("place", ["local", "remote"])
def test_bad_ports_are_wrong_usage(pair: Pair, port: str, place: str) -> None:
    """A port that is none is named in the error, exit code 2, from inside."""
    words = (port, "backend-api", "3000") if place == "local" else ("8080", "backend-api", port)
    line = pair.frontend.knot("port", "forward", "--", *words, code=2)
    assert "must be a whole number from 1 to 65535" in line


@pytest.mark.parametrize("words", [(), ("8080",), ("8080", "b"), ("a", "8080", "b", "1", "2")])
def test_wrong_number_of_arguments(pair: Pair, words: tuple[str, ...]) -> None:
    """Neither three nor four arguments is wrong usage."""
    pair.frontend.knot("port", "forward", *words, code=2)


@pytest.mark.parametrize("name", ["UPPER", "a/b", "a@b", "-x-", "join", "a" * 64, "ü"])
def test_bad_names_are_wrong_usage(pair: Pair, name: str) -> None:
    """A name that is no label never reaches the server, from inside or outside."""
    assert "knot:" in pair.frontend.knot("port", "forward", "8080", "--", name, "3000", code=2)
    assert "knot:" in pair.system.knot("space", "create", "--zone", "eu", "--", name, user="alice", code=2)


def test_taken_local_port(pair: Pair) -> None:
    """A port that another process holds is refused from both doors, and not stored."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        inside = pair.frontend.knot("port", "forward", str(port), "backend-api", "3000", "-p", code=1)
        outside = pair.system.knot("port", "forward", "frontend", str(port), "backend-api", "3000", user="alice", code=1)
    assert f"port {port} is taken" in inside
    assert f"port {port} is taken" in outside
    assert port not in stored(pair)


def test_unknown_and_other_owners_space_look_the_same(pair: Pair) -> None:
    """bob's space and no space at all give alice the same answer, as target and as source."""
    pair.system.api("bob").post("api", "spaces", body={"name": "secret", "zone": "eu"})
    port = str(free_port())
    forms: list[Callable[[str], str]] = [
        lambda name: pair.frontend.knot("port", "forward", port, name, "3000", code=1),
        lambda name: pair.system.knot("port", "forward", "frontend", port, name, "3000", user="alice", code=1),
        lambda name: pair.system.knot("port", "list", name, user="alice", code=1),
        lambda name: pair.system.knot("port", "stop", name, port, user="alice", code=1),
        lambda name: pair.system.knot("space", "delete", name, user="alice", code=1),
        lambda name: pair.system.knot("space", "token", name, user="alice", code=1),
    ]
    for form in forms:
        assert form("secret") == form("absent").replace("absent", "secret")
    assert int(port) not in stored(pair)


def test_other_zone(pair: Pair) -> None:
    """A space of the same owner in another zone is a conflict, whatever the flags."""
    pair.system.space("far", zone="us", run=False)
    line = pair.frontend.knot("port", "forward", str(free_port()), "far", "3000", "--force", "--persistent", code=1)
    assert "zone" in line


def test_stopped_target_needs_force(pair: Pair) -> None:
    """Without --force a target that is not running is refused; with it the forward waits."""
    pair.system.space("asleep", run=False)
    port = free_port()
    assert "--force" in pair.frontend.knot("port", "forward", str(port), "asleep", "3000", code=1)
    assert port not in stored(pair)
    assert is_refused(port)
    pair.frontend.knot("port", "forward", str(port), "asleep", "3000", "--force")

    def state() -> str:
        return next(str(forward["state"]) for forward in pair.frontend.forwards() if forward["local_port"] == port)

    until(lambda: state() == "waiting", what="the forward waits")
    pair.frontend.knot("port", "stop", str(port))


def test_stopped_source_needs_persistent(pair: Pair) -> None:
    """From the desktop a source that is not running needs --persistent; nothing is stored without."""
    pair.system.space("dormant", run=False)
    words = ("port", "forward", "dormant", "8080", "backend-api", "3000")
    assert "--persistent" in pair.system.knot(*words, user="alice", code=1)
    assert pair.system.knot("port", "list", "dormant", user="alice") == "No active port forwards in space 'dormant'."
    assert "stored" in pair.system.knot(*words, "--persistent", user="alice")
    assert "8080 -> backend-api:3000 (persistent" in pair.system.knot("port", "list", "dormant", user="alice")


def test_a_space_does_not_forward_to_itself(pair: Pair) -> None:
    """A forward to oneself could only loop."""
    assert "itself" in pair.frontend.knot("port", "forward", str(free_port()), "frontend", "3000", code=2)


def test_stop_of_an_unknown_port(pair: Pair) -> None:
    """Stopping what is not there is an error and does not claim success."""
    port = str(free_port())
    assert f"no forward on port {port}" in pair.frontend.knot("port", "stop", port, code=1)
    assert f"no forward on port {port}" in pair.system.knot("port", "stop", "frontend", port, user="alice", code=1)


def test_wrong_api_token(pair: Pair) -> None:
    """A token that is wrong in any part gives the same answer."""
    good = pair.system.user("alice")
    for bad in (
        good[:-1] + ("0" if good[-1] != "0" else "1"),
        "knot_ffffffffffff_" + "0" * 64,
        "nonsense",
        good.removeprefix("knot_"),
    ):
        env = {"KNOT_SERVER": pair.system.url, "KNOT_TOKEN": bad}
        assert "API token is not accepted" in pair.system.knot("space", "list", env=env, code=1)


def test_unreachable_server(pair: Pair) -> None:
    """A server that does not answer is named."""
    url = f"http://127.0.0.1:{free_port()}"
    env = {"KNOT_SERVER": url, "KNOT_TOKEN": "knot_x_y"}
    assert url in pair.system.knot("space", "list", env=env, code=1)


def test_no_server_given(pair: Pair) -> None:
    """Outside a space and without a server the error says what to do."""
    assert "knot login" in pair.system.knot("port", "list", "frontend", code=2)
    env = {"KNOT_SERVER": pair.system.url, "KNOT_TOKEN": pair.system.user("alice")}
    assert "name the source space" in pair.system.knot("port", "forward", "8080", "backend-api", "3000", env=env, code=2)


def test_silent_agent_socket(pair: Pair, tmp_path: Path) -> None:
    """A socket nobody answers at is named."""
    path = str(tmp_path / "agent.sock")
    assert path in pair.system.knot("port", "list", env={"KNOT_AGENT_SOCKET": path}, code=1)


def test_only_administrators_make_users(pair: Pair) -> None:
    """alice may not make users."""
    assert "administrator" in pair.system.knot("user", "create", "mallory", user="alice", code=1)


# Join tokens


def run_agent(system: System, folder: Path, *options: str, hub: str = "") -> Running:
    command = knot_command("agent", "run", "--data", str(folder), "--server", hub or system.hub, "--listen", "127.0.0.1:0")
    running = Running([*command, *options], folder.with_suffix(".log"), system.environment({}))
    system.processes.append(running)
    return running


def join_token(system: System, space: str) -> str:
    return system.knot("space", "token", space, user="alice")


@pytest.fixture
def lonely(pair: Pair, request: pytest.FixtureRequest) -> AgentOf:
    """A space whose agent has never run."""
    return pair.system.space(f"lonely-{abs(hash(request.node.name)) % 10**9}", run=False)


def ends_with_one_line(running: Running, code: int) -> str:
    assert running.wait() == code
    said = [line for line in running.lines() if line.startswith("knot:")]
    assert len(said) == 1, running.lines()
    return said[0]


def test_used_join_token(pair: Pair, lonely: AgentOf, tmp_path: Path) -> None:
    """A token serves one key: a second agent with it ends with exit code 1 and is told what to do."""
    token = join_token(pair.system, lonely.name)
    lonely.start(token)
    line = ends_with_one_line(run_agent(pair.system, tmp_path / "thief", "--token", token), 1)
    assert "used already" in line
    assert f"knot space token {lonely.name}" in line
    assert lonely.is_running()


def test_expired_join_token(pair: Pair, lonely: AgentOf, tmp_path: Path) -> None:
    """A token that has run out ends the agent with exit code 1, and it is told so."""
    token = join_token(pair.system, lonely.name)
    with contextlib.closing(sqlite3.connect(pair.system.folder / "server" / "store.db")) as store, store:
        store.execute("UPDATE join_tokens SET expires_at = 1 + 0 * expires_at WHERE space_id = ?", (lonely.id,))
    assert "has expired" in ends_with_one_line(run_agent(pair.system, tmp_path / "a", "--token", token), 1)


def test_wrong_join_token(pair: Pair, lonely: AgentOf, tmp_path: Path) -> None:
    """A token with a wrong secret is refused; text that is no token is wrong usage."""
    token = join_token(pair.system, lonely.name)
    changed = token[:30] + ("A" if token[30] != "A" else "B") + token[31:]
    assert "does not know" in ends_with_one_line(run_agent(pair.system, tmp_path / "a", "--token", changed), 1)
    assert "is not one" in ends_with_one_line(run_agent(pair.system, tmp_path / "b", "--token", "knotjoin_abc"), 2)


def test_token_of_another_server(pair: Pair, tmp_path: Path) -> None:
    """A token names its hub by key: at another server's hub its secret is never sent."""
    from tests.support.system import running_system

    folder = tmp_path / "other"
    folder.mkdir()
    with running_system(folder) as other:
        token = other.api("alice").post("api", "spaces", body={"name": "there", "zone": "eu"})["join_token"]
        line = ends_with_one_line(run_agent(pair.system, tmp_path / "a", "--token", token), 1)
    assert "unknown CA" in line
    assert "make a new one with `knot space token NAME`" in line


def test_agent_without_token(pair: Pair, tmp_path: Path) -> None:
    """An agent that has not joined and has no token is told where tokens come from."""
    assert "knot space create" in ends_with_one_line(run_agent(pair.system, tmp_path / "a"), 2)


def test_unreachable_hub_is_tried_again(pair: Pair, lonely: AgentOf, tmp_path: Path) -> None:
    """An agent whose hub is away says so once and keeps trying."""
    token = join_token(pair.system, lonely.name)
    running = run_agent(pair.system, tmp_path / "a", "--token", token, hub=f"127.0.0.1:{free_port()}")
    running.wait_for("hub not reachable, trying again")
    assert running.process.poll() is None
    assert running.stop() == 0
    assert len([line for line in running.lines() if "hub not reachable" in line]) == 1


def test_taken_endpoint_port(pair: Pair, lonely: AgentOf, tmp_path: Path) -> None:
    """An endpoint port that was asked for and is taken ends the agent with one line."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        running = run_agent(pair.system, tmp_path / "a", "--listen", address, "--token", join_token(pair.system, lonely.name))
        assert address in ends_with_one_line(running, 1)


def test_server_is_not_made_twice(pair: Pair) -> None:
    """`server init` over an existing server changes nothing."""
    ca = (pair.system.folder / "server" / "user_ca").read_bytes()
    assert "already" in pair.system.knot("server", "init", "--data", str(pair.system.folder / "server"), code=1)
    assert (pair.system.folder / "server" / "user_ca").read_bytes() == ca


def test_server_is_made_whole_or_not_at_all(tmp_path: Path, pair: Pair) -> None:
    """When `server init` fails half way nothing of it stays, and it can be tried again."""
    data = tmp_path / "server"
    (data / "hub_key.pub").mkdir(parents=True)
    pair.system.knot("server", "init", "--data", str(data), code=1)
    assert [path.name for path in data.iterdir()] == ["hub_key.pub"]
    (data / "hub_key.pub").rmdir()
    assert pair.system.knot("server", "init", "--data", str(data)).startswith("knot_")


def test_loose_ca_key_stops_the_server(tmp_path: Path, pair: Pair) -> None:
    """A CA key that others can read is refused, with the command that mends it."""
    data = tmp_path / "server"
    pair.system.knot("server", "init", "--data", str(data))
    (data / "user_ca").chmod(0o644)
    command = knot_command("server", "run", "--data", str(data), "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0")
    result = subprocess.run(command, capture_output=True, text=True, env=pair.system.environment({}), timeout=30, check=False)
    assert result.returncode == 1
    assert f"chmod 600 {data / 'user_ca'}" in result.stderr
    assert result.stderr.startswith("knot: ")


# HTTP statuses


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"local_port": 0, "space": "backend-api", "remote_port": 1}, 400),
        ({"local_port": 65536, "space": "backend-api", "remote_port": 1}, 400),
        ({"local_port": "8080", "space": "backend-api", "remote_port": 1}, 400),
        ({"local_port": True, "space": "backend-api", "remote_port": 1}, 400),
        ({"local_port": 8080, "space": "../x", "remote_port": 1}, 400),
        ({"local_port": 8080, "space": "backend-api"}, 400),
        ({"local_port": 8080, "space": "backend-api", "remote_port": 1, "surplus": 1}, 400),
        ({"local_port": 8080, "space": "absent", "remote_port": 1}, 404),
        (None, 400),
    ],
)
def test_http_statuses_of_forward(pair: Pair, body: object, status: int) -> None:
    """The API answers bad requests as its contract says, with one line."""
    with pytest.raises(KnotError) as caught:
        pair.system.api("alice").post("space-io", "frontend", "port", "forward", body=body)
    assert caught.value.http_status == status
    assert "\n" not in str(caught.value)


def test_agents_keep_running_after_all_this(pair: Pair) -> None:
    """Nothing so far has hurt the shared agents or server, and no process has met an error it did not expect."""
    until(lambda: pair.frontend.is_running() and pair.backend.is_running(), what="both spaces run")
    assert pair.system.server is not None
    for running in pair.system.processes:
        assert not any("Traceback" in line or "never retrieved" in line for line in running.lines()), running.log
