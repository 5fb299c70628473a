"""The socket below an SSH connection: over real TCP, with a connection that only takes what it is told to take."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from knot_ssh.dataplane.channel import LINGER_OFF
from knot_ssh.dataplane.connection import PACKET_LENGTH
from knot_ssh.dataplane.limits import BUFFER, FRAGMENT, KIB, MIB, PLENTY
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import READ
from knot_ssh.dataplane.transport import TCP_NOTSENT_LOWAT, UNSENT, Transport
from tests.support.reactors import on_both
from tests.support.services import noise, reset
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, connected, unread
from tests.unit.knot_ssh.dataplane.test_outbox import OpenPool

QUIET = 0.02
"""Seconds in which whatever is not to happen would have happened."""

Use = Callable[[bytes], tuple[int, bool]]
"""Gives how much of this is used, and whether more may be read now."""


class FakeConnection:
    """Uses everything it is given, unless a test says otherwise, and remembers what it has heard."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls = 0
        self.ends: list[Exception | None] = []
        self.transport: asyncio.BaseTransport | None = None
        self.use: Use = lambda data: (len(data), True)
        self.made: Callable[[Transport], None] = lambda transport: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, Transport)
        self.transport = transport
        self.made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends.append(exc)

    def received(self, buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
        assert self.transport
        assert start < end
        self.calls += 1
        used, more = self.use(bytes(buffer[start:end]))
        self.data += buffer[start : start + used]
        return start + used, more

    def sealed(self, count: int) -> None:
        raise AssertionError

    def send_payload(self, kind: int, payload: bytes) -> None:
        raise AssertionError


class Bench:
    """A transport between such a connection and a far end."""

    def __init__(self, plane: DataPlane, buffers: int) -> None:
        self.connection = FakeConnection()
        self.pool = OpenPool()
        self.near, self.far = connected(buffers)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)
        self.transport = Transport(plane.reactor, self.pool, self.near, self.connection)

    @property
    def data(self) -> bytes:
        """What the connection has used."""
        return bytes(self.connection.data)

    async def sends(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def reads(self) -> bytes:
        """Everything up to the end."""
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            while part := await asyncio.get_running_loop().sock_recv(self.far, 1 << 20):
                data += part
        return bytes(data)

    async def gets(self, data: bytes) -> None:
        """Wait until the connection has used exactly this."""
        await becomes(lambda: len(self.data) >= len(data), PATIENCE, f"{len(data)} bytes, not {len(self.data)}")
        assert (self.data == data) is True

    async def ended(self) -> Exception | None:
        """Wait for the end; gives what the connection has heard, which it hears once."""
        await becomes(lambda: self.connection.ends, PATIENCE)
        await asyncio.sleep(0)
        [error] = self.connection.ends
        return error


@asynccontextmanager
async def bench(plane: DataPlane, buffers: int = 64 * KIB) -> AsyncIterator[Bench]:
    """A transport that has not started. Nothing is left of it at the end."""
    made = Bench(plane, buffers)
    try:
        yield made
    finally:
        made.transport.abort()
        made.far.close()
    await made.ended()


@asynccontextmanager
async def started(plane: DataPlane, buffers: int = 64 * KIB) -> AsyncIterator[Bench]:
    """A transport that reads."""
    async with bench(plane, buffers) as made:
        made.transport.start()
        yield made


def packets(data: bytes) -> tuple[int, bool]:
    """Use whole packets alone: a length, and so many bytes."""
    start = 0
    while len(data) - start >= 4:
        stop = start + 4 + struct.unpack_from(">I", data, start)[0]
        if stop > len(data):
            break
        start = stop
    return start, True


def packet(size: int) -> bytes:
    return struct.pack(">I", size) + noise(size)


# Reading


@on_both
async def test_connection_hears_first(plane: DataPlane) -> None:
    """The connection gets the transport before anything that has arrived."""
    async with bench(plane) as made:
        await made.sends(b"early")
        heard: list[int] = []
        made.connection.made = lambda _: heard.append(made.connection.calls)
        made.transport.start()
        assert made.connection.transport is made.transport
        await made.gets(b"early")
        assert heard == [0]


@on_both
async def test_bytes_both_ways(plane: DataPlane) -> None:
    """What arrives is given to the connection, and what it writes is sent."""
    async with started(plane) as made:
        await made.sends(b"question")
        await made.gets(b"question")
        made.transport.write(b"ans")
        made.transport.write(bytearray(b"wer"))
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(made.far, 100) == b"answer"


@on_both
async def test_large_stream(plane: DataPlane) -> None:
    """A stream much larger than a buffer arrives unchanged, through whatever pieces it comes in."""
    stream = b"".join(packet(size) for size in (0, 1, 1000, 70_000, PACKET_LENGTH, 5, PACKET_LENGTH, 300) * 3)
    async with started(plane) as made:
        made.connection.use = packets
        await made.sends(stream)
        await made.gets(stream)


@on_both
async def test_packet_in_pieces(plane: DataPlane) -> None:
    """A packet that is not whole stays at the front until it is, though it comes byte by byte."""
    stream = packet(20) + packet(3)
    async with started(plane) as made:
        made.connection.use = packets
        for place in range(len(stream)):
            await made.sends(stream[place : place + 1])
            await becomes(lambda: made.connection.calls > place)  # noqa: B023
        await made.gets(stream)


@on_both
async def test_part_that_is_used(plane: DataPlane) -> None:
    """What is not used is given again together with what comes then, however little of it is used at a time."""
    async with started(plane) as made:
        made.connection.use = lambda data: (1 if len(data) > 2 else 0, True)
        for byte in b"123456789":
            await made.sends(bytes([byte]))
            calls = made.connection.calls
            await becomes(lambda: made.connection.calls > calls)  # noqa: B023
        await made.gets(b"1234567")


@on_both
async def test_everybody_gets_a_turn(plane: DataPlane) -> None:
    """A connection that is flooded gets no more than a buffer in one turn, and another one is served meanwhile."""
    async with started(plane, MIB) as flooded, started(plane) as other:
        turns: list[str] = []
        flooded.connection.use = lambda data: (turns.append("flooded") or len(data), True)  # type: ignore[func-returns-value]
        other.connection.use = lambda data: (turns.append("other") or len(data), True)  # type: ignore[func-returns-value]
        flood = asyncio.ensure_future(flooded.sends(bytes(50 * MIB)))
        for count in range(1, 6):
            await other.sends(b"x")
            await becomes(lambda: turns.count("other") == count)  # noqa: B023
        assert not flood.done()
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)


