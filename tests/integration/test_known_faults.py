"""Faults that users of other tools for the same task have met. Each test is the claim that it is none of ours."""

from __future__ import annotations

import signal
import socket
from typing import Any

import pytest
import urllib3

from knot_ssh.api import Api
from knot_ssh.errors import Conflict, NotFound, NotRunning, OtherZone, PortTaken
from knot_ssh.ports import PortsOfServer
from tests.conftest import Pair
from tests.support.ports import free_ports
from tests.support.services import answering, ask, connect, echo, free_port, is_refused, read_all, serving

PATIENCE = 3
"""Seconds: far less than a connection is held for a target that does not answer, far more than a served one needs."""


@pytest.fixture
def ports(pair: Pair) -> PortsOfServer:
    """alice's forwards over HTTP."""
    return PortsOfServer(pair.system.api("alice"))


def to(space: str, local_port: int, remote_port: int = 3000, **more: object) -> dict[str, Any]:
    return {"local_port": local_port, "space": space, "remote_port": remote_port, **more}


@pytest.mark.parametrize("persistent", [False, True])
def test_success_before_the_port_is_bound(pair: Pair, ports: PortsOfServer, persistent: bool) -> None:
    """Elsewhere: success is reported, and binding fails later, where nobody sees it. Here a taken port is an error from
    both doors, nothing is kept of it, and after success the very next connection is served."""
    options = ["--persistent"] if persistent else []
    with serving(answering(b"other")) as taken, serving(answering(b"served")) as port:
        assert "is taken by another process" in pair.frontend.knot(
            "port", "forward", str(taken), "backend-api", str(port), *options, code=1
        )
        with pytest.raises(PortTaken):
            ports.forward("frontend", to("backend-api", taken, port, persistent=persistent))
        assert taken not in [entry["local_port"] for entry in pair.frontend.forwards()]
        assert ask(taken) == b"other"
        local = free_port()
        ports.forward("frontend", to("backend-api", local, port, persistent=persistent))
        assert ask(local) == b"served"
        ports.stop("frontend", local)


def test_stop_of_an_unknown_port(pair: Pair, ports: PortsOfServer) -> None:
    """Elsewhere: `stop` says "stopped" whatever the port. Here it is an error that names the port, from both doors, and
    also for a space that does not run."""
    unknown = str(free_port())
    words = f"knot: there is no forward on port {unknown} in"
    assert pair.frontend.knot("port", "stop", unknown, code=1).startswith(words)
    assert pair.system.knot("port", "stop", "frontend", unknown, user="alice", code=1).startswith(words)
    pair.system.space("fault-idle", run=False)
    with pytest.raises(NotFound, match="'fault-idle'"):
        ports.stop("fault-idle", int(unknown))


def test_apply_on_a_stopped_space(pair: Pair, ports: PortsOfServer) -> None:
    """Elsewhere: `apply` on a space that does not run adds, and deletes nothing. Here what is not in the list is deleted,
    said to be, and does not come back with the agent."""
    space = pair.system.space("fault-stopped")
    old, new = free_ports(2)
    ports.forward("fault-stopped", to("backend-api", old, persistent=True))
    space.stop()
    applied = ports.apply("fault-stopped", [to("backend-api", new, persistent=True)])
    assert [entry["local_port"] for entry in applied["stopped"]] == [old]
    assert [entry["local_port"] for entry in ports.list("fault-stopped")["forwards"]] == [new]
    space.start()
    assert [entry["local_port"] for entry in space.forwards()] == [new]
    assert is_refused(old)
    space.stop()
    assert [entry["local_port"] for entry in ports.apply("fault-stopped", [])["stopped"]] == [new]
    assert ports.list("fault-stopped")["forwards"] == []


