"""Connecting a channel that a peer asked for to a service on this machine.

Over loopback a connection stands, or is refused, before the second system call returns: then nobody has to wait, and
the answer leaves in the same turn. Everything else waits in the reactor, up to a limit.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncssh

from knot_ssh.dataplane.channel import LINGER_RESET, Channel
from knot_ssh.dataplane.reactor import Reactor

if TYPE_CHECKING:
    from knot_ssh.dataplane.connection import CarryingConnection

DIAL_TIMEOUT = 10
"""Seconds for a service to accept."""
UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


class Dial:
    """Tries literal addresses in turn; the channel opens with the first that accepts."""

    def __init__(self, connection: CarryingConnection, addresses: Sequence[str], port: int) -> None:
        self.connection = connection
        self._reactor: Reactor = connection.plane.reactor
        self._addresses = list(addresses)
        self._address = ""
        self._port = port
        self._channel: Channel
        self._fd = -1
        self._timer: asyncio.TimerHandle | None = None
        self._reason = ""

    def begin(self, channel: Channel) -> None:
        """Start, for this channel."""
        self._channel = channel
        self._try_next()

    def on_event(self, events: int) -> None:
        """The connection stands, or was refused; or neither yet."""
        assert self._channel.sock
        self._end_with(self._channel.sock.connect_ex((self._address, self._port)))

    def on_turn(self) -> None:
        pass

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        self._channel.abort()

    def _try_next(self) -> None:
        """Dial the next address, or say that none accepts."""
        if not self._addresses:
            self._channel.refuse(asyncssh.OPEN_CONNECT_FAILED, f"port {self._port}: {self._reason}")
            return
        self._address = self._addresses.pop(0)
        try:
            self._channel.sock = sock = _new_socket(self._address)
        except OSError as error:
            self._end_with(error.errno or errno.EIO)
            return
        where = (self._address, self._port)
        code = sock.connect_ex(where)
        self._end_with(sock.connect_ex(where) if code in UNDER_WAY else code)

    def _end_with(self, code: int) -> None:
        """What connect(2) says, be it for now."""
        if code in UNDER_WAY:
            self._wait()
            return
        self.give_up()
        sock = self._channel.sock
        if code in (0, errno.EISCONN) and sock:
            self._channel.confirm(sock)
        else:
            self._channel.drop_socket()
            self._reason = self._reason or (os.strerror(code).lower() if code != errno.ETIMEDOUT else "no answer")
            self._try_next()

    def _wait(self) -> None:
        assert self._channel.sock
        try:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(DIAL_TIMEOUT, self._too_late)
                self._fd = self._channel.sock.fileno()
                self._reactor.watch(self._fd, self)
            self._reactor.want_write(self._fd)
        except OSError as error:  # the system watches too many descriptors already
            self._end_with(error.errno or errno.EIO)

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._reactor.forget(self._fd, self)

    def _too_late(self) -> None:
        self._end_with(errno.ETIMEDOUT)


def _new_socket(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