# Reading that stops


@on_both
async def test_paused(plane: DataPlane) -> None:
    """While reading is paused everything stays with the kernel; then it goes on by itself."""
    async with started(plane) as made:
        made.transport.pause_reading()
        assert not made.transport.is_reading()
        await made.sends(b"later")
        await asyncio.sleep(QUIET)
        assert (made.connection.calls, unread(made.near)) == (0, 5)
        made.transport.resume_reading()
        assert made.transport.is_reading()
        await made.gets(b"later")


@on_both
async def test_paused_from_within(plane: DataPlane) -> None:
    """A connection that pauses reading while it is given something is given nothing more until it resumes."""
    async with started(plane) as made:

        def once(data: bytes) -> tuple[int, bool]:
            made.transport.pause_reading()
            return 1, True

        made.connection.use = once
        await made.sends(b"first")
        await becomes(lambda: made.connection.calls)
        await made.sends(b"second")
        await asyncio.sleep(QUIET)
        assert (made.data, made.connection.calls) == (b"f", 1)
        made.transport.resume_reading()
        await becomes(lambda: made.connection.calls >= 2)
        await asyncio.sleep(QUIET)
        assert made.data == b"fi"


@on_both
async def test_paused_with_something_in_hand(plane: DataPlane) -> None:
    """What was read before a pause is given, behind the pause, before what has come since."""
    async with started(plane) as made:
        made.connection.use = lambda data: (2, False)
        await made.sends(b"abcd")
        await becomes(lambda: made.connection.calls)
        made.transport.pause_reading()
        made.transport.soon()
        await made.sends(b"ef")
        await asyncio.sleep(QUIET)
        assert made.data == b"ab"
        made.connection.use = lambda data: (len(data), True)
        made.transport.resume_reading()
        await made.gets(b"abcdef")


