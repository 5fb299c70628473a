"""Load from processes of its own, so that what is measured does not wait for the test's interpreter.

    python -m tests.support.load echo                                 a service; prints its port
    python -m tests.support.load ping PORT                            round trips until standard input ends; prints them
    python -m tests.support.load swarm PORT COUNT SIZE                many connections at once; prints what became of them
    python -m tests.support.load silent FROM HOST PORT COUNT          connections that say nothing; prints how many there were
    python -m tests.support.load exchanges FROM HOST PORT COUNT       key exchanges, on so many connections; prints how many

Each says `ready` (or its port) in a line, goes on when it is told to by one, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import resource
import select
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from asyncssh.constants import MSG_KEXINIT
from asyncssh.packet import Byte, String, UInt32

from tests.support.measures import percentile
from tests.support.rawssh import MSG_KEX_ECDH_INIT, VERSION, kexinit

BACKLOG = 4096
POINT = bytes([9, *bytes(31)])
"""A public key of curve25519: its base point (RFC 7748 section 4.1)."""
READ = 256 * 1024
PING = b"x" * 64
PINGS = 200
"""Round trips to look at at least: fewer say nothing of one in a hundred."""
PING_PAUSE = 0.001
"""Seconds between two round trips: enough to see a stall, without being a load itself."""
REPLACED = 500
"""Silent connections a second that take the place of those that were closed, at most."""
ROUNDS = 50
"""In which they are replaced."""
TIMEOUT = 60
DESCRIPTORS_BESIDES = 64
"""Descriptors that a process needs for other things than its connections."""


class Load:
    """A helper process."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "tests.support.load", *words]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=TIMEOUT)
        self._process.wait(TIMEOUT)

    def line(self) -> str:
        """What it says next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the helper process failed: see above"
        return line.strip()

    def tell(self) -> None:
        """Let it go on."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self) -> Any:
        """End it; gives its last word."""
        out, _ = self._process.communicate(timeout=TIMEOUT)
        return json.loads(out)


@contextlib.contextmanager
def echo_service() -> Iterator[int]:
    """A service that sends back what comes, and ends as its client did; gives the port."""
    with Load("echo") as load:
        yield int(load.line())


class Pinging:
    """Small round trips over one connection to a port, as long as the context lasts; the connection must last, too."""

    def __init__(self, port: int) -> None:
        self._load = Load("ping", str(port))
        self._since = self._until = 0.0
        self.times: list[float] = []
        """Seconds of each, once the context has ended."""

    def __enter__(self) -> Self:
        self._load.line()
        self.mark()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        until = self._until or time.perf_counter()
        with self._load:
            heard = self._load.finish()
        trips = [(began, took) for began, took in heard["trips"] if self._since <= began + took]
        self.times = [took for number, (began, took) in enumerate(trips) if began <= until or number < PINGS]
        if kind is None:
            assert not heard["problem"], heard["problem"]

    def mark(self) -> None:
        """Look only at round trips that are not over yet, and later ones."""
        self._since = time.perf_counter()

    def look_away(self) -> None:
        """Look only at round trips that have begun."""
        self._until = time.perf_counter()

    @property
    def p99(self) -> float:
        return percentile(self.times, 0.99)

    def __str__(self) -> str:
        half, most, worst = (1000 * value for value in (percentile(self.times, 0.5), self.p99, max(self.times)))
        return f"{len(self.times)} round trips: {half:.2f} ms, p99 {most:.1f} ms, at most {worst:.1f} ms"


