"""The TCP socket below an SSH connection, in the reactor: what asyncssh takes for an asyncio transport.

Reading goes into one pooled buffer, which the connection empties packet by packet; a packet that is not whole yet stays
at its front. A connection with nothing to say holds no buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any, Protocol

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.limits import FRAGMENT, KIB
from knot_ssh.dataplane.outbox import SealingOutbox
from knot_ssh.dataplane.reactor import ERROR, HANGUP, PEER_ENDED, READ, WRITE, Reactor

TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
UNSENT = 128 * KIB
"""Bytes that the kernel holds back for lack of window; what is queued there delays everything behind it."""


TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)
UNACKNOWLEDGED = 16_000
"""Milliseconds that the peer's kernel may leave what we sent unacknowledged; as long as its SSH side may be silent."""
PAIR_BUFFER = 512 * KIB
"""Bytes that one of two joined sockets may hold for the other, and the kernel twice as much. Less is slower, more no faster."""


def tune(sock: socket.socket) -> None:
    """Set what a socket below an SSH connection needs; what the system does not have is left out."""
    if sock.family == socket.AF_UNIX:
        return
    for option, value in ((TCP_NOTSENT_LOWAT, UNSENT), (TCP_USER_TIMEOUT, UNACKNOWLEDGED), (socket.TCP_NODELAY, 1)):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def joined_pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets of which each reads what the other is given: an SSH connection inside a channel of another."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for sock in pair:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAIR_BUFFER)
    return pair


class Receiver(Protocol):
    """The protocol above: an SSH connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...

    def connection_lost(self, exc: Exception | None) -> None: ...

    def received(self, buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
        """Use what lies between start and end.

        Gives where the first byte is that is not used yet, and whether more may be read now; where not, the connection
        calls `soon` when it wants to be given the rest.
        """

    def sealed(self, count: int) -> None:
        """So many bytes were encrypted."""

    def send_payload(self, kind: int, payload: bytes) -> None:
        """Send one packet asyncssh's way."""


class Transport(asyncio.Transport):
    """One socket and the connection above it."""

    def __init__(self, reactor: Reactor, pool: Pool, sock: socket.socket, connection: Receiver) -> None:
        super().__init__()
        self._reactor = reactor
        self._pool = pool
        self._sock = sock
        self._fd = sock.fileno()
        self._connection = connection
        self._readable = False
        self._ended = False
        self._paused = False
        self._held = False
        self._closed = False
        self._again = False
        self._buffer: memoryview | None = None
        self._fragment = b""
        self._start = 0
        self._end = 0
        self.outbox = SealingOutbox(reactor, pool, sock, connection.send_payload, connection.sealed, self._lost)

    def start(self) -> None:
        """Begin to read; the connection hears of it first."""
        self._sock.setblocking(False)
        tune(self._sock)
        self._connection.connection_made(self)
        if not self._closed:
            self._reactor.watch(self._fd, self)

    # What the reactor tells

    def on_event(self, events: int) -> None:
        if events & WRITE:
            self.outbox.on_writable()
        if events & (READ | PEER_ENDED | HANGUP | ERROR):
            self._readable = True
            if events & (PEER_ENDED | HANGUP | ERROR):
                self._ended = True
            self._go_on()

    def on_turn(self) -> None:
        self._again = self._held = False
        self._go_on()

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        self.abort()

    # What asyncssh asks of a transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.outbox.write(bytes(data))

    def get_write_buffer_size(self) -> int:
        return self.outbox.waiting

    def is_closing(self) -> bool:
        return self._closed

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self.soon()

    def is_reading(self) -> bool:
        return not self._paused

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._closed:
            return default
        with contextlib.suppress(OSError):
            match name:
                case "socket":
                    return self._sock
                case "sockname":
                    return self._sock.getsockname()
                case "peername":
                    return self._sock.getpeername()
        return default

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        """Send what the kernel takes at once, and end."""
        if not self._closed:
            self.outbox.flush()
        self._lost(None)

    # The work

    def soon(self) -> None:
        """Go on in the next turn."""
        if not self._again and not self._closed:
            self._again = True
            self._reactor.again(self)

    def push_back(self, data: bytes) -> None:
        """Have this, which was received before, used before everything else, in the next turn."""
        if data and not self._closed:
            if self._buffer is None:
                self._buffer = self._pool.take()
            waiting = self._end - self._start
            self._buffer[len(data) : len(data) + waiting] = self._buffer[self._start : self._end]
            self._buffer[: len(data)] = data
            self._start, self._end = 0, len(data) + waiting
        self.soon()

    def _go_on(self) -> None:
        """Use what is there, then read once; more in another turn."""
        if self._paused or self._held or self._closed:
            return
        if (self._start == self._end or self._use()) and self._readable and not (self._paused or self._closed):
            self._read()

    def _read(self) -> None:
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = self._pool.take()
            if self._fragment:
                self._end = len(self._fragment)
                buffer[: self._end] = self._fragment
                self._fragment = b""
        room = self._pool.size - self._end
        try:
            size = self._sock.recv_into(buffer[self._end :])
        except BlockingIOError:
            self._readable = False
            self._reactor.want_read(self._fd)
            self._tidy()
            self._spare_buffer()
            return
        except OSError as error:
            self._lost(error)
            return
        if size == 0:
            self._lost(None)
            return
        self._end += size
        if size < room and not self._ended:
            self._readable = False
            self._reactor.want_read(self._fd)
        if self._use() and self._readable:
            self.soon()

    def _use(self) -> bool:
        """Have the connection use what was read; gives whether it wants more."""
        assert self._buffer is not None
        self._start, more = self._connection.received(self._buffer, self._start, self._end)
        self._held = not more
        self._tidy()
        if more:
            self._spare_buffer()
        return more

    def _spare_buffer(self) -> None:
        """Hold no buffer for the beginning of a packet, if that is short or buffers are: its rest may take for ever."""
        buffer = self._buffer
        if buffer is not None and (self._end <= FRAGMENT or self._pool.is_short):
            self._fragment = bytes(buffer[: self._end])
            self._pool.give_back(buffer)
            self._buffer = None
            self._start = self._end = 0

    def _tidy(self) -> None:
        """Give an empty buffer back; make room behind the beginning of a packet."""
        if self._buffer is None:
            return
        if self._start == self._end:
            self._pool.give_back(self._buffer)
            self._buffer = None
            self._start = self._end = 0
        elif self._start:
            size = self._end - self._start
            self._buffer[:size] = self._buffer[self._start : self._end]
            self._start, self._end = 0, size

    def _lost(self, error: OSError | None) -> None:
        """The connection is over; it hears of it outside of whatever it is doing."""
        if self._closed:
            return
        self._closed = True
        if self._buffer is not None:  # somebody up the stack may be in the middle of it: not for the pool
            self._buffer = None
            self._pool.forget()
        self._reactor.forget(self._fd, self)
        self.outbox.close()
        self._sock.close()
        asyncio.get_running_loop().call_soon(self._connection.connection_lost, error)
