"""An administrator deletes a user, an owner a space: from then on to the last byte of what was flowing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Pair
from tests.faults.beds import Settings, forward, start_agent
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.services import connect, serving
from tests.support.system import AgentOf, System

SOON = 2
"""Seconds, from the table."""
NOWHERE: Settings = {"advertise": ["127.0.0.1:1"]}
"""Settings of an agent that is reached by relay alone."""
PIECE = bytes(1024)


def pouring(connection: socket.socket) -> None:
    """A service that sends for as long as it is let."""
    while True:
        connection.sendall(PIECE)


class Tap:
    """Reads a stream to its end; `last` is when the last byte came, on the monotonic clock."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.last = 0.0
        self.flowing = threading.Event()
        self.end = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def wait(self) -> float:
        self._thread.join(30)
        return self.last

    def _read(self) -> None:
        try:
            while self._sock.recv(65536):
                self.last = time.monotonic()
                self.flowing.set()
            self.end = "fin"
        except OSError:
            self.end = "reset"


@contextlib.contextmanager
def taps(*ports: int) -> Iterator[list[Tap]]:
    with contextlib.ExitStack() as stack:
        found = [Tap(stack.enter_context(connect(port))) for port in ports]
        for tap in found:
            assert tap.flowing.wait(20)
        yield found


def delete_space(system: System, doomed: AgentOf) -> None:
    system.api(doomed.owner).delete("api", "spaces", doomed.id)


def delete_user(system: System, doomed: AgentOf) -> None:
    system.api("admin").delete("api", "users", doomed.owner)
    del system.tokens[doomed.owner]


def revoke_space(system: System, doomed: AgentOf) -> None:
    system.api(doomed.owner).post("api", "revocations", body={"kind": "space", "space": doomed.id})


def move_space(system: System, doomed: AgentOf) -> None:
    system.api(doomed.owner).patch("api", "spaces", doomed.id, body={"zone": "us"})


@pytest.mark.threat(
    23, "delete a space or user, revoke or move a space: streams both ways, by each path", "cut < 2 s, as resets"
)
@pytest.mark.parametrize("path", ["direct", "relay"])
@pytest.mark.parametrize("delete", [delete_space, delete_user, revoke_space, move_space], ids=lambda way: way.__name__)
@steadily
def test_last_byte(pair: Pair, figure: Figure, path: str, delete: Callable[[System, AgentOf], None]) -> None:
    """What flows from a deleted space, and what flows to it, ends at once, and not as if it were whole."""
    system, number = pair.system, time.monotonic_ns()
    owner = f"erin-{number}"
    system.user(owner)
    agents = [named(system, f"{role}-{number}", owner, path) for role in ("doomed", "other")]
    with serving(pouring) as port:
        out, into = (forward(source, target.name, port) for source, target in (agents, agents[::-1]))
        with taps(out, into) as found:
            assert {status["mode"] for status in agents[0].forwards()} == {path}
            began = time.monotonic()
            delete(system, agents[0])
            seconds = max(tap.wait() for tap in found) - began
    figure(f"{path}: last byte after {seconds:.2f} s")
    assert [tap.end for tap in found] == ["reset", "reset"]
    in_time(seconds, SOON)


def named(system: System, name: str, owner: str, path: str) -> AgentOf:
    """An agent that is reached by this path."""
    return system.space(name, owner) if path == "direct" else start_agent(system, name, NOWHERE, owner=owner)
