"""The clients. `python -m benchmarks.load.client TOOL '{"port": …}'` prints what it measured, as JSON.

All use blocking sockets in a tight loop and the monotonic clock with nanoseconds.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import sys
import time
from collections.abc import Callable

from benchmarks.load.requests import (
    DISCARD,
    ECHO,
    ENDLESS,
    HEADER,
    MESSAGE,
    NANO,
    SEND,
    TAKE,
    TALK,
    chunks,
    discard,
    payload,
    send_bulk,
)

Measured = dict[str, float]
"""Figures by name; the unit is part of the name."""

WARM_UP = 20
"""Exchanges before the first that counts: caches, and whatever a forwarder makes on first use."""
LEAST = 20
"""Exchanges that count even when the time is over: a peer that is slow still gets a median."""
MOST_CONNECTIONS = 4000
"""Connections of one measurement. Each leaves a port in TIME_WAIT, which the kernel gives out again after a second; with
ten thousand and more it searches long for a free one, and the search would be what is measured."""
SMALL, LARGE = 1024, 8192
"""Bytes of the messages of `messages`."""


def download(port: int, size: int) -> Measured:
    """One stream of `size` bytes towards the client, from the request to the last byte."""
    with _connect(port) as sock:
        start = time.perf_counter_ns()
        sock.sendall(HEADER.pack(SEND, size))
        taken = discard(sock, size)
        seconds = (time.perf_counter_ns() - start) / NANO
    return _rate(taken, size, seconds)


def upload(port: int, size: int) -> Measured:
    """One stream of `size` bytes towards the service, until it says that it has them all."""
    file = payload()
    with _connect(port) as sock:
        start = time.perf_counter_ns()
        sock.sendall(HEADER.pack(TAKE, size))
        send_bulk(sock, size, file)
        done = sock.recv(1)
        seconds = (time.perf_counter_ns() - start) / NANO
    return _rate(size if done else 0, size, seconds)


def streams(port: int, count: int, seconds: float, warm: float = 0.25) -> Measured:
    """`count` downloads at once: what arrives in `seconds`, after `warm` seconds that do not count."""
    poll = select.epoll()
    socks = {sock.fileno(): sock for sock in (_connect(port) for _ in range(count))}
    for sock in socks.values():
        poll.register(sock, select.EPOLLIN)
        sock.sendall(HEADER.pack(SEND, ENDLESS))
    scratch = bytearray(DISCARD)

    def take_until(end: int) -> int:
        taken = 0
        while time.perf_counter_ns() < end:
            for descriptor, _ in poll.poll():
                piece = socks[descriptor].recv_into(scratch, DISCARD, socket.MSG_TRUNC)
                if not piece:
                    raise ConnectionError("a stream ended early")
                taken += piece
        return taken

    take_until(time.perf_counter_ns() + int(warm * NANO))
    start = time.perf_counter_ns()
    taken = take_until(start + int(seconds * NANO))
    return {"mb_s": taken / 1e6 / ((time.perf_counter_ns() - start) / NANO)}


def stream(port: int, seconds: float, warm: float) -> Measured:
    """One download: what arrives in `seconds`, after `warm` seconds that do not count."""
    with _connect(port) as sock:
        sock.sendall(HEADER.pack(SEND, ENDLESS))
        begin = time.perf_counter_ns() + int(warm * NANO)
        taken, start, now = 0, 0, 0
        for piece in chunks(sock, ENDLESS):
            now = time.perf_counter_ns()
            if start:
                taken += piece
            elif now >= begin:
                start = now
            if start and now >= start + int(seconds * NANO):
                return {"mb_s": taken / 1e6 / ((now - start) / NANO)}
    raise ConnectionError("the stream ended early")


def round_trip(port: int, seconds: float) -> Measured:
    """One byte there and back, the next as soon as it has returned."""
    with _talk(port) as sock:
        return _times(seconds, lambda: _exchange(sock, b"x"))


def paced(port: int, seconds: float, every: float = 0.001) -> Measured:
    """One byte there and back each `every` seconds: what a forwarder needs that has gone to sleep in between."""
    with _talk(port) as sock:

        def wait_and_exchange() -> int:
            time.sleep(every)
            return _exchange(sock, b"x")

        return _times(seconds, wait_and_exchange)


def messages(port: int, seconds: float) -> Measured:
    """Messages of 1 to 8 KiB there and back, each as soon as the last has returned. Every run sends the same sizes."""
    sizes = random.Random(1)
    noise = memoryview(os.urandom(LARGE))
    with _talk(port) as sock:
        return _times(seconds, lambda: _exchange(sock, noise[: sizes.randint(SMALL, LARGE)]))


def connections(port: int, seconds: float) -> Measured:
    """Connect, one byte there and back, close; one after the other."""
    address = ("127.0.0.1", port)

    def connection() -> int:
        start = time.perf_counter_ns()
        with socket.socket() as sock:
            sock.connect(address)
            sock.sendall(ECHO)
            if not sock.recv(1):
                raise ConnectionError("no echo")
        return time.perf_counter_ns() - start

    return _times(seconds, connection, MOST_CONNECTIONS)


def connections_at_once(port: int, seconds: float, count: int = 16) -> Measured:
    """As `connections`, `count` at a time: how many are done in a second."""
    poll = select.epoll()
    address = ("127.0.0.1", port)
    open_ones: dict[int, socket.socket] = {}

    def begin() -> None:
        sock = socket.socket()
        sock.connect(address)
        sock.send(ECHO)
        open_ones[sock.fileno()] = sock
        poll.register(sock, select.EPOLLIN)

    def end(descriptor: int) -> None:
        with open_ones.pop(descriptor) as sock:
            if not sock.recv(1):
                raise ConnectionError("no echo")

    for _ in range(count):
        begin()
    done = 0
    start = time.perf_counter_ns()
    deadline = start + int(seconds * NANO)
    while time.perf_counter_ns() < deadline and done < MOST_CONNECTIONS:
        for descriptor, _ in poll.poll():
            end(descriptor)
            begin()
            done += 1
    return {"per_s": done / ((time.perf_counter_ns() - start) / NANO)}


def _connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _talk(port: int) -> socket.socket:
    sock = _connect(port)
    _exchange(sock, TALK)
    return sock


def _exchange(sock: socket.socket, message: bytes | memoryview) -> int:
    """Send a message and wait until all of it is back; gives nanoseconds."""
    left = len(message)
    start = time.perf_counter_ns()
    sock.sendall(message)
    while left:
        data = sock.recv(MESSAGE)
        if not data:
            raise ConnectionError("the connection ended early")
        left -= len(data)
    return time.perf_counter_ns() - start


def _times(seconds: float, exchange: Callable[[], int], most: int = ENDLESS) -> Measured:
    """Repeat for so long, and so often at most; gives median and 99th percentile in microseconds."""
    for _ in range(WARM_UP):
        exchange()
    taken: list[int] = []
    end = time.perf_counter_ns() + int(seconds * NANO)
    while (time.perf_counter_ns() < end and len(taken) < most) or len(taken) < LEAST:
        taken.append(exchange())
    taken.sort()
    return {"median_us": taken[len(taken) // 2] / 1e3, "p99_us": taken[len(taken) * 99 // 100] / 1e3, "count": len(taken)}


def _rate(taken: int, size: int, seconds: float) -> Measured:
    if taken != size:
        raise ConnectionError(f"the stream ended after {taken} of {size} bytes")
    return {"mb_s": taken / 1e6 / seconds}


TOOLS: dict[str, Callable[..., Measured]] = {
    tool.__name__: tool
    for tool in (download, upload, streams, stream, round_trip, paced, messages, connections, connections_at_once)
}


def main() -> None:
    name, arguments = sys.argv[1:]
    try:
        print(json.dumps(TOOLS[name](**json.loads(arguments))))
    except OSError as error:
        sys.exit(f"{error.strerror or error}".lower())


if __name__ == "__main__":
    main()
