"""A channel between a real TCP socket and a connection that only remembers what it was to send."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import termios
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import cast

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_WINDOW_ADJUST,
)

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.connection import CarryingConnection
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.limits import PACKET, WINDOW_MAX
from knot_ssh.dataplane.listening import born_to_reset
from knot_ssh.dataplane.outbox import AsyncsshOutbox, Outbox, SealingOutbox
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.windows import Budget
from tests.support.waiting import becomes

PATIENCE = 5.0
"""Seconds after which a test gives up waiting for what should come at once."""
SMALL_BUFFER = 16 * 1024
"""Bytes that a socket's buffers are asked to hold, so that a test need not send much to fill them."""
MUCH = b"x" * 1_000_000
"""More than such buffers take without a reader, and less than a first window."""
TCP_CLOSE, CLOSE_WAIT = 7, 8
"""The states in which TCP is over, and in which it has seen the peer's FIN and not sent its own (tcp(7), TCP_INFO)."""
MINE, PEERS = 7, 23
"""The numbers of a channel on this side and on the other."""
WINDOW = 1 << 30
"""Bytes that the peer takes, unless a test is about just that."""

NAMES = {
    MSG_CHANNEL_OPEN: "open",
    MSG_CHANNEL_DATA: "data",
    MSG_CHANNEL_EOF: "eof",
    MSG_CHANNEL_CLOSE: "close",
    MSG_CHANNEL_FAILURE: "failure",
    MSG_CHANNEL_WINDOW_ADJUST: "adjust",
}


class FakeConnection:
    """Stands in for an SSH connection: `said` are the names of the packets it was to send, data in a row counting as one."""

    def __init__(self, plane: DataPlane, sock: socket.socket) -> None:
        self.plane = plane
        self.tally = Tally()
        self.round_trip = 0.0
        self.largest_window = WINDOW_MAX
        self.largest_packet = PACKET
        self.tiny_packets = 0
        self.too_many = False
        self.channels: set[Channel] = set()
        self.said: list[str] = []
        self.sizes: list[int] = []
        self.sent = bytearray()
        self.granted = 0
        self.asked = b""
        self.expected: list[Channel] = []
        self.answer: tuple[object, ...] = ()
        self.outbox: Outbox = AsyncsshOutbox(plane.reactor, self._send_data)
        if plane.fast:
            self.outbox = SealingOutbox(plane.reactor, Pool(), sock, self._send_data, self._unexpected, self._unexpected)

    @property
    def real(self) -> CarryingConnection:
        """What the product takes it for."""
        return cast("CarryingConnection", self)

    def attach(self, channel: Channel) -> int:
        if self.too_many:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many")
        self.channels.add(channel)
        return MINE

    def detach(self, channel: Channel) -> None:
        self.channels.remove(channel)

    def expect_answer(self, channel: Channel) -> None:
        self.expected.append(channel)

    def send_packet(self, kind: int, *args: bytes) -> None:
        payload = b"".join(args)
        if kind == MSG_CHANNEL_OPEN:
            self.asked = payload
        else:
            assert int.from_bytes(payload[:4], "big") == PEERS
        if kind == MSG_CHANNEL_WINDOW_ADJUST:
            self.granted += int.from_bytes(payload[4:], "big")
        else:
            self._say(NAMES[kind])

    def send_channel_open_confirmation(self, number: int, mine: int, window: int, packet: int) -> None:
        self.answer = (number, mine, window, packet)
        self._say("confirmation")

    def send_channel_open_failure(self, number: int, code: int, reason: str, _lang: str) -> None:
        self.answer = (number, code, reason)
        self._say("refusal")

    def lose(self) -> None:
        """asyncssh: the connection is gone."""
        for channel in list(self.channels):
            channel.process_connection_close(asyncssh.ConnectionLost("gone"))

    def _send_data(self, kind: int, payload: bytes) -> None:
        assert (kind, int.from_bytes(payload[:4], "big")) == (MSG_CHANNEL_DATA, PEERS)
        data = payload[8:]
        assert int.from_bytes(payload[4:8], "big") == len(data)
        self.sent += data
        self.sizes.append(len(data))
        self._say("data")

    def _say(self, name: str) -> None:
        if not (name == "data" and self.said[-1:] == ["data"]):
            self.said.append(name)

    def _unexpected(self, what: object) -> None:
        raise AssertionError(what)


