"""Two joined ends within one process: what one is given, the other reads. A pair of sockets without the kernel.

Where an SSH connection runs inside a channel of another, or the hub passes one channel's bytes to another, a kernel's pair
of sockets would cost two system calls and a turn of the reactor for each crossing. An end looks like a non-blocking
socket, and its descriptor is a number below zero: the reactor tells its handler of events as it does for real ones, never
from within the other side's call.

What is on its way is in one pooled buffer for each direction, and only while there is something.
"""

from __future__ import annotations

import itertools
import socket
from typing import Any, ClassVar

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.reactor import HANGUP, PEER_ENDED, READ, WRITE, EpollReactor

_numbers = itertools.count(-2, -1)  # -1 means none


class Joint:
    """One of the two ends; made by `joined`."""

    family: ClassVar = socket.AF_UNIX
    _other: Joint

    def __init__(self, reactor: EpollReactor, pool: Pool) -> None:
        self._reactor = reactor
        self._pool = pool
        self._number = next(_numbers)
        self._buffer: memoryview | None = None
        self._start = 0
        self._end = 0
        self._starved = False
        """Has been given less room than it wanted."""
        self._said_all = False
        self._closed = False

    # As of a socket

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Give the other end as much of this as it has room for."""
        if self._said_all or self._other._closed:
            raise BrokenPipeError
        size = self._other._take(data)
        self._starved = size < len(data)
        if not size:
            raise BlockingIOError
        return size

    def recv_into(self, buffer: memoryview) -> int:
        """Read what there is; 0 at the end of the stream."""
        size = self._peek(buffer)
        if size:
            self._start += size
            if self._start == self._end:
                self._drop_buffer()
            if self._other._starved:
                self._other._starved = False
                self._reactor.signal(self._other._number, WRITE)
        return size

    def recv(self, size: int, flags: int = 0) -> bytes:
        """The same in a new object; MSG_PEEK leaves it there."""
        data = bytearray(size)
        with memoryview(data) as view:
            got = self._peek(view) if flags & socket.MSG_PEEK else self.recv_into(view)
        return bytes(data[:got])

    def shutdown(self, _how: int) -> None:
        """Say nothing more. (Nobody stops reading alone.)"""
        self._said_all = True
        self._reactor.signal(self._other._number, READ | PEER_ENDED)

    def close(self) -> None:
        """Be gone: the other end reads what is on its way, and then the end."""
        if not self._closed:
            self._closed = self._said_all = True
            self._drop_buffer()
            self._reactor.signal(self._other._number, READ | PEER_ENDED | HANGUP | (WRITE if self._other._starved else 0))

    def fileno(self) -> int:
        return self._number

    def getpeername(self) -> Any:
        return None

    def getsockname(self) -> Any:
        return None

    def setblocking(self, _flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *_option: Any) -> None:
        """There is none that matters here."""

    def getsockopt(self, *_option: Any) -> int:
        return 0

    # Between the two

    def _take(self, data: bytes | bytearray | memoryview) -> int:
        """The other end says this; gives how much there was room for."""
        buffer = self._buffer
        if buffer is None:
            buffer = self._buffer = self._pool.take_some()
        elif self._end == len(buffer) and self._start:
            waiting = self._end - self._start
            buffer[:waiting] = buffer[self._start : self._end]
            self._start, self._end = 0, waiting
        size = min(len(data), len(buffer) - self._end)
        buffer[self._end : self._end + size] = data[:size]
        self._end += size
        self._reactor.signal(self._number, READ)
        return size

    def _peek(self, buffer: memoryview) -> int:
        """Copy what there is; 0 at the end."""
        if self._buffer is None:
            if self._other._said_all:
                return 0
            raise BlockingIOError
        size = min(len(buffer), self._end - self._start)
        buffer[:size] = self._buffer[self._start : self._start + size]
        return size

    def _drop_buffer(self) -> None:
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None
        self._start = self._end = 0


Stream = socket.socket | Joint
"""What a channel, or an SSH connection, reads and writes."""


def joined(reactor: EpollReactor, pool: Pool) -> tuple[Joint, Joint]:
    """Two ends."""
    one, other = Joint(reactor, pool), Joint(reactor, pool)
    one._other, other._other = other, one
    return one, other
