"""A channel that a peer asked for is connected to a service on this machine, or refused with the reason."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import asyncssh
import pytest

from knot_ssh.dataplane import dialling
from knot_ssh.dataplane.channel import LINGER_RESET, Channel
from knot_ssh.dataplane.dialling import Dial
from knot_ssh.dataplane.limits import PACKET
from knot_ssh.dataplane.plane import DataPlane
from tests.support.reactors import on_both, watched
from tests.support.services import free_port
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import MINE, PATIENCE, PEERS, FakeConnection, FakeOwner, fake_connection, linger

LOCALHOST = "127.0.0.1"
ELSEWHERE = "127.0.0.2"
"""Another address of this machine."""


class Bench:
    """A connection whose peer asks for channels."""

    def __init__(self, plane: DataPlane, connection: FakeConnection) -> None:
        self.plane = plane
        self.connection = connection
        self.owner = FakeOwner(plane)

    @property
    def said(self) -> list[str]:
        return self.connection.said

    @property
    def refusal(self) -> str:
        """The reason that the peer was given."""
        number, code, reason = self.connection.answer
        assert (number, code) == (PEERS, asyncssh.OPEN_CONNECT_FAILED)
        return str(reason)

    def dial(self, port: int, *addresses: str) -> Channel:
        """The peer asks for a channel to the first of these that accepts."""
        channel = Channel(self.owner)
        channel.process_open(PEERS, 1 << 20, PACKET, Dial(self.connection.real, addresses or [LOCALHOST], port))
        return channel


@contextmanager
def bench(plane: DataPlane) -> Iterator[Bench]:
    """A peer that asks. No timer is left at the end."""
    with fake_connection(plane) as connection:
        made = Bench(plane, connection)
        yield made
    assert not timers()


@contextmanager
def listening(address: str = LOCALHOST, port: int = 0, backlog: int = 8) -> Iterator[socket.socket]:
    """A service that nobody serves: the kernel accepts as far as the backlog goes."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(backlog)
        sock.setblocking(False)
        yield sock


