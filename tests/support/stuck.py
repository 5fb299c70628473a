"""Connections of which one end writes all it can and the other reads nothing."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.services import TIMEOUT, reset

PIECE = memoryview(bytes(1024 * 1024))
STILL = 0.5
"""Seconds without a byte taken after which a writer counts as stuck."""
KERNEL_BUFFER = 64 * 1024
"""Bytes; the kernel makes it twice as much."""
BACKLOG = 1024
ACCEPTED = b"."


@dataclass(frozen=True, slots=True)
class Stuck:
    """The two ends of connections through a forward."""

    clients: list[socket.socket]
    services: list[socket.socket]

    def push_down(self, most: int) -> int:
        """Have the services write, for clients that do not read."""
        return push(self.services, most)

    def push_up(self, most: int) -> int:
        """Have the clients write, for services that do not read."""
        return push(self.clients, most)


@contextlib.contextmanager
def service() -> Iterator[socket.socket]:
    """A service that is served by the test itself."""
    with small_socket() as listener:  # what it accepts inherits the size of its buffers
        listener.bind(("127.0.0.1", 0))
        listener.listen(BACKLOG)
        listener.settimeout(TIMEOUT)
        yield listener


def small_socket() -> socket.socket:
    """A socket for which the kernel keeps little: what is stuck shall be with the agents, and not use up all the memory that
    the machine has for TCP."""
    sock = socket.socket()
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER)
    return sock


def small_connection(address: tuple[str, int]) -> socket.socket:
    sock = small_socket()
    try:
        sock.settimeout(TIMEOUT)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


@contextlib.contextmanager
def connections(listener: socket.socket, local: int, count: int) -> Iterator[Stuck]:
    """So many connections through the forward on port `local` to this service; all are reset at the end."""
    stuck = Stuck([], [])
    try:
        for _ in range(count):
            client = small_connection(("127.0.0.1", local))
            stuck.clients.append(client)
            client.sendall(ACCEPTED)
            accepted, _ = listener.accept()
            stuck.services.append(accepted)
            accepted.settimeout(TIMEOUT)
            assert accepted.recv(1) == ACCEPTED
        yield stuck
    finally:
        for sock in (*stuck.clients, *stuck.services):
            reset(sock)


def push(socks: list[socket.socket], most: int) -> int:
    """Write up to `most` bytes to each socket until none has taken any for a while; gives the sum of what was taken."""
    left = dict.fromkeys(socks, most)
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_WRITE, sock)
        last = time.monotonic()
        while left and time.monotonic() - last < STILL:
            for key, _ in selector.select(STILL):
                sock = key.data
                with contextlib.suppress(BlockingIOError):
                    left[sock] -= sock.send(PIECE[: left[sock]])
                    last = time.monotonic()
                if not left[sock]:
                    selector.unregister(sock)
                    del left[sock]
    return most * len(socks) - sum(left.values())
