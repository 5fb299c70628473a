"""Listening sockets in the reactor."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from structlog.testing import capture_logs

from knot_ssh.dataplane import listening as module
from knot_ssh.dataplane.channel import LINGER_RESET
from knot_ssh.dataplane.listening import ACCEPTS_A_TURN, RETRY, Listener, born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from tests.support.reactors import on_both
from tests.support.services import is_refused
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, linger

EXHAUSTED = """
import os, resource, socket
from contextlib import closing
from knot_ssh.dataplane.listening import Listener
from knot_ssh.listening import bind, bound_address
from knot_ssh.addresses import Address
from tests.support.reactors import run_on
from tests.support.waiting import becomes

async def serve(plane):
    sock = bind(Address("127.0.0.1", 0))
    port = bound_address(sock).port
    accepted, clients = [], [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    used = len(os.listdir("/proc/self/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, used + 100))
    with closing(Listener(plane.reactor, sock, accepted.append)):
        await becomes(lambda: len(accepted) == 5)
        for freed in clients[:10]:
            freed.close()
        await becomes(lambda: len(accepted) == 15)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, used + 100))
        await becomes(lambda: len(accepted) == 20)
    for each in accepted + clients:
        each.close()
    print("served", flush=True)

run_on("KIND", serve)
"""
"""Accepts twenty connections with five descriptors, then with fifteen, then with as many as it likes."""


class TroubledSocket(socket.socket):
    """Accepts as long as there is no trouble."""

    trouble: OSError | None = None
    tries = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.trouble:
            raise self.trouble
        return super().accept()


class Bench:
    """A listener that keeps what it accepts, and clients for it."""

    def __init__(self, plane: DataPlane, stack: ExitStack) -> None:
        self.stack = stack
        self.sock = TroubledSocket()
        born_to_reset(self.sock).bind(("127.0.0.1", 0))
        self.sock.listen(1024)
        self.address = self.sock.getsockname()
        self.accepted: list[socket.socket] = []
        self.then: Callable[[], object] = lambda: None
        self.plane = plane
        self.listener: Listener | None = None

    def listen(self) -> Listener:
        """Begin."""
        self.listener = Listener(self.plane.reactor, self.sock, self.take)
        return self.listener

    def take(self, sock: socket.socket) -> None:
        self.accepted.append(self.stack.enter_context(sock))
        self.then()

    def connect(self, count: int = 1) -> list[socket.socket]:
        """So many clients."""
        return [self.stack.enter_context(socket.create_connection(self.address, PATIENCE)) for _ in range(count)]

    async def accepts(self, count: int) -> None:
        """Wait until exactly so many were accepted."""
        await becomes(lambda: len(self.accepted) >= count, PATIENCE, f"{count}, but {len(self.accepted)}")
        assert len(self.accepted) == count


@contextmanager
def bench(plane: DataPlane) -> Iterator[Bench]:
    """A socket that listens, and nobody who accepts yet. At the end nobody does any more."""
    with ExitStack() as stack:
        made = Bench(plane, stack)
        stack.enter_context(closing(made.sock))
        yield made
        if made.listener:
            made.listener.close()


@contextmanager
def listening(plane: DataPlane) -> Iterator[Bench]:
    """A listener that accepts."""
    with bench(plane) as made:
        made.listen()
        yield made


@on_both
async def test_many_are_accepted(plane: DataPlane) -> None:
    """Every connection is accepted, in the order in which they came, however many come at once."""
    with bench(plane) as made:
        clients = made.connect(3 * ACCEPTS_A_TURN)
        made.listen()
        await made.accepts(len(clients))
        peers = [sock.getpeername() for sock in made.accepted]
        assert peers == [client.getsockname() for client in clients]


@on_both
async def test_one_after_the_other(plane: DataPlane) -> None:
    """Whenever somebody comes, it is accepted."""
    with listening(plane) as made:
        for count in range(1, 20):
            made.connect()
            await made.accepts(count)


@on_both
async def test_others_have_their_turn(plane: DataPlane) -> None:
    """A rush at one listener does not keep another one from accepting."""
    with bench(plane) as rushed, bench(plane) as other:
        rushed.connect(3 * ACCEPTS_A_TURN)
        other.connect()
        seen: list[int] = []
        other.then = lambda: seen.append(len(rushed.accepted))
        rushed.listen()
        other.listen()
        await rushed.accepts(3 * ACCEPTS_A_TURN)
        await other.accepts(1)
        assert seen[0] <= ACCEPTS_A_TURN


@on_both
async def test_accepted_sockets_are_ready_for_use(plane: DataPlane) -> None:
    """What is accepted does not block, would be reset if the process died, and sends without delay: from birth."""
    with listening(plane) as made:
        made.connect()
        await made.accepts(1)
        [sock] = made.accepted
        assert not sock.getblocking()
        assert linger(sock) == LINGER_RESET
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@on_both
async def test_inherited_before_accepted(plane: DataPlane) -> None:
    """A connection that waits to be accepted is reset when the listening socket goes: it was never served."""
    with bench(plane) as made:
        [client] = made.connect()
        client.send(b"x")
        made.sock.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


# Ends


@on_both
async def test_closed_listener_frees_the_port(plane: DataPlane) -> None:
    """After the end nobody is accepted, and the port is free; to end twice is fine."""
    with listening(plane) as made:
        made.connect()
        await made.accepts(1)
        assert made.listener
        made.listener.close()
        made.listener.close()
        assert is_refused(made.address[1])
        made.listener.on_event(1)
        made.listener.on_turn()
        assert len(made.accepted) == 1


@on_both
async def test_closed_from_within(plane: DataPlane) -> None:
    """Whoever is handed a connection may end the listener: no other one is accepted."""
    with bench(plane) as made:
        made.connect(10)
        made.then = made.listen().close
        await made.accepts(1)
        await asyncio.sleep(0.01)
        assert len(made.accepted) == 1


# Trouble


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@on_both
async def test_out_of_descriptors(plane: DataPlane, number: int) -> None:
    """While the system has nothing left connections wait; they are accepted once it has. It is said in the log, once."""
    with listening(plane) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY", 0.02)
        made.sock.trouble = OSError(number, "Nothing left")
        with capture_logs() as logs:
            made.connect(3)
            await becomes(lambda: made.sock.tries >= 3)
            made.sock.trouble = None
            await made.accepts(3)
        warning = {"event": "cannot accept", "log_level": "warning", "reason": "Nothing left"}
        assert logs == [warning]


@on_both
async def test_trouble_that_comes_again(plane: DataPlane) -> None:
    """Each time the system runs out is said in the log."""
    with listening(plane) as made, pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(module, "RETRY", 0.02)
        for count in (1, 2):
            made.sock.trouble = OSError(errno.EMFILE, "Nothing left")
            made.connect()
            await becomes(lambda: len(logs) == count, PATIENCE)  # noqa: B023
            made.sock.trouble = None
            await made.accepts(count)


@on_both
async def test_one_retry_at_a_time(plane: DataPlane) -> None:
    """However many come while the system has nothing left, it is tried again every so often, not for each of them."""
    with listening(plane) as made, capture_logs():
        made.sock.trouble = OSError(errno.EMFILE, "Nothing left")
        for _ in range(20):
            made.connect()
            await asyncio.sleep(0.001)
        before = made.sock.tries
        await asyncio.sleep(2.5 * RETRY)
        assert 1 <= made.sock.tries - before <= 4
        made.sock.trouble = None
        await made.accepts(20)


@on_both
async def test_closed_in_trouble(plane: DataPlane) -> None:
    """A listener that ends while it waits to try again tries no more."""
    with listening(plane) as made, capture_logs():
        made.sock.trouble = OSError(errno.EMFILE, "Nothing left")
        made.connect(2)
        await becomes(lambda: made.sock.tries)
        assert made.listener
        made.listener.close()
        before = made.sock.tries
        await asyncio.sleep(1.5 * RETRY)
        assert made.sock.tries == before


@on_both
async def test_client_that_has_left(plane: DataPlane) -> None:
    """A connection that was aborted before it was accepted is passed over."""
    with bench(plane) as made:
        made.connect(2)
        accept = made.sock.accept
        troubles = [ConnectionAbortedError(errno.ECONNABORTED, "gone")]

        def once() -> tuple[socket.socket, object]:
            if troubles:
                raise troubles.pop()
            return accept()

        made.sock.accept = once  # type: ignore[method-assign]
        made.listen()
        await made.accepts(2)


@pytest.mark.parametrize("where", ["accept", "owner"])
@on_both
async def test_fault(plane: DataPlane, where: str) -> None:
    """A fault of ours costs one connection at most: it is logged, and the next ones are accepted, not in a hot loop."""
    with bench(plane) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY", 0.02)
        clients = made.connect(2)
        faults = [ZeroDivisionError()]

        def fail_once() -> None:
            if faults:
                raise faults.pop()

        with capture_logs() as logs:
            if where == "owner":
                made.then = fail_once
            else:
                made.sock.trouble = OSError(errno.EPROTO, "Strange")
            made.listen()
            await becomes(lambda: logs)
            made.sock.trouble = None
            await made.accepts(len(clients))
        assert logs[0]["event"] == "data path fault"


@on_both
async def test_fault_loses_no_socket(plane: DataPlane) -> None:
    """A connection that nobody took over, for a fault of ours, is reset at once and by us."""
    with bench(plane) as made, capture_logs():
        [client] = made.connect()

        def fail(sock: socket.socket) -> None:
            raise ZeroDivisionError

        made.listener = Listener(plane.reactor, made.sock, fail)
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(client.recv, 1)


@pytest.mark.parametrize("kind", ["fast", "stock"])
def test_process_without_descriptors(kind: str) -> None:
    """A process that has used up its descriptors accepts as many as it can, and the rest as it gets some back."""
    script = EXHAUSTED.replace("KIND", kind)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout.splitlines()[-1:]) == (0, ["served"]), result.stderr