@contextmanager
def silent(address: str = LOCALHOST, port: int = 0) -> Iterator[tuple[socket.socket, int]]:
    """A service that does not answer: its backlog is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(listening(address, port, backlog=0))
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener, port_of(listener)


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def timers() -> list[asyncio.TimerHandle]:
    """The timers of dials that are set in this loop."""
    scheduled: list[asyncio.TimerHandle] = getattr(asyncio.get_running_loop(), "_scheduled")  # noqa: B009  # asyncio's own
    return [timer for timer in scheduled if "Dial" in repr(timer) and not timer.cancelled()]


async def accepted(listener: socket.socket) -> socket.socket:
    """The next connection."""
    async with asyncio.timeout(PATIENCE):
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
    return sock


# A service that answers


@on_both
async def test_service_accepts(plane: DataPlane) -> None:
    """The channel is confirmed once the service accepts, and carries bytes both ways."""
    with bench(plane) as made, listening() as listener:
        channel = made.dial(port_of(listener))
        await becomes(lambda: made.said == ["confirmation"])
        assert made.connection.answer[:2] == (PEERS, MINE)
        assert made.owner.heard == ["opened"]
        with await accepted(listener) as service:
            channel.data(memoryview(b"question"))
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(service, 100) == b"question"
            service.send(b"answer")
            await becomes(lambda: made.connection.sent == b"answer")


@on_both
async def test_nobody_waits_on_this_machine(plane: DataPlane) -> None:
    """Over loopback the answer to the peer is there before anybody has to wait, be it yes or no."""
    with bench(plane) as made, listening() as listener:
        made.dial(port_of(listener))
        made.dial(free_port())
        assert made.said == ["confirmation", "refusal"]


@on_both
async def test_service_that_speaks_first(plane: DataPlane) -> None:
    """What the service says at once is passed on, with its end, behind the confirmation."""
    with bench(plane) as made, listening() as listener:
        made.dial(port_of(listener))
        with await accepted(listener) as service:
            service.send(b"welcome")
        await becomes(lambda: made.said == ["confirmation", "data", "eof"])
        assert made.connection.sent == b"welcome"


@on_both
async def test_sockets_are_born_to_reset(plane: DataPlane) -> None:
    """The socket to the service would be reset if the process died, and sends what it has without delay."""
    with bench(plane) as made, listening() as listener:
        channel = made.dial(port_of(listener))
        assert channel.sock
        assert linger(channel.sock) == LINGER_RESET
        assert channel.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert not channel.sock.getblocking()


# A service that does not


@on_both
async def test_service_refuses(plane: DataPlane) -> None:
    """Where nobody listens the channel is refused, with port and reason, and is gone."""
    port = free_port()
    with bench(plane) as made:
        channel = made.dial(port)
        await becomes(lambda: made.said == ["refusal"])
        assert made.refusal == f"port {port}: connection refused"
        assert made.owner.heard == [f"refused: {made.refusal}", "gone"]
        assert channel.sock is None


@on_both
async def test_second_address_accepts(plane: DataPlane) -> None:
    """Where the first address refuses the next one is tried."""
    with bench(plane) as made, listening() as listener:
        channel = made.dial(port_of(listener), "::1", LOCALHOST)
        await becomes(lambda: made.said == ["confirmation"])
        assert channel.sock
        assert channel.sock.getpeername() == listener.getsockname()


@on_both
async def test_first_address_is_preferred(plane: DataPlane) -> None:
    """Where both addresses accept the first is taken."""
    with bench(plane) as made, listening() as listener, listening(ELSEWHERE, port_of(listener)) as other:
        channel = made.dial(port_of(listener), ELSEWHERE, LOCALHOST)
        await becomes(lambda: made.said == ["confirmation"])
        assert channel.sock
        assert channel.sock.getpeername() == other.getsockname()


@on_both
async def test_no_address_accepts(plane: DataPlane) -> None:
    """Where no address accepts the reason of the first one is given."""
    port = free_port()
    with bench(plane) as made, pytest.MonkeyPatch.context() as patch:
        made.dial(port, "::1", LOCALHOST)
        await becomes(lambda: made.said == ["refusal"])
        assert made.refusal == f"port {port}: connection refused"
        patch.setattr(dialling, "_new_socket", no_sockets)
        made.dial(port, "::1", LOCALHOST)
        assert made.refusal == f"port {port}: address family not supported by protocol"


@on_both
async def test_system_without_ipv6(plane: DataPlane) -> None:
    """Where there are no sockets of the first address's kind the next one is tried."""
    make = dialling._new_socket
    with bench(plane) as made, listening() as listener, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialling, "_new_socket", lambda address: no_sockets(address) if ":" in address else make(address))
        made.dial(port_of(listener), "::1", LOCALHOST)
        await becomes(lambda: made.said == ["confirmation"])


@on_both
async def test_no_descriptors_left(plane: DataPlane) -> None:
    """Where the process has no descriptor left the channel is refused."""
    with bench(plane) as made, pytest.MonkeyPatch.context() as patch:

        def exhausted(_address: str) -> socket.socket:
            raise OSError(errno.EMFILE, "whatever")

        patch.setattr(dialling, "_new_socket", exhausted)
        made.dial(80)
        assert made.refusal == "port 80: too many open files"


# A service that takes its time


@on_both
async def test_answer_that_takes_a_while(plane: DataPlane) -> None:
    """A service that accepts or refuses later is waited for, and others are served meanwhile.

    (TCP asks again after a second.)
    """
    with bench(plane) as other, ExitStack() as stack:
        late, never = (Bench(plane, stack.enter_context(fake_connection(plane))) for _ in range(2))
        (accepts, port), (refuses, other_port) = (stack.enter_context(silent()) for _ in range(2))
        late.dial(port)
        never.dial(other_port)
        listener = stack.enter_context(listening())
        other.dial(port_of(listener))
        await becomes(lambda: other.said == ["confirmation"])
        assert (late.said, never.said) == ([], [])
        refuses.close()
        (await accepted(accepts)).close()
        await becomes(lambda: late.said == ["confirmation"] and never.said == ["refusal"])
        assert never.refusal == f"port {other_port}: connection refused"