@on_both
async def test_held(plane: DataPlane) -> None:
    """A connection that wants no more is given nothing until it says `soon`; then first what it has not used."""
    async with started(plane) as made:
        seen: list[bytes] = []

        def two(data: bytes) -> tuple[int, bool]:
            seen.append(data[:2])
            return 2, False

        made.connection.use = two
        await made.sends(b"abcd")
        await becomes(lambda: seen)
        await made.sends(b"ef")
        await asyncio.sleep(QUIET)
        assert seen == [b"ab"]
        made.transport.soon()
        made.transport.soon()
        await becomes(lambda: len(seen) == 2)
        await asyncio.sleep(QUIET)
        assert seen == [b"ab", b"cd"]
        made.transport.soon()
        await becomes(lambda: made.data == b"abcdef")


@pytest.mark.parametrize("how", ["full buffer", "end of stream"])
@on_both
async def test_held_with_more_to_come(plane: DataPlane, how: str) -> None:
    """So too where it is known that there is more to read: nothing is given or read until `soon`."""
    count = 2 * BUFFER if how == "full buffer" else 10
    async with bench(plane, 2 * count) as made:
        made.connection.use = lambda data: (1, False)
        await made.sends(bytes(count))
        if how == "end of stream":
            made.far.shutdown(socket.SHUT_WR)
        made.transport.start()
        await becomes(lambda: made.connection.calls)
        await asyncio.sleep(QUIET)
        assert made.connection.calls == 1
        made.connection.use = lambda data: (len(data), True)
        made.transport.soon()
        await becomes(lambda: len(made.data) == count)


@on_both
async def test_pushed_back(plane: DataPlane) -> None:
    """What is pushed back is given again, before everything else, in another turn."""
    async with started(plane) as made:

        def push_back(data: bytes) -> tuple[int, bool]:
            made.connection.use = lambda data: (len(data), True)
            asyncio.get_running_loop().call_soon(made.transport.push_back, data[2:])
            return len(data), False

        made.connection.use = push_back
        await made.sends(b"abcd")
        await becomes(lambda: made.data)
        await made.sends(b"ef")
        await made.gets(b"abcdcdef")


@on_both
async def test_nothing_pushed_back(plane: DataPlane) -> None:
    """To push back nothing means to go on."""
    async with started(plane) as made:
        made.connection.use = lambda data: (2, False)
        await made.sends(b"abcd")
        await becomes(lambda: made.data == b"ab")
        made.transport.push_back(b"")
        await made.gets(b"abcd")


# Ends


@on_both
async def test_end_of_stream(plane: DataPlane) -> None:
    """When the far end closes, the connection is over once it was given everything."""
    async with started(plane) as made:
        await made.sends(noise(100_000))
        made.far.close()
        assert await made.ended() is None
        assert (made.data == noise(100_000)) is True
        assert made.transport.is_closing()


@on_both
async def test_end_within_a_packet(plane: DataPlane) -> None:
    """When the far end closes within a packet the connection is over, and the beginning is not given as a whole."""
    async with started(plane) as made:
        made.connection.use = packets
        await made.sends(packet(10) + packet(10)[:-1])
        made.far.close()
        assert await made.ended() is None
        assert made.data == packet(10)


