"""`import knot.space as space`, on the desktop and in a space."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import knot
from knot import space
from tests.conftest import Pair
from tests.support.ports import free_ports
from tests.support.services import answering, ask, connect, echo, free_port, is_refused, read_all, serving
from tests.support.system import AgentOf

MISSING = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def agent(pair: Pair) -> AgentOf:
    return pair.system.space("scripted")


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    """The environment of somebody who has set nothing."""
    for name in ("KNOT_SERVER", "KNOT_URL", "KNOT_TOKEN", "KNOT_AGENT_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    for name, value in pair.system.environment({}).items():
        if name.startswith("XDG_") or name == "HOME":
            monkeypatch.setenv(name, value)


@pytest.fixture(params=["server", "url", "config", "space", "other space"])
def source(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, pair: Pair, agent: AgentOf, tmp_path: Path
) -> Iterator[str]:
    """The space to script, from everywhere a script may run."""
    match request.param:
        case "server" | "url" as variable:
            monkeypatch.setenv(f"KNOT_{variable.upper()}", pair.system.url)
            monkeypatch.setenv("KNOT_TOKEN", pair.system.user("alice"))
        case "config":
            words = ("login", "--server", pair.system.url, "--token", "-")
            pair.system.knot(*words, env={"XDG_CONFIG_HOME": str(tmp_path)}, stdin=pair.system.user("alice"))
            monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        case "space":
            folder = tmp_path / "knot" / "agent"
            folder.parent.mkdir()
            folder.symlink_to(agent.folder)
            monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        case _:
            monkeypatch.setenv("KNOT_AGENT_SOCKET", str(pair.backend.folder / "agent.sock"))
    yield "scripted"
    space.port_apply("scripted", [])


def test_every_call(source: str) -> None:
    """Forward, list, apply and stop do the same from everywhere."""
    first, second = free_ports(2)
    with serving(answering(b"script")) as port:
        made = space.port_forward(source, first, "backend-api", port, persistent=True)
        assert (made["local_port"], made["persistent"], made["origin"]) == (first, True, "command")
        assert ask(first) == b"script"
        assert [entry["local_port"] for entry in space.port_list(source)["forwards"]] == [first]
        wanted: list[space.ForwardEntry] = [{"local_port": second, "space": "backend-api", "remote_port": port}]
        plan = space.port_apply(source, wanted, dry_run=True)
        assert [entry["local_port"] for entry in space.port_list(source)["forwards"]] == [first]
        done = space.port_apply(source, wanted)
        assert done == plan
        assert done == {
            "applied": [{"local_port": second, "space": "backend-api", "remote_port": port, "persistent": False}],
            "stopped": [{"local_port": first, "space": "backend-api", "remote_port": port, "persistent": True}],
            "errors": [],
        }
        assert ask(second) == b"script"
        assert space.port_apply(source, wanted) == {"applied": [], "stopped": [], "errors": []}
        assert space.port_stop(source, second)["state"] == "stopped"
        assert is_refused(second)


def test_errors(source: str, pair: Pair, agent: AgentOf) -> None:
    """What the server refuses is raised as the class that the project has for it, whichever door it came through."""
    local = free_port()
    with pytest.raises(knot.NotFound):
        space.port_list("nobodys")
    with pytest.raises(knot.NotFound):
        space.port_list(MISSING)
    with pytest.raises(knot.NotFound, match=str(local)):
        space.port_stop(source, local)
    with pytest.raises(knot.NotFound, match="nobodys"):
        space.port_forward(source, local, "nobodys", 1)
    with pytest.raises(knot.BadInput, match="itself"):
        space.port_forward(source, local, source, 1)
    with serving(answering(b"")) as taken, pytest.raises(knot.PortTaken, match=str(taken)):
        space.port_forward(source, taken, "backend-api", 1)
    with pytest.raises(knot.BadInput, match="twice"):
        space.port_apply(source, [{"local_port": local, "space": "backend-api", "remote_port": 1}] * 2)
    assert space.port_list(agent.id)["forwards"] == []


def test_drain(source: str) -> None:
    """With `drain` the call comes back at once, and the open connection goes on to its end."""
    local = free_port()
    with serving(echo) as port:
        space.port_forward(source, local, "backend-api", port)
        with connect(local) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            assert space.port_stop(source, local, drain=True)["state"] == "draining"
            sock.sendall(b"b")
            sock.shutdown(1)
            assert read_all(sock) == ("fin", b"b")


def test_threads_and_what_they_leave(source: str) -> None:
    """Calls from many threads at once each get their own answer, and every connection is closed by the time they return."""
    space.port_list(source)
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        with warnings.catch_warnings(), ThreadPoolExecutor(8) as pool:
            warnings.simplefilter("error")
            ports = free_ports(16)
            made = list(pool.map(lambda local: space.port_forward(source, local, "backend-api", 3000), ports))
            assert [entry["local_port"] for entry in made] == ports
            failed = list(pool.map(lambda _: _error_of("nobodys"), range(8)))
        assert set(failed) == {knot.NotFound}
        assert sorted(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def _error_of(name: str) -> type[knot.KnotError] | None:
    try:
        space.port_list(name)
    except knot.KnotError as error:
        return type(error)
    return None


def test_a_server_is_meant_where_one_is_given(monkeypatch: pytest.MonkeyPatch, pair: Pair, tmp_path: Path) -> None:
    """The rule of the command line: a server or token that is given beats an agent at the default socket."""
    folder = tmp_path / "knot" / "agent"
    folder.parent.mkdir()
    folder.symlink_to(pair.backend.folder)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    space.port_list("backend-api")
    monkeypatch.setenv("KNOT_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("KNOT_TOKEN", "knot_a_b")
    with pytest.raises(knot.Unavailable, match=r"127\.0\.0\.1:1"):
        space.port_list("backend-api")


def test_another_owner_s_space_is_none_through_the_agent(monkeypatch: pytest.MonkeyPatch, pair: Pair) -> None:
    """A script in a space reaches spaces of the same owner and zone, and no others."""
    pair.system.space("strangers", "dora", run=False)
    monkeypatch.setenv("KNOT_AGENT_SOCKET", str(pair.backend.folder / "agent.sock"))
    with pytest.raises(knot.NotFound):
        space.port_list("strangers")
