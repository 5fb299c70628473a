"""A ledger of streams: what was sent and received on connections through forwards, and how each stream ended.

One thread moves both ends of every connection, at the pace that the test wants, while the test makes faults happen. Every
stream is a piece of known noise that begins where its seed says, so that a byte that is wrong, missing or doubled is noticed as
soon as it arrives. In the end every stream is judged: what arrived is an exact prefix of what was sent; a clean end came
only after the whole of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from tests.support.networks import Place, inside
from tests.support.services import noise
from tests.support.waiting import until

NOISE_SIZE = 1_048_583
"""Prime, so that a piece that goes missing is hardly ever a multiple of it."""
STRIDE = 7_919
"""Bytes by which the streams of neighbouring seeds begin apart."""
STEP = 128 * 1024
"""Bytes that one call sends or receives."""
STEPS_PER_SECOND = 50
"""How smoothly a paced stream flows."""
TAG = struct.Struct(">Q")
"""What every client says first, so that the service knows which connection it has."""
BACKLOG = 4096
PATIENCE = 30.0
RATE = 500_000.0
"""Bytes a second of a stream that is there to be watched."""

_noise = memoryview(noise(NOISE_SIZE, 99) + noise(NOISE_SIZE, 99))
_seeds = itertools.count(1)

Result = TypeVar("Result")


@dataclass(eq=False)
class Stream:
    """One direction of a connection."""

    size: int | None = None
    """Bytes to send before it ends; None to go on until `finish`."""
    rate: float | None = None
    """Bytes a second; None for as many as go."""
    after: Stream | None = None
    """Begin only when this one has ended."""

    seed: int = field(default_factory=lambda: next(_seeds), init=False)
    sent: int = field(default=0, init=False)
    """Bytes that were handed to the kernel, the last step of them perhaps in part."""
    received: int = field(default=0, init=False)
    is_ending: bool = field(default=False, init=False)
    """Whether nothing more is to be sent."""
    is_finished: bool = field(default=False, init=False)
    """Whether all was sent, and its end too."""
    is_broken: bool = field(default=False, init=False)
    """Whether the sender heard of a reset."""
    is_altered: bool = field(default=False, init=False)
    """Whether something arrived that was not sent."""
    end: str = field(default="", init=False)
    """How the receiver saw it end: `fin` or `reset`."""
    ended_at: float = field(default=0, init=False)
    """When that was, on the monotonic clock."""
    is_over: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def finish(self) -> None:
        """Send no more, and end."""
        self.is_ending = True

    @property
    def step(self) -> int:
        """Bytes to send next."""
        steps = [STEP]
        if self.size is not None:
            steps.append(self.size - self.sent)
        if self.rate is not None:
            steps.append(max(1, int(self.rate / STEPS_PER_SECOND)))
        return min(steps)

    def piece(self, at: int, length: int) -> memoryview:
        """What the stream says there."""
        start = (self.seed * STRIDE + at) % NOISE_SIZE
        return _noise[start : start + length]

    def arrived(self, data: memoryview) -> None:
        """Enter what was received."""
        self.is_altered = self.is_altered or data != self.piece(self.received, len(data))
        self.received += len(data)

    def ends(self, how: str) -> None:
        """Enter how it ended."""
        if not self.end:
            self.end, self.ended_at = how, time.monotonic()
            self.is_over.set()

    def check(self) -> None:
        """An exact prefix, and a clean end only of the whole."""
        assert not self.is_altered, f"bytes that were not sent: {self}"
        assert self.received <= self.sent, f"more than was sent: {self}"
        if self.end == "fin":
            assert self.is_finished, f"a clean end that nobody sent: {self}"
            assert self.received == self.sent == self.size, f"a clean end of a part: {self}"

    def __repr__(self) -> str:
        size = "" if self.size is None else f" of {self.size}"
        return f"<{self.end or 'open'}: sent {self.sent}{size}, received {self.received}>"


@dataclass(eq=False)
class Line:
    """A connection through a forward: `up` from the client to the service, `down` back."""

    up: Stream
    down: Stream
    number: int = field(default_factory=lambda: next(_seeds), init=False)
    opened_at: float = field(default_factory=time.monotonic, init=False)
    served_at: float = field(default=0, init=False)
    """When the service saw it, on the monotonic clock; 0 if it has not."""

    @property
    def streams(self) -> tuple[Stream, Stream]:
        return self.up, self.down

    @property
    def is_served(self) -> bool:
        """Whether the service has seen it."""
        return self.served_at > 0

    @property
    def is_whole(self) -> bool:
        """Whether both streams have come to a clean end."""
        return all(stream.end == "fin" for stream in self.streams)

    @property
    def is_reset(self) -> bool:
        """Whether the application has seen a reset, and so has the service, if it has seen anything."""
        return self.down.end == "reset" and (not self.is_served or self.up.end == "reset")

    @property
    def is_over(self) -> bool:
        """Whether both streams have come to some end."""
        return self.down.end != "" and (not self.is_served or self.up.end != "")

    @property
    def is_live(self) -> bool:
        """Whether it is served and nothing has ended yet."""
        return self.is_served and not any(stream.end for stream in self.streams)

    @property
    def over_at(self) -> float:
        """When the later of both streams ended."""
        return max(stream.ended_at for stream in self.streams)

    def finish(self) -> None:
        """End both streams where they are."""
        for stream in self.streams:
            stream.finish()

    def check(self) -> None:
        for stream in self.streams:
            stream.check()

    def __repr__(self) -> str:
        return f"<line {self.number}: up {self.up}, down {self.down}>"


class Service:
    """Accepts connections at a place; each client says which one it is."""

    def __init__(self, place: Place | None, port: int = 0) -> None:
        with inside(place):
            self.listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
        self.listener.setblocking(False)
        self.port = int(self.listener.getsockname()[1])


class Ledger:
    """Keeps lines going until it is left; then every one of them is checked, also where the test has failed already."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.strays: list[str] = []
        """How connections ended that the service saw before they had said which one they were."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for line in self.lines:
            line.check()
        assert "fin" not in self.strays, "clean ends that nobody sent"

    def service(self, place: Place | None = None, port: int = 0) -> Service:
        """A service that knows the lines of this ledger."""
        made = Service(place, port)
        self._sockets.add(made.listener)
        self._call(self._begin(self._accept(made)))
        return made

    def open(self, local: int, up: Stream | None = None, down: Stream | None = None, *, place: Place | None = None) -> Line:
        """A connection to this port, begun; without further word both streams flow until they are finished."""
        line = Line(up or Stream(), down or Stream())
        self._call(self._begin(self._dial(line, local, place)))
        return line

    def served(self, local: int, *, rate: float = RATE, place: Place | None = None, patience: float = PATIENCE) -> Line:
        """A connection on which bytes have passed both ways, and go on to; tried again until there is one."""

        def attempt() -> Line | None:
            line = self.open(local, Stream(rate=rate), Stream(rate=rate), place=place)
            until(lambda: line.is_over or all(stream.received for stream in line.streams), patience, f"news of {line}")
            return line if line.is_live else None

        return until(attempt, patience, f"a connection through port {local}")

    def finish(self, lines: Iterable[Line], patience: float = PATIENCE) -> None:
        """End these where they are; all of them must end whole."""
        ending = list(lines)
        for line in ending:
            line.finish()
        until(lambda: all(line.is_over for line in ending), patience, f"all lines end: {ending}")
        assert all(line.is_whole for line in ending), ending

    @contextlib.contextmanager
    def probing(self, local: int, *, place: Place | None = None, every: float = 0.2, size: int = 1000) -> Iterator[Probes]:
        """Make a short connection again and again, without waiting for the one before."""
        probes = Probes()

        async def probe() -> None:
            while True:
                up = Stream(size)
                line = Line(up, Stream(size, after=up))
                probes.lines.append(line)
                await self._begin(self._dial(line, local, place))
                await asyncio.sleep(every)

        task: asyncio.Task[None] = self._call(self._begin(probe()))
        try:
            yield probes
        finally:
            self._loop.call_soon_threadsafe(task.cancel)

    # In the thread

    async def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in self._sockets:
            sock.close()

    async def _accept(self, service: Service) -> None:
        while True:
            sock, _ = await self._loop.sock_accept(service.listener)
            self._adopt(sock)
            await self._begin(self._serve(sock))

    async def _dial(self, line: Line, local: int, place: Place | None) -> None:
        self.lines.append(line)
        with inside(place):
            sock = socket.socket()
        self._adopt(sock)
        try:
            await self._loop.sock_connect(sock, ("127.0.0.1", local))
            await self._loop.sock_sendall(sock, TAG.pack(line.number))
        except OSError:
            line.down.ends("reset")
            self._drop(sock)
            return
        await self._move(sock, line.up, line.down)

    async def _serve(self, sock: socket.socket) -> None:
        line = await self._asked_for(sock)
        if line is None or line.is_served:
            self._drop(sock)
            return
        line.served_at = time.monotonic()
        await self._move(sock, line.down, line.up)

    async def _asked_for(self, sock: socket.socket) -> Line | None:
        tag = b""
        while len(tag) < TAG.size:
            try:
                piece = await self._loop.sock_recv(sock, TAG.size - len(tag))
            except OSError:
                self.strays.append("reset")
                return None
            if not piece:
                self.strays.append("fin")
                return None
            tag += piece
        (number,) = TAG.unpack(tag)
        return next((line for line in reversed(self.lines) if line.number == number), None)

    async def _move(self, sock: socket.socket, outgoing: Stream, incoming: Stream) -> None:
        sending = await self._begin(self._send(sock, outgoing))
        await self._receive(sock, incoming, outgoing)
        if incoming.end == "reset":
            sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
        self._drop(sock)

    async def _send(self, sock: socket.socket, stream: Stream) -> None:
        if stream.after:
            await stream.after.is_over.wait()
        began = time.monotonic()
        try:
            while not stream.is_ending and (step := stream.step):
                data = stream.piece(stream.sent, step)
                stream.sent += step
                await self._loop.sock_sendall(sock, data)
                if stream.rate:
                    await asyncio.sleep(began + stream.sent / stream.rate - time.monotonic())
            stream.size = stream.sent
            stream.is_finished = True
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            stream.is_broken = True

    async def _receive(self, sock: socket.socket, stream: Stream, outgoing: Stream) -> None:
        buffer = memoryview(bytearray(STEP))
        while True:
            try:
                count = await self._loop.sock_recv_into(sock, buffer)
            except OSError:
                stream.ends("reset")
                return
            if not count:  # the kernel tells of a reset once: when sending has heard of it, reading shows an ordinary end
                stream.ends("reset" if outgoing.is_broken else "fin")
                return
            stream.arrived(buffer[:count])

    def _adopt(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets.add(sock)

    def _drop(self, sock: socket.socket) -> None:
        self._sockets.discard(sock)
        sock.close()

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


class Probes:
    """Short connections, each of which has to be served whole."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def first_good(self, since: float) -> float:
        """Seconds from then to the end of the first one that was served whole."""
        return min(line.over_at for line in list(self.lines) if line.is_whole and line.over_at >= since) - since

    def settled(self, patience: float = PATIENCE) -> Probes:
        """The same, once each of them is over."""
        until(lambda: all(line.is_over for line in self.lines), patience, "every probe is over")
        return self

    def lost(self, since: float = 0) -> list[Line]:
        """Those opened since then that were not served whole."""
        return [line for line in self.lines if line.opened_at >= since and not line.is_whole]