@on_both
async def test_end_while_paused(plane: DataPlane) -> None:
    """An end that comes while reading is paused is met when it goes on, behind what came before it."""
    async with started(plane) as made:
        made.transport.pause_reading()
        await made.sends(b"last words")
        made.far.close()
        await asyncio.sleep(QUIET)
        assert made.connection.ends == []
        made.transport.resume_reading()
        await made.ended()
        assert made.data == b"last words"


@on_both
async def test_reset(plane: DataPlane) -> None:
    """When the far end resets, the connection hears so."""
    async with started(plane) as made:
        reset(made.far)
        assert isinstance(await made.ended(), ConnectionResetError)


@on_both
async def test_reset_that_writing_meets(plane: DataPlane) -> None:
    """A connection that is reset while it writes and reads nothing is over too."""
    async with started(plane) as made:
        made.transport.pause_reading()
        reset(made.far)
        await asyncio.sleep(QUIET)
        made.transport.write(b"to nobody")
        assert isinstance(await made.ended(), OSError)


@pytest.mark.parametrize("how", ["abort", "close"])
@on_both
async def test_abort(plane: DataPlane, how: str) -> None:
    """What was written before the end still leaves as far as the kernel takes it; the connection hears of the end later."""
    async with started(plane) as made:
        made.transport.write(b"last words")
        getattr(made.transport, how)()
        assert made.connection.ends == []
        assert made.transport.is_closing()
        made.transport.abort()
        assert await made.ended() is None
        assert await made.reads() == b"last words"


@on_both
async def test_nothing_happens_after_the_end(plane: DataPlane) -> None:
    """After the end nothing is read, written or known any more."""
    async with started(plane) as made:
        await made.sends(b"unread")
        made.transport.abort()
        made.transport.write(b"more")
        made.transport.soon()
        made.transport.resume_reading()
        made.transport.on_event(5)
        made.transport.on_turn()
        assert await made.ended() is None
        assert made.connection.calls == 0
        assert made.transport.get_extra_info("peername", "nobody") == "nobody"
        assert made.transport.get_write_buffer_size() == 0


@on_both
async def test_abort_from_within(plane: DataPlane) -> None:
    """A connection that ends itself while it is given something is given nothing more."""
    async with started(plane) as made:

        def give_up(data: bytes) -> tuple[int, bool]:
            made.transport.abort()
            return 1, True

        made.connection.use = give_up
        await made.sends(b"abc")
        assert await made.ended() is None
        assert made.connection.calls == 1


@on_both
async def test_abort_at_the_very_beginning(plane: DataPlane) -> None:
    """A connection may end itself as soon as it has a transport, with a last word."""
    async with bench(plane) as made:

        def give_up(transport: Transport) -> None:
            transport.write(b"no")
            transport.abort()

        made.connection.made = give_up
        made.transport.start()
        assert await made.ended() is None
        assert await made.reads() == b"no"


@on_both
async def test_fault_ends_one_connection(plane: DataPlane) -> None:
    """A connection that raises ends, alone; what it wrote before still leaves."""
    async with started(plane) as bad, started(plane) as good:

        def fail(data: bytes) -> tuple[int, bool]:
            bad.transport.write(b"last words")
            raise ZeroDivisionError

        bad.connection.use = fail
        with capture_logs() as logs:
            await bad.sends(b"x")
            assert await bad.ended() is None
        assert [entry["event"] for entry in logs] == ["data path fault"]
        assert await bad.reads() == b"last words"
        await good.sends(b"question")
        await good.gets(b"question")


# Writing