@on_both
async def test_no_answer(plane: DataPlane) -> None:
    """A service that does not answer in time is given up, and the next address is tried."""
    with bench(plane) as made, listening() as listener, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialling, "DIAL_TIMEOUT", 0.02)
        with silent(ELSEWHERE, port_of(listener)) as (_, port):
            made.dial(port, ELSEWHERE)
            await becomes(lambda: made.said == ["refusal"])
            assert made.refusal == f"port {port}: no answer"
            made.dial(port, ELSEWHERE, LOCALHOST)
            await becomes(lambda: made.said == ["refusal", "confirmation"])
            (await accepted(listener)).close()


@on_both
async def test_no_answer_anywhere(plane: DataPlane) -> None:
    """Where no address answers the time is taken for each, and then the channel is refused."""
    with bench(plane) as made, silent() as (_, port), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialling, "DIAL_TIMEOUT", 0.02)
        made.dial(port, LOCALHOST, LOCALHOST)
        assert len(timers()) == 1
        await becomes(lambda: made.said == ["refusal"])


@pytest.mark.parametrize("end", ["loss", "abort"])
@on_both
async def test_nobody_waits_any_more(plane: DataPlane, end: str) -> None:
    """When connection or channel end while a service is dialled, nothing is left of it; its number may be used at once."""
    with bench(plane) as made, listening() as listener, silent() as (_, port):
        channel = made.dial(port)
        assert channel.sock
        number = channel.sock.fileno()
        assert watched(plane) == {number}
        if end == "loss":
            made.connection.lose()
        else:
            channel.abort()
        assert channel.is_gone
        assert (watched(plane), timers()) == (set(), [])
        reason = "the link was lost" if end == "loss" else "given up"
        assert made.owner.heard == [f"refused: {reason}", "gone"]
        assert made.said == ([] if end == "loss" else ["refusal"])
        await number_is_good(made, listener, number)


@on_both
async def test_fault_while_dialling(plane: DataPlane) -> None:
    """A fault of ours while a service is dialled refuses the channel."""
    with bench(plane) as made, silent() as (_, port):
        channel = made.dial(port)
        opening = channel._opening
        assert isinstance(opening, Dial)
        opening.on_crash()
        assert (made.said, channel.is_gone) == (["refusal"], True)


@on_both
async def test_system_that_watches_too_much_already(plane: DataPlane) -> None:
    """Where the system will not watch one more socket, what would have to be waited for is refused."""
    with bench(plane) as made, silent() as (_, port), pytest.MonkeyPatch.context() as patch:

        def refuse(_fd: int, _handler: object) -> None:
            raise OSError(errno.ENOSPC, "whatever")

        patch.setattr(plane.reactor, "watch", refuse)
        channel = made.dial(port)
        assert made.refusal == f"port {port}: no space left on device"
        assert (channel.is_gone, timers()) == (True, [])


@on_both
async def test_hint_that_means_nothing(plane: DataPlane) -> None:
    """To be told of something while there is no answer yet changes nothing."""
    with bench(plane) as made, silent() as (_, port):
        opening = made.dial(port)._opening
        assert isinstance(opening, Dial)
        for _ in range(3):
            opening.on_event(4)
        assert (made.said, len(timers()), len(watched(plane))) == ([], 1, 1)


def no_sockets(_address: str) -> socket.socket:
    raise OSError(errno.EAFNOSUPPORT, "whatever")


async def number_is_good(made: Bench, listener: socket.socket, number: int) -> None:
    """A channel whose socket has this number hears of what its service says."""
    made.said.clear()
    channel = made.dial(port_of(listener))
    assert channel.sock
    assert channel.sock.fileno() == number
    with await accepted(listener) as service:
        service.send(b"welcome")
        await becomes(lambda: made.connection.sent == b"welcome")
