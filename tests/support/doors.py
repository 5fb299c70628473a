"""Where the forwards of a test lead to, and both ends of each connection through one."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from tests.support.services import TIMEOUT, connect

Line = tuple[socket.socket, socket.socket]
"""A connection through a forward: the client's socket and the service's."""
TAG = struct.Struct(">I")
"""What a client may say first, to tell which of many services is its own."""
BACKLOG = 256


@dataclass(frozen=True, slots=True)
class Ports:
    """A port for each door: where it is, or the local port of a forward to it."""

    ipv4: int
    """A service on 127.0.0.1 alone."""
    ipv6: int
    """A service on ::1 alone."""
    brief: int
    """A service on 127.0.0.1 for clients that may leave before anybody has seen them."""
    nobody: int
    """No service: connections are refused."""

    def __iter__(self) -> Iterator[int]:
        return iter(astuple(self))


class Doors:
    """The services themselves. What a test does with a connection decides what the service was."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []
        self._listeners = {"ipv4": self._bound(0), "ipv6": self._bound(1), "brief": self._bound(0)}
        for listener in self._listeners.values():
            listener.listen(BACKLOG)
        self.ports = Ports(
            **{name: sock.getsockname()[1] for name, sock in (*self._listeners.items(), ("nobody", self._bound(0)))}
        )
        self._tags = map(TAG.pack, itertools.count())

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where they are, in the order of Ports, for forwards that name an address."""
        return list(zip(("127.0.0.1", "::1", "127.0.0.1", "127.0.0.1"), self.ports, strict=True))

    def close(self) -> None:
        for sock in self._held:
            sock.close()

    @contextlib.contextmanager
    def line(self, local: Ports, door: str = "ipv4") -> Iterator[Line]:
        """A connection through the forward to this door."""
        self.forget(door)
        with connect(getattr(local, door)) as client, self._accepted(door) as service:
            yield client, service

    @contextlib.contextmanager
    def lines(self, local: Ports, count: int, door: str = "ipv4", strays: list[str] | None = None) -> Iterator[list[Line]]:
        """So many connections, all open at once; a few bytes have gone through each already.

        Connections whose clients have left are let go, and how they ended is added to `strays`.
        """
        with contextlib.ExitStack() as stack:
            clients = {next(self._tags): stack.enter_context(connect(getattr(local, door))) for _ in range(count)}
            for tag, client in clients.items():
                client.sendall(tag)
            services: dict[bytes, socket.socket] = {}
            while services.keys() != clients.keys():
                service = stack.enter_context(self._accepted(door))
                end, tag = _read(service, TAG.size)
                if tag in clients:
                    services[tag] = service
                elif strays is not None:
                    strays.append(end)
            yield [(client, services[tag]) for tag, client in clients.items()]

    def attempt(self, local: Ports, door: str = "ipv4") -> Line | None:
        """A connection; None when the client was refused or reset. A few bytes have gone through already."""
        try:
            client = connect(getattr(local, door))
        except (ConnectionRefusedError, ConnectionResetError):
            return None
        tag = next(self._tags)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(tag)
        listener = self._listeners[door]
        while listener in select.select([client, listener], [], [], TIMEOUT)[0]:
            service = self._accepted(door)
            if _read(service, TAG.size) == ("", tag):
                return client, service
            service.close()
        client.close()
        return None

    def forget(self, door: str) -> None:
        """Let go connections that nobody has asked for: a test that failed may have left some."""
        self._listeners[door].settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._listeners[door].accept()[0].close()

    def _accepted(self, door: str) -> socket.socket:
        self._listeners[door].settimeout(TIMEOUT)
        sock, _ = self._listeners[door].accept()
        sock.settimeout(TIMEOUT)
        return sock

    def _bound(self, which: int) -> socket.socket:
        """A socket on 127.0.0.1 (0) or ::1 (1); the same port of the other is bound too, so that nobody else has it."""
        while True:
            both = socket.socket(socket.AF_INET), socket.socket(socket.AF_INET6)
            both[0].bind(("127.0.0.1", 0))
            try:
                both[1].bind(("::1", both[0].getsockname()[1]))
            except OSError:
                for sock in both:
                    sock.close()
                continue
            self._held += both
            return both[which]


def _read(sock: socket.socket, size: int) -> tuple[str, bytes]:
    """So many bytes and ""; or what came before the end, and how it ended."""
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except ConnectionResetError:
            return "reset", data
        if not piece:
            return "fin", data
        data += piece
    return "", data