@pytest.mark.parametrize("named", ["name", "id"])
def test_a_name_where_an_id_is_wanted(pair: Pair, named: str) -> None:
    """Elsewhere: a name in the place of `{space_id}` is a bad request. Here every route takes either, also as target."""
    source, target = ("frontend", "backend-api") if named == "name" else (pair.frontend.id, pair.backend.id)
    space = pair.system.space(f"fault-by-{named}")
    source = space.name if named == "name" else space.id
    local = free_port()
    headers = {"Authorization": f"Bearer {pair.system.user('alice')}"}
    url = f"{pair.system.url}/space-io/{source}/port"
    bodies: dict[str, dict[str, Any]] = {
        "forward": to(target, local),
        "apply": {"forwards": [to(target, local)]},
        "stop": {"local_port": local},
    }
    for route, body in bodies.items():
        answer = urllib3.request("POST", f"{url}/{route}", json=body, headers=headers, retries=False)
        assert (answer.status, route) == (200, route)
    assert urllib3.request("GET", f"{url}/list", headers=headers, retries=False).json()["forwards"] == []


def test_whose_fault_it_is(pair: Pair, ports: PortsOfServer) -> None:
    """Elsewhere: every conflict is blamed on the source. Here the message names the space that is at fault, and its way out,
    for a single forward and in the `errors` of `apply` alike."""
    pair.system.space("fault-asleep", run=False)
    pair.system.space("fault-far", zone="us", run=False)
    local = free_port()
    cases: list[tuple[str, str, type[Conflict], str]] = [
        ("frontend", "fault-asleep", NotRunning, "the target space 'fault-asleep' is not running; --force"),
        ("fault-asleep", "backend-api", NotRunning, "the space 'fault-asleep' is not running; --persistent"),
        ("frontend", "fault-far", OtherZone, "the space 'fault-far' is in zone 'us' and 'frontend' in 'eu'"),
    ]
    for source, target, kind, words in cases:
        with pytest.raises(kind) as caught:
            ports.forward(source, to(target, local))
        assert str(caught.value).startswith(words)
    (error,) = ports.apply("fault-asleep", [to("backend-api", local)])["errors"]
    assert error["error"].startswith("the space 'fault-asleep' is not running; --persistent")
    with pytest.raises(OtherZone, match="the space 'fault-far'"):
        ports.apply("fault-asleep", [to("fault-far", local)])
    other = pair.system.space("fault-awake")
    (error,) = ports.apply(other.name, [to("fault-asleep", local)])["errors"]
    assert error["error"].startswith("the target space 'fault-asleep' is not running; --force")


def test_a_slow_dial(pair: Pair) -> None:
    """Elsewhere: a target that is slow to reach stalls all connections behind it. Here neither other forwards nor the next
    connection to the same port wait for the one before."""
    slow = pair.system.space("fault-slow")
    local, other = free_port(), free_port()
    with serving(answering(b"served")) as port:
        pair.frontend.knot("port", "forward", str(other), "backend-api", str(port))
        assert slow.running is not None
        slow.running.process.send_signal(signal.SIGSTOP)
        try:
            pair.frontend.knot("port", "forward", str(local), "fault-slow", str(port), "--force")
            with connect(local) as held:
                held.settimeout(PATIENCE)
                assert _served(other)
                pair.frontend.knot("port", "forward", str(local), "backend-api", str(port))
                assert _served(local)
                held.setblocking(False)
                with pytest.raises(BlockingIOError):
                    held.recv(1)
        finally:
            slow.running.process.send_signal(signal.SIGCONT)
    for port in (local, other):
        pair.frontend.knot("port", "stop", str(port))


def _served(port: int) -> bool:
    """Whether a connection is answered without having to wait for anybody."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as sock:
        return sock.recv(100) == b"served"


def test_stop_leaves_connections_alive(pair: Pair) -> None:
    """Elsewhere: after `stop` open connections go on for ever. Here they are reset, and with `--drain` it is said that they
    go on, and waited for."""
    space = pair.system.space("fault-stays")
    local = free_port()
    with serving(echo) as port:
        space.knot("port", "forward", str(local), "backend-api", str(port))
        with connect(local) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            space.knot("port", "stop", str(local))
            assert read_all(sock)[0] == "reset"
        space.knot("port", "forward", str(local), "backend-api", str(port))
        with connect(local) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            api: Api = pair.system.api("alice")
            draining = PortsOfServer(api).stop(space.name, local, drain=True)
            assert (draining["state"], draining["counters"]["open"]) == ("draining", 1)
            assert is_refused(local)
            sock.sendall(b"b")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == ("fin", b"b")
