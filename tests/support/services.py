"""Small real TCP services to forward to, and clients that see how a stream ends."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

from tests.support.ports import free_ports

Handler = Callable[[socket.socket], None]

TIMEOUT = 30


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens, and that no other test is given."""
    return free_ports(1)[0]


@contextlib.contextmanager
def serving(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """Run `handler` for each connection, in threads that are joined at the end; gives the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(256)
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(TIMEOUT)
            handler(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=handle, args=(connection,))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(TIMEOUT)
        for thread in threads:
            thread.join(TIMEOUT)


def echo(connection: socket.socket) -> None:
    """Send back what comes, then end as the client did."""
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def answering(text: bytes) -> Handler:
    """A service that says this and ends."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(text)

    return answer


def sending(data: bytes) -> Handler:
    """Read to the end of the request, then answer with its hash and `data`."""

    def send(connection: socket.socket) -> None:
        digest = hashlib.sha256()
        while chunk := connection.recv(65536):
            digest.update(chunk)
        connection.sendall(digest.digest() + data)
        connection.shutdown(socket.SHUT_WR)

    return send


def resetting(first: bytes) -> Handler:
    """A service that says this, waits for a word and resets the connection."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        connection.recv(1)
        reset(connection)

    return answer


class Ends:
    """A service that remembers how each of its streams ended: `fin` or `reset`, and what it read."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.seen: list[tuple[str, bytes]] = []

    def __call__(self, connection: socket.socket) -> None:
        connection.sendall(self.first)
        self.seen.append(read_all(connection))


def read_all(sock: socket.socket) -> tuple[str, bytes]:
    """Read until the stream ends: ("fin" or "reset", what came before)."""
    got = bytearray()
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return "reset", bytes(got)
        if not data:
            return "fin", bytes(got)
        got += data


def send_all(sock: socket.socket, data: bytes) -> None:
    """Send everything, then end the stream."""
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def connect(port: int) -> socket.socket:
    """A client connection to 127.0.0.1."""
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)


def outcome(port: int) -> tuple[str, bytes]:
    """What a service says to who says nothing, and how it ends; a reset may come before `connect` has returned."""
    try:
        with connect(port) as sock:
            return read_all(sock)
    except ConnectionResetError:
        return "reset", b""


def ask(port: int) -> bytes:
    """All that a service says to who says nothing."""
    return outcome(port)[1]


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def is_reset(sock: socket.socket) -> bool:
    """Whether the other side has reset the connection; reads nothing."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def is_refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def is_free(port: int) -> bool:
    """Whether a service could listen there now; nobody who listens notices the question."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
            sock.listen()
        except OSError:
            return False
        return True


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that compress badly and are the same each time."""
    return random.Random(seed).randbytes(size)