@on_both
async def test_slow_reader(plane: DataPlane) -> None:
    """What the far end does not take yet waits, is counted, and arrives whole; reading goes on meanwhile."""
    async with started(plane) as made:
        data = noise(3 * MIB)
        for start in range(0, len(data), 100_000):
            made.transport.write(data[start : start + 100_000])
        await becomes(lambda: made.pool.out == 1)
        assert 0 < made.transport.get_write_buffer_size() <= len(data)
        await made.sends(b"question")
        await made.gets(b"question")
        reading = asyncio.ensure_future(made.reads())
        await becomes(lambda: made.transport.get_write_buffer_size() == 0)
        made.transport.abort()
        assert (await reading == data) is True


@on_both
async def test_far_end_that_does_not_read_at_the_end(plane: DataPlane) -> None:
    """Whoever ends a connection that is full does not wait: what the kernel does not take is lost."""
    async with started(plane) as made:
        made.transport.write(bytes(3 * MIB))
        await becomes(made.transport.get_write_buffer_size)
        made.transport.abort()
        assert await made.ended() is None
        assert made.pool.out == 0


@on_both
async def test_kernel_holds_little_back(plane: DataPlane) -> None:
    """The kernel is asked not to queue much: what waits there delays everything behind it."""
    async with started(plane) as made:
        assert made.near.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == UNSENT


# What is known, and held


@on_both
async def test_who_is_there(plane: DataPlane) -> None:
    """The connection may ask for the socket and both its ends, and for nothing else."""
    async with started(plane) as made:
        known = made.transport.get_extra_info
        assert (known("socket"), known("peername")) == (made.near, made.far.getsockname())
        assert known("sockname") == made.near.getsockname()
        assert (known("cipher"), known("cipher", 7)) == (None, 7)


@on_both
async def test_idle_transport_holds_no_buffer(plane: DataPlane) -> None:
    """A buffer is held for what is being sent or used, and for much of a packet; never for a little of one."""
    async with started(plane) as made:
        made.connection.use = packets
        small, large = packet(FRAGMENT), packet(3 * FRAGMENT)
        assert made.pool.out == 0
        for stream, place, held in ((small, 7, 0), (small, FRAGMENT, 0), (large, 2 * FRAGMENT, 1)):
            calls = made.connection.calls
            await made.sends(stream[:place])
            await becomes(lambda: made.connection.calls > calls)  # noqa: B023
            assert made.pool.out == held
            await made.sends(stream[place:])
            await becomes(lambda: made.data.endswith(stream))  # noqa: B023
            assert made.pool.out == 0
        await made.gets(small + small + large)


@on_both
async def test_many_that_send_half_a_packet(plane: DataPlane) -> None:
    """Where many buffers are in use none is held for a packet that is not whole, however much of it there is."""
    async with started(plane, 2 * BUFFER) as made:
        made.connection.use = packets
        others = [made.pool.take() for _ in range(PLENTY)]
        stream = packet(PACKET_LENGTH)
        for start in range(0, len(stream), 50_000):
            calls = made.connection.calls
            await made.sends(stream[start : start + 50_000])
            await becomes(lambda: made.connection.calls > calls)  # noqa: B023
            assert made.pool.out == len(others)
        await made.gets(stream)


@on_both
async def test_fragment_holds_no_buffer_after_a_hint(plane: DataPlane) -> None:
    """To be told of data where there is none changes nothing: no buffer is held for the little of a packet that waits."""
    async with started(plane) as made:
        made.connection.use = packets
        await made.sends(packet(10)[:7])
        await becomes(lambda: made.connection.calls)
        made.transport.on_event(READ)
        assert made.pool.out == 0
        await made.sends(packet(10)[7:])
        await made.gets(packet(10))


@on_both
async def test_transport_that_is_over_holds_no_buffer(plane: DataPlane) -> None:
    """A connection that ended in the middle of a packet holds no buffer, for as long as somebody may remember it."""
    async with started(plane) as made:
        made.connection.use = packets
        await made.sends(packet(10_000)[:9_000])
        await becomes(lambda: made.pool.out == 1)
        made.far.close()
        await made.ended()
        assert (made.transport._buffer, made.pool.out) == (None, 0)
