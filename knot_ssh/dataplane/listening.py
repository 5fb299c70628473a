"""Sockets that accept, in the reactor: local ports of forwards, and SSH endpoints."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog

from knot_ssh.dataplane.channel import LINGER_RESET
from knot_ssh.dataplane.reactor import Reactor

log = structlog.get_logger(__name__)

ACCEPTS_A_TURN = 64
"""Connections that are taken before others get their turn."""
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY = 0.1
"""Seconds until the next try where the system has no descriptor left."""


class Listener:
    """Accepts until closed. `accepted` gets each new socket, which does not block."""

    def __init__(self, reactor: Reactor, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._reactor = reactor
        self._sock = sock
        self._fd = sock.fileno()
        self._accepted = accepted
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False
        self._short = False
        sock.setblocking(False)
        reactor.watch(self._fd, self)

    def on_event(self, events: int) -> None:
        if self._retry is None:
            self.on_turn()

    def on_turn(self) -> None:
        """Take what waits, as far as our turn goes."""
        for _ in range(ACCEPTS_A_TURN):
            if self._closed:
                return
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                self._reactor.want_read(self._fd)
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._try_later(error)
                return
            self._short = False
            sock.setblocking(False)
            try:
                self._accepted(sock)
            except BaseException:
                sock.close()
                raise
        self._reactor.again(self)

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        """What was accepted is lost; go on accepting, but not in a hot loop."""
        self._later()

    def close(self) -> None:
        """Accept no more, and free the port."""
        if not self._closed:
            self._closed = True
            self._reactor.forget(self._fd, self)
            self._sock.close()
            if self._retry:
                self._retry.cancel()

    def _try_later(self, error: OSError) -> None:
        if error.errno not in OUT_OF_DESCRIPTORS:
            raise error
        if not self._short:
            self._short = True
            log.warning("cannot accept", reason=error.strerror)
        self._later()

    def _later(self) -> None:
        if self._retry is None and not self._closed:
            self._retry = asyncio.get_running_loop().call_later(RETRY, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._reactor.again(self)


def born_to_reset(sock: socket.socket) -> socket.socket:
    """Have whatever this listening socket accepts carry SO_LINGER {1, 0} and TCP_NODELAY from birth: both are inherited."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