def _echo() -> None:
    """Serve connections without threads, as many as there may be descriptors."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    _say(listener.getsockname()[1])
    waiting: dict[socket.socket, bytearray] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                _accept(listener, selector, waiting)
            elif isinstance(key.fileobj, socket.socket) and not _echoed(key.fileobj, waiting, selector):
                selector.unregister(key.fileobj)
                del waiting[key.fileobj]
                key.fileobj.close()


def _accept(listener: socket.socket, selector: selectors.BaseSelector, waiting: dict[socket.socket, bytearray]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock, _ = listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waiting[sock] = bytearray()
            selector.register(sock, selectors.EVENT_READ)


def _echoed(sock: socket.socket, waiting: dict[socket.socket, bytearray], selector: selectors.BaseSelector) -> bool:
    """Read once and send back; False when the connection is over."""
    queue = waiting[sock]
    try:
        if not queue:
            data = sock.recv(READ)
            if not data:
                return False
            queue += data
        del queue[: sock.send(queue)]
    except BlockingIOError:
        pass
    except OSError:
        return False
    selector.modify(sock, selectors.EVENT_WRITE if queue else selectors.EVENT_READ)
    return True


def _ping(port: int) -> None:
    """Round trips until standard input ends; prints when each began and what it took."""
    trips = []
    problem = ""
    poll = selectors.DefaultSelector()
    poll.register(sys.stdin, selectors.EVENT_READ)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _exchange(sock)
            _say("ready")
            left = PINGS
            while left:
                began = time.perf_counter()
                _exchange(sock)
                trips.append((began, time.perf_counter() - began))
                left -= bool(poll.select(PING_PAUSE))
    except OSError as error:
        problem = str(error)
    _say(json.dumps({"trips": trips, "problem": problem}))


def _exchange(sock: socket.socket) -> None:
    sock.sendall(PING)
    left = len(PING)
    while left:
        data = sock.recv(left)
        if not data:
            raise ConnectionError("the stream ended")
        left -= len(data)


class _Member:
    """One connection of a swarm: sends its data at once, and hashes what comes back."""

    def __init__(self, port: int, data: bytes) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", port))
        self.unsent = memoryview(data)
        self.expected = len(data)
        self.digest = hashlib.sha256()

    def step(self, selector: selectors.BaseSelector) -> bool:
        """Go as far as the socket lets; whether all is back. Raises OSError."""
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            selector.modify(self.sock, selectors.EVENT_READ, self)
        with contextlib.suppress(BlockingIOError):
            while self.expected:
                data = self.sock.recv(READ)
                if not data:
                    raise ConnectionError("the stream ended early")
                self.digest.update(data)
                self.expected -= len(data)
        return not self.expected


def _swarm(port: int, count: int, size: int) -> None:
    """Open `count` connections, wait for a word, send `size` bytes on each at once and read them back."""
    datas = [random.Random(number).randbytes(size) for number in range(count)]
    began = time.perf_counter()
    selector = selectors.DefaultSelector()
    members = []
    for data in datas:
        member = _Member(port, data)
        selector.register(member.sock, selectors.EVENT_WRITE, member)
        members.append(member)
    problems: dict[str, int] = {}
    pending = set(members)
    while pending:  # connected is who can be written to
        for key, _ in selector.select(TIMEOUT) or sys.exit("no connection"):
            if key.data in pending:
                pending.discard(key.data)
                selector.unregister(key.data.sock)
    _say(json.dumps({"seconds": time.perf_counter() - began}))
    sys.stdin.readline()
    began = time.perf_counter()
    for member in members:
        selector.register(member.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, member)
    left = set(members)
    while left:
        ready = selector.select(TIMEOUT)
        if not ready:
            problems["no answer"] = len(left)
            break
        for key, _ in ready:
            try:
                done = key.data.step(selector)
            except OSError as error:
                problems[str(error)] = problems.get(str(error), 0) + 1
                done = True
            if done:
                left.discard(key.data)
                selector.unregister(key.data.sock)
    seconds = time.perf_counter() - began
    wrong = sum(member.digest.digest() != hashlib.sha256(data).digest() for member, data in zip(members, datas, strict=True))
    _say(json.dumps({"seconds": seconds, "problems": problems, "wrong": wrong}))
    sys.stdin.readline()
    for member in members:
        member.sock.close()


def _silent(source: str, address: tuple[str, int], count: int) -> None:
    """Hold so many connections that say nothing, until standard input ends; those that are closed are replaced."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    made = 0

    def connect() -> None:
        sock = socket.create_connection(address, timeout=TIMEOUT, source_address=(source, 0))
        sock.setblocking(False)
        selector.register(sock, selectors.EVENT_READ)

    for _ in range(count):
        connect()
    made = count
    _say("ready")
    while True:
        ready = [key.fileobj for key, _ in selector.select()]
        if sys.stdin in ready:
            _say(json.dumps({"made": made}))
            return
        for sock in ready[: REPLACED // ROUNDS]:
            if isinstance(sock, socket.socket) and _has_ended(sock):
                selector.unregister(sock)
                sock.close()
                connect()
                made += 1
        time.sleep(1 / ROUNDS)


def _exchanges(source: str, address: tuple[str, int], count: int) -> None:
    """Ask for key exchanges on ever new connections, of which so many are open at a time, until standard input ends."""
    said = VERSION + b"\r\n" + _unsealed(Byte(MSG_KEXINIT) + kexinit()) + _unsealed(Byte(MSG_KEX_ECDH_INIT) + String(POINT))
    held: deque[socket.socket] = deque()
    made = 0
    _say("ready")
    while not select.select([sys.stdin], [], [], 0)[0]:
        sock = socket.socket()
        sock.bind((source, 0))
        try:
            sock.connect(address)
            sock.sendall(said)
        except OSError:
            sock.close()
            continue
        made += 1
        held.append(sock)
        if len(held) > count:
            held.popleft().close()
    _say(json.dumps({"made": made}))


def _unsealed(payload: bytes) -> bytes:
    """A packet as it is before keys were exchanged (RFC 4253 section 6)."""
    padding = 16 - (len(payload) + 5) % 8
    return UInt32(len(payload) + padding + 1) + Byte(padding) + payload + bytes(padding)


def _has_ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(READ)
    except BlockingIOError:
        return False
    except OSError:
        return True


def raise_descriptor_limit() -> int:
    """Allow this process all it may have; gives how many descriptors that is."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(words: list[str]) -> None:
    raise_descriptor_limit()
    match words:
        case ["echo"]:
            _echo()
        case ["ping", port]:
            _ping(int(port))
        case ["swarm", port, count, size]:
            _swarm(int(port), int(count), int(size))
        case ["silent", source, host, port, count]:
            _silent(source, (host, int(port)), int(count))
        case ["exchanges", source, host, port, count]:
            _exchanges(source, (host, int(port)), int(count))
        case _:
            sys.exit(f"unknown: {words}")


if __name__ == "__main__":
    main(sys.argv[1:])