class FakeOwner:
    """Remembers what it heard."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.tally = Tally()
        self.heard: list[str] = []

    @property
    def budget(self) -> Budget:
        return self.plane.budget

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        self.heard.append("unanswered")
        sock.close()

    def channel_opened(self, channel: Channel) -> None:
        self.heard.append("opened")

    def channel_refused(self, channel: Channel, reason: str) -> None:
        self.heard.append(f"refused: {reason}")

    def channel_gone(self, channel: Channel) -> None:
        assert channel.is_gone
        self.heard.append("gone")


class Bench:
    """A channel whose socket is `near`, of which `far` is the other end, and whose peer is the test."""

    def __init__(self, plane: DataPlane, connection: FakeConnection, near: socket.socket, far: socket.socket) -> None:
        self.plane = plane
        self.connection = connection
        self.owner = FakeOwner(plane)
        self.near = near
        self.far = far
        self.channel = Channel(self.owner, near)

    @property
    def said(self) -> list[str]:
        """The packets that the peer was sent, by name; grants of window are not among them."""
        return self.connection.said

    @property
    def sent(self) -> bytes:
        """The data that the peer was sent."""
        return bytes(self.connection.sent)

    def ask(self) -> None:
        """Ask the peer for the channel."""
        self.channel.ask(self.connection.real, "127.0.0.1", 80)
        self.said.clear()

    def opens(self, window: int = WINDOW, packet: int = PACKET) -> None:
        """The peer opens it, and takes so much."""
        self.channel.process_open_confirmation(PEERS, window, packet)

    def receive(self, data: bytes) -> None:
        """The peer sends data."""
        self.channel.data(memoryview(data))

    async def says(self, *names: str) -> None:
        """Wait until the peer was sent exactly this."""
        await becomes(lambda: self.said == list(names), PATIENCE, f"{names}, but {self.said}")

    async def sends(self, data: bytes) -> None:
        """The far end writes this."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def reads(self, count: int = 1 << 30) -> bytes:
        """What the far end reads, up to so much or a clean end; raises ConnectionResetError where that is a reset."""
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            while len(data) < count:
                part = await asyncio.get_running_loop().sock_recv(self.far, min(count - len(data), 1 << 20))
                if not part:
                    break
                data += part
        return bytes(data)

    async def is_reset(self) -> None:
        """The far end reads a reset, whatever came before."""
        with pytest.raises(ConnectionResetError):
            await self.reads()

    def far_ends(self) -> None:
        """FIN from the far end."""
        self.far.shutdown(socket.SHUT_WR)

    def far_resets(self) -> None:
        """RST from the far end."""
        born_to_reset(self.far).close()

    def unread(self) -> int:
        """Bytes that the kernel holds for us."""
        return unread(self.near)

    def linger(self) -> bytes:
        """Whether closing would reset."""
        return linger(self.near)

    def tcp_state(self) -> int:
        """The state of the near end, as the kernel has it."""
        return tcp_state(self.near)

    def waiting(self) -> int:
        """Bytes that the socket has not taken."""
        return sum(map(len, self.channel._pending or ()))


def unread(sock: socket.socket) -> int:
    """Bytes that the kernel holds to be read."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def tcp_state(sock: socket.socket) -> int:
    """The state of a connection, as the kernel has it."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def linger(sock: socket.socket) -> bytes:
    """The socket's SO_LINGER."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)


def connected(buffers: int = SMALL_BUFFER) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, near and far; closing the near one resets."""
    with socket.socket() as listener:
        born_to_reset(listener).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    for sock in near, far:
        sock.setblocking(False)
    return near, far


@contextmanager
def fake_connection(plane: DataPlane) -> Iterator[FakeConnection]:
    """A connection that is lost at the end."""
    with closing(socket.socket()) as sock:
        connection = FakeConnection(plane, sock)
        try:
            yield connection
        finally:
            connection.lose()


@contextmanager
def new(plane: DataPlane, connection: FakeConnection | None = None, buffers: int = SMALL_BUFFER) -> Iterator[Bench]:
    """A channel that was not asked for yet. Nothing is left of it at the end, and its window is given back."""
    before = plane.budget.left
    with ExitStack() as stack:
        near, far = (stack.enter_context(closing(sock)) for sock in connected(buffers))
        bench = Bench(plane, connection or stack.enter_context(fake_connection(plane)), near, far)
        try:
            yield bench
        finally:
            bench.channel.abort()
            if not bench.channel.is_gone:
                bench.channel.process_connection_close(None)
    assert bench.channel.is_gone
    assert bench.owner.heard.count("gone") == 1
    assert plane.budget.left >= before


@contextmanager
def asked(plane: DataPlane, connection: FakeConnection | None = None, buffers: int = SMALL_BUFFER) -> Iterator[Bench]:
    """A channel that the peer was asked for, and has not opened yet."""
    with new(plane, connection, buffers) as bench:
        bench.ask()
        yield bench


@contextmanager
def opened(plane: DataPlane, window: int = WINDOW, packet: int = PACKET) -> Iterator[Bench]:
    """A channel that is open; the peer takes so much."""
    with asked(plane) as bench:
        bench.opens(window, packet)
        yield bench


async def whole(bench: Bench) -> None:
    """Both directions come to their proper end, the one from the far end first."""
    bench.far_ends()
    await bench.says("eof")
    bench.channel.got_eof()
