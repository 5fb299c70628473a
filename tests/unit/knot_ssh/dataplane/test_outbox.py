"""Whose turn it is to send, and how much may wait: with real sockets and ciphers, and turns of the test's own making."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from knot_ssh.dataplane import outbox as module
from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.framing import DATA, LENGTH, OVERHEAD, TAG, Opener, Sealer
from knot_ssh.dataplane.limits import (
    BACKLOG,
    BUFFER,
    KIB,
    PACKET,
    PLAIN_PACKET,
    PLENTY,
    POLITE_CHUNK,
    POLITE_SECONDS,
    POLITE_TURN,
    SMALL,
    SMALL_BUFFER,
)
from knot_ssh.dataplane.outbox import RESERVE, WORTHWHILE, AsyncsshOutbox, Outbox, SealingOutbox
from knot_ssh.dataplane.reactor import Handler
from tests.support.services import noise

KEY, NONCE = bytes(16), bytes(12)
OTHER = 98
"""The type of some packet that is not data."""
NARROW = 8 * KIB
"""Bytes that a connection's buffers are asked to hold where it is to get full."""

Packet = tuple[int, int, bytes]
"""Type, channel (0 where there is none), and what is in it."""


class FakeReactor:
    """Turns when the test says so, on a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wants_write: set[int] = set()
        self._next: list[Handler] = []
        self._ending: list[Handler] = []

    def watch(self, fd: int, handler: Handler) -> None:
        raise AssertionError

    def forget(self, fd: int, handler: Handler) -> None:
        raise AssertionError

    def want_read(self, fd: int) -> None:
        raise AssertionError

    def want_write(self, fd: int) -> None:
        self.wants_write.add(fd)

    def again(self, handler: Handler) -> None:
        self._next.append(handler)

    def at_end(self, handler: Handler) -> None:
        self._ending.append(handler)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is put off."""
        return not self._next and not self._ending

    def turn(self) -> None:
        """One turn, with its end."""
        handlers, self._next = self._next, []
        for handler in handlers:
            handler.on_turn()
        self.end()

    def end(self) -> None:
        while self._ending:
            self._ending.pop().on_turn_end()


class OpenPool(Pool):
    """Tells how many of its buffers are out."""

    @property
    def out(self) -> int:
        return self._taken


class CountingSocket(socket.socket):
    """Knows how often it was written to."""

    calls = 0

    def send(self, data: object, flags: int = 0) -> int:
        self.calls += 1
        return super().send(data, flags)  # type: ignore[arg-type]


class Line:
    """An outbox, the sources that use it, and the peer that opens what arrives."""

    def __init__(self, near: socket.socket, far: socket.socket, sealing: bool = True) -> None:
        self.reactor = FakeReactor()
        self.pool = OpenPool()
        self.near = CountingSocket(fileno=near.detach())
        self.far = far
        self.sealed: list[int] = []
        self.lost: list[OSError] = []
        self.plain: list[Packet] = []
        self.turns: list[int] = []
        self.arrived = bytearray()
        self.kept: list[Packet] = []
        self.sealer = Sealer(KEY, NONCE)
        self.opener = Opener(KEY, NONCE)
        self.outbox = SealingOutbox(self.reactor, self.pool, self.near, self.send_packet, self.sealed.append, self.is_lost)
        if sealing:
            self.outbox.sealer = self.sealer

    def send_packet(self, kind: int, payload: bytes) -> None:
        """asyncssh's way."""
        number, size = struct.unpack_from(">II", payload)
        assert size == len(payload) - 8
        self.plain.append((kind, number, payload[8:]))

    def is_lost(self, error: OSError) -> None:
        """What the transport does then."""
        self.lost.append(error)
        self.outbox.close()

    def write_other(self, payload: bytes) -> None:
        """Send a packet of another kind."""
        self.outbox.write(self.sealer.seal_other(OTHER, payload))

    def receive(self) -> list[Packet]:
        """What has arrived, opened; fails where that is not what was sent, in its order."""
        self.arrived += drained(self.far)
        packets = []
        while len(self.arrived) > LENGTH:
            end = LENGTH + int.from_bytes(self.arrived[:LENGTH], "big") + TAG
            if end > len(self.arrived):
                break
            buffer = bytearray(self.arrived[:end])
            del self.arrived[:end]
            assert self.opener.open(memoryview(buffer), 0, end)
            packets.append(decoded(buffer, end))
        return packets

    def drain(self) -> None:
        """Let the peer read what has arrived; `take_all` gives it."""
        self.kept += self.receive()
        self.writable()

    def take_all(self) -> list[Packet]:
        """Let everything leave; gives what the peer has read since the last time."""
        packets, self.kept = self.kept + self.finish(), []
        return packets

    def finish(self) -> list[Packet]:
        """Let everything leave; gives what arrived."""
        packets = self.receive()
        while not (self.reactor.is_idle and self.outbox.waiting == 0):
            self.reactor.turn()
            packets += self.receive()
            self.writable()
        return packets + self.receive()

    def writable(self) -> None:
        """The reactor tells of room, where that was asked for."""
        if self.near.fileno() in self.reactor.wants_write:
            self.outbox.on_writable()

    def block(self) -> None:
        """Write until the connection takes nothing more."""
        while not self.outbox.waiting:
            self.write_other(bytes(1000))
            self.outbox.flush()


class Feed:
    """A source with a socket of its own that never runs empty, unless it is given what to say."""

    def __init__(self, line: Line, number: int, near: socket.socket, far: socket.socket) -> None:
        self.line = line
        self.number = number
        self.near, self.far = near, far
        self.outbox: Outbox = line.outbox
        self.small = False
        self.goes_on = True
        self.most = PACKET
        self.results: list[int | None] = []
        self.faults = 0

    def top_up(self) -> None:
        """Have as much to say as fits."""
        try:
            while self.far.send(bytes(256 * KIB)):
                pass
        except BlockingIOError:
            pass

    def send(self) -> int | None:
        """Have the outbox read once."""
        return self.outbox.send_from(self.near, self.number, self.most, self.small)

    def pump(self) -> None:
        self.line.turns.append(self.number)
        self.top_up()
        self.results.append(self.send())
        if self.goes_on:
            self.outbox.enqueue(self, small=self.small)

    def on_event(self, events: int) -> None:
        raise AssertionError

    on_turn = on_turn_end = lambda self: None

    def on_crash(self) -> None:
        self.faults += 1


Make = Callable[..., Feed]


@contextmanager
def a_line(buffers: int = 0, sealing: bool = True) -> Iterator[tuple[Line, Make]]:
    """An outbox on a socket pair, and a way to make sources for it."""
    with ExitStack() as stack:
        near, far = pair(buffers)
        line = Line(near, far, sealing)
        stack.callback(line.near.close)
        stack.callback(far.close)

        def feed(number: int, data: bytes = b"", *, small: bool = False) -> Feed:
            near, far = pair(2 * PACKET)
            stack.callback(near.close)
            stack.callback(far.close)
            made = Feed(line, number, near, far)
            made.small = small
            far.send(data)
            return made

        yield line, feed


def pair(buffers: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends that do not block, with buffers of about this size."""
    ends = socket.socketpair()
    for sock in ends:
        sock.setblocking(False)
        if buffers:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffers)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffers)
    return ends


def drained(sock: socket.socket) -> bytes:
    """All that a socket has."""
    data = bytearray()
    try:
        while part := sock.recv(1 << 20):
            data += part
    except BlockingIOError:
        pass
    return bytes(data)


def decoded(buffer: bytearray, end: int) -> Packet:
    """A packet that is open."""
    padding, kind = buffer[LENGTH], buffer[LENGTH + 1]
    if kind != MSG_CHANNEL_DATA:
        return kind, 0, bytes(buffer[LENGTH + 2 : end - TAG - padding])
    number, size = struct.unpack_from(">II", buffer, LENGTH + 2)
    assert size == end - TAG - padding - DATA
    return kind, number, bytes(buffer[DATA : DATA + size])


# Reading and sending


def test_data_is_sent_at_the_end_of_the_turn() -> None:
    """What was read leaves as packets of its channels, all of one turn in one call."""
    with a_line() as (line, feed):
        first, second = feed(1, b"question"), feed(2, b"answer")
        assert (first.send(), second.send()) == (8, 6)
        line.write_other(b"other")
        assert (line.near.calls, line.receive()) == (0, [])
        line.reactor.end()
        expected = [(MSG_CHANNEL_DATA, 1, b"question"), (MSG_CHANNEL_DATA, 2, b"answer"), (OTHER, 0, b"other")]
        assert (line.near.calls, line.receive(), line.sealed) == (1, expected, [8, 6])


def test_what_reading_tells() -> None:
    """The source hears of an empty socket, of the end of the stream, and of a reset."""
    with a_line() as (line, feed):
        source = feed(1)
        with pytest.raises(BlockingIOError):
            source.send()
        source.far.shutdown(socket.SHUT_WR)
        assert source.send() == 0
        source.near.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            source.send()
        assert line.finish() == []


@pytest.mark.parametrize("sealing", [True, False])
def test_no_more_is_read_than_may_be_sent(sealing: bool) -> None:
    """No read is larger than the channel's window and packets allow, and the source is told how large it could have been."""
    with a_line(sealing=sealing) as (line, feed):
        source = feed(1, bytes(100))
        source.most = 30
        assert [source.send() for _ in range(4)] == [30, 30, 30, 10]
        assert line.outbox.limit == 30
        packets = line.finish() + line.plain
        assert [len(data) for _, _, data in packets] == [30, 30, 30, 10]


def test_without_keys_of_ours_asyncssh_frames() -> None:
    """Under another cipher data goes to asyncssh in packets."""
    with a_line(sealing=False) as (line, feed):
        assert feed(1, b"data").send() == 4
        assert (line.plain, line.sealed, line.finish()) == ([(MSG_CHANNEL_DATA, 1, b"data")], [], [])


# Order


def test_bulk_takes_turns() -> None:
    """Sources with much to send take turns, a chunk each."""
    with a_line() as (line, feed):
        for number in (1, 2, 3):
            line.outbox.enqueue(feed(number))
        while len(line.turns) < 30:
            line.reactor.turn()
            line.receive()
            line.writable()
        assert line.turns[:30] == [1, 2, 3] * 10


def test_conversation_goes_before_bulk() -> None:
    """A channel in conversation is served before the bulk that waits already."""
    with a_line() as (line, feed):
        for number in (1, 2):
            line.outbox.enqueue(feed(number))
        line.outbox.enqueue(feed(3), small=True)
        line.reactor.turn()
        assert line.turns[0] == 3


def test_bulk_leaves_room() -> None:
    """Bulk leaves a reserve in the buffer, which a channel in conversation may use."""
    with a_line() as (line, feed):
        bulk, talk = feed(1), feed(2, b"hello", small=True)
        while line.outbox.has_room:
            bulk.top_up()
            assert bulk.send()
        assert bulk.send() is None
        assert BUFFER - RESERVE - WORTHWHILE - OVERHEAD < line.outbox.waiting <= BUFFER - RESERVE
        assert talk.send() == 5


def test_bulk_goes_on_when_the_buffer_has_left() -> None:
    """Bulk that found no room goes on by itself once there is some."""
    with a_line() as (line, feed):
        source = feed(1)
        line.outbox.enqueue(source)
        sent = 0
        while sent < 4 * BUFFER:
            line.reactor.turn()
            sent += sum(len(data) for _, _, data in line.receive())
            line.writable()
        assert sent >= 4 * BUFFER


def test_bulk_is_polite_while_others_talk() -> None:
    """While there is conversation bulk sends small chunks, and little in one turn; a moment later it does not."""
    with a_line() as (line, feed):
        bulk, talk = feed(1), feed(2, b"hello", small=True)
        line.outbox.enqueue(bulk)
        assert talk.send() == 5
        line.reactor.turn()
        assert bulk.results == [POLITE_CHUNK]
        while line.outbox.has_room:
            bulk.top_up()
            assert (bulk.send() or 0) <= POLITE_CHUNK
        assert line.outbox.waiting <= POLITE_TURN + OVERHEAD
        bulk.goes_on = False
        line.reactor.now += POLITE_SECONDS
        line.finish()
        bulk.top_up()
        assert (bulk.send() or 0) > POLITE_CHUNK


def test_talk_alone_is_not_bulk_s_concern() -> None:
    """Where nobody waits a small read changes nothing for bulk that comes next."""
    with a_line() as (line, feed):
        assert feed(2, b"hello", small=True).send() == 5
        bulk = feed(1)
        bulk.top_up()
        assert (bulk.send() or 0) > POLITE_CHUNK
        line.outbox.close()


def test_fault_in_a_source_ends_that_source() -> None:
    """A source that raises is told to give up, alone; the others have their turn."""
    with a_line() as (line, feed):
        bad, good = feed(1), feed(2)
        bad.near.close()
        bad.goes_on = good.goes_on = False
        for source in (bad, good):
            line.outbox.enqueue(source)
        with capture_logs() as logs:
            line.reactor.turn()
        assert (bad.faults, good.faults, line.turns, len(logs)) == (1, 0, [1, 2], 1)


# Exchange of keys


def test_no_data_while_keys_are_exchanged() -> None:
    """While keys are exchanged nothing is read, bulk or talk, and other packets leave; then everything goes on."""
    with a_line() as (line, feed):
        bulk, talk = feed(1), feed(2, b"hello", small=True)
        line.outbox.enqueue(bulk)
        line.outbox.hold()
        assert not line.outbox.has_room
        assert talk.send() is None
        line.reactor.turn()
        line.write_other(b"kexinit")
        line.reactor.turn()
        assert (line.turns, line.receive()) == ([], [(OTHER, 0, b"kexinit")])
        line.outbox.release()
        line.reactor.turn()
        assert line.turns == [1]


def test_new_keys_are_used_at_once() -> None:
    """What is read after the keys were replaced is sealed with the new ones, behind what was sealed with the old."""
    with a_line() as (line, feed):
        feed(1, b"old").send()
        old = line.outbox.waiting
        line.outbox.sealer = Sealer(bytes(32), NONCE)
        feed(1, b"new").send()
        line.reactor.end()
        line.arrived += drained(line.far)
        new = bytearray(line.arrived[old:])
        del line.arrived[old:]
        assert line.receive() == [(MSG_CHANNEL_DATA, 1, b"old")]
        assert Opener(bytes(32), NONCE).open(memoryview(new), 0, len(new))
        assert decoded(new, len(new)) == (MSG_CHANNEL_DATA, 1, b"new")


# A connection that is full


def test_full_connection_is_asked_about() -> None:
    """When the kernel takes no more the reactor is asked to tell, and what waits leaves then, whole and in order."""
    with a_line(NARROW) as (line, feed):
        source = feed(1, noise(200 * KIB))
        assert source.send() == 200 * KIB
        line.reactor.end()
        assert line.reactor.wants_write == {line.near.fileno()}
        assert 0 < line.outbox.waiting < 200 * KIB
        packets = line.finish()
        assert [(kind, number, data == noise(200 * KIB)) for kind, number, data in packets] == [(MSG_CHANNEL_DATA, 1, True)]


def test_full_connection_stops_bulk() -> None:
    """While the kernel takes nothing no bulk is read; a conversation may say a little more, until the buffer is full."""
    with a_line(NARROW) as (line, feed):
        bulk, talk = feed(1), feed(2, small=True)
        bulk.top_up()
        talk.top_up()
        line.block()
        assert not line.outbox.has_room
        assert bulk.send() is None
        said = []
        while size := talk.send():
            said.append(size)
            talk.top_up()
        assert max(said) <= SMALL
        assert line.outbox.waiting <= BUFFER
        packets = [data for kind, _, data in line.finish() if kind == MSG_CHANNEL_DATA]
        assert [len(data) for data in packets] == said
        assert line.outbox.has_room


def test_nothing_is_tried_before_there_is_room() -> None:
    """A full connection is not tried again before the kernel tells of room."""
    with a_line(NARROW) as (line, _):
        line.block()
        calls = line.near.calls
        line.write_other(b"more")
        line.reactor.turn()
        line.reactor.turn()
        assert line.near.calls == calls
        line.finish()


def test_room_that_nobody_waits_for() -> None:
    """To hear of room where nothing waits does nothing."""
    with a_line() as (line, _):
        line.outbox.on_writable()
        assert line.near.calls == 0


def test_answers_beyond_the_buffer_wait() -> None:
    """Packets that do not fit the buffer wait beside it, keep their order, and no data goes before them."""
    with a_line(NARROW) as (line, feed):
        talk = feed(1, b"hello", small=True)
        line.block()
        start = line.receive()
        payloads = [noise(30_000, number) for number in range(2 * BUFFER // 30_000)]
        for payload in payloads:
            line.write_other(payload)
        assert line.outbox.waiting > BUFFER
        assert talk.send() is None
        assert not line.outbox.has_room
        arrived = [data for _, _, data in start + line.finish()]
        assert (arrived[-len(payloads) :] == payloads) is True
        assert talk.send() == 5
        assert line.finish() == [(MSG_CHANNEL_DATA, 1, b"hello")]


def test_packet_that_is_larger_than_the_buffer() -> None:
    """A single packet of any size passes."""
    with a_line(NARROW) as (line, _):
        payload = noise(BUFFER + 1000)
        line.write_other(payload)
        [(_, _, arrived)] = line.finish()
        assert (arrived == payload) is True


def test_peer_that_does_not_read_is_given_up() -> None:
    """When too many answers wait for a peer that does not read, the connection is lost, once, and nothing more is kept."""
    with a_line(NARROW) as (line, _):
        piece = bytes(64 * KIB)
        while not line.lost:
            assert line.outbox.waiting <= BUFFER + BACKLOG
            line.outbox.write(piece)
        line.outbox.write(piece)
        line.reactor.turn()
        [error] = line.lost
        assert isinstance(error, TimeoutError)
        assert (line.outbox.waiting, line.pool.out) == (0, 0)


def test_lost_connection_is_reported() -> None:
    """An error of the socket is reported, once."""
    with a_line() as (line, _):
        line.far.close()
        line.write_other(b"to nobody")
        line.reactor.turn()
        line.write_other(b"to nobody")
        line.reactor.turn()
        [error] = line.lost
        assert error.errno in (errno.EPIPE, errno.ECONNRESET)


# Ends and memory


def test_idle_outbox_holds_no_buffer() -> None:
    """A buffer is held from the first byte to the last, and by nobody who has nothing to send."""
    with a_line(NARROW) as (line, feed):
        source = feed(1)
        with pytest.raises(BlockingIOError):
            source.send()
        line.reactor.end()
        assert line.pool.out == 0
        source.far.send(bytes(100 * KIB))
        source.send()
        line.reactor.end()
        assert line.pool.out == 1
        line.finish()
        assert line.pool.out == 0


def test_closed_outbox_sends_nothing() -> None:
    """After the end nothing is sent, kept or read, and nobody has a turn."""
    with a_line(NARROW) as (line, feed):
        source = feed(1)
        line.outbox.enqueue(source)
        line.block()
        line.outbox.close()
        line.outbox.close()
        line.receive()
        line.write_other(b"more")
        line.outbox.on_writable()
        line.reactor.turn()
        assert (line.turns, line.receive(), line.outbox.waiting, line.pool.out) == ([], [], 0, 0)
        assert source.send() is None


def test_flush_sends_at_once() -> None:
    """Whoever is in a hurry need not wait for the end of the turn."""
    with a_line() as (line, _):
        line.write_other(b"bye")
        line.outbox.flush()
        assert line.receive() == [(OTHER, 0, b"bye")]
        line.reactor.turn()
        assert (line.receive(), line.pool.out) == ([], 0)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("size", [100, 60 * KIB, SMALL_BUFFER - OVERHEAD, SMALL_BUFFER, 200 * KIB])
def test_many_buffers_in_use(small: bool, size: int) -> None:
    """Where many buffers are in use everything passes in smaller pieces, and the source knows how large they could be."""
    with a_line() as (line, feed):
        others = [line.pool.take() for _ in range(PLENTY)]
        for data in (noise(size, 1), noise(size, 2)):
            source = feed(1, data, small=small)
            sent = 0
            while sent < size:
                got = source.send()
                assert got is None or got == min(line.outbox.limit, size - sent)
                sent += got or 0
                line.reactor.end()
                assert line.pool.out <= PLENTY + 1
                line.drain()
            assert (b"".join(data for _, _, data in line.take_all()) == data) is True
        for buffer in others:
            line.pool.give_back(buffer)
        assert line.pool.out == 0


def test_small_buffer_is_replaced() -> None:
    """Once fewer buffers are in use large chunks are sent again."""
    with a_line() as (line, feed):
        others = [line.pool.take() for _ in range(PLENTY)]
        source = feed(1, bytes(100))
        source.send()
        line.finish()
        for buffer in others:
            line.pool.give_back(buffer)
        source.top_up()
        source.send()
        line.finish()
        source.top_up()
        assert (source.send() or 0) > SMALL_BUFFER


def test_answers_to_all_peers_are_bounded() -> None:
    """When too much waits for all slow peers together the one that is furthest behind is given up, whoever asked for more."""
    with a_line(NARROW) as (line, _), a_line(NARROW) as (other, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BACKLOG_ALL", BACKLOG)
        other.outbox._pool = line.pool
        for _ in range(60):
            line.outbox.write(bytes(64 * KIB))
        while not (line.lost or other.lost):
            assert line.pool.backlog <= BACKLOG
            other.outbox.write(bytes(64 * KIB))
        assert ([type(error) for error in line.lost], other.lost) == ([TimeoutError], [])
        assert line.pool.behind == {other.outbox}
        assert line.pool.backlog < other.outbox.waiting
        other.outbox.close()
        assert (line.pool.backlog, line.pool.behind) == (0, set())


def test_backlog_is_counted() -> None:
    """What waits beside the buffers is counted for all connections together, from the first byte to the last."""
    with a_line(NARROW) as (line, _):
        line.block()
        for _ in range(20):
            line.write_other(bytes(60_000))
        assert 0 < line.pool.backlog <= line.outbox.waiting
        line.finish()
        assert line.pool.backlog == 0


steps = st.lists(
    st.tuples(st.sampled_from(["data", "talk", "other", "turn", "room", "read", "hold"]), st.integers(1, 60_000)), max_size=40
)


@settings(max_examples=60)
@given(steps)
def test_everything_arrives_in_order(script: list[tuple[str, int]]) -> None:
    """Whatever happens when, packets arrive whole and in the order in which they were made, and then no buffer is held."""
    with a_line(NARROW) as (line, feed):
        sources = {"data": feed(1), "talk": feed(2, small=True)}
        expected: list[Packet] = []
        arrived: list[Packet] = []
        for name, count in script:
            if name in sources:
                expected += said(sources[name], os.urandom(count))
            elif name == "other":
                expected.append((OTHER, 0, bytes(count)))
                line.write_other(bytes(count))
            elif name == "hold":
                (line.outbox.hold if count % 2 else line.outbox.release)()
            elif name == "turn":
                line.reactor.turn()
            elif name == "room":
                line.writable()
            else:
                arrived += line.receive()
        line.outbox.release()
        arrived += line.finish()
        assert (arrived == expected) is True
        assert line.pool.out == 0


def said(source: Feed, data: bytes) -> list[Packet]:
    """The packet that becomes of this where the outbox takes some of it now; the rest is thrown away."""
    source.far.send(data)
    size = source.send()
    drained(source.near)
    return [(MSG_CHANNEL_DATA, source.number, data[:size])] if size else []


# asyncssh's way


@contextmanager
def plain_line() -> Iterator[tuple[AsyncsshOutbox, FakeReactor, Line, Make]]:
    """An outbox that hands everything to asyncssh."""
    with a_line() as (line, feed):
        reactor = FakeReactor()
        outbox = AsyncsshOutbox(reactor, line.send_packet)

        def plain(number: int, data: bytes = b"", *, small: bool = False) -> Feed:
            source = feed(number, data, small=small)
            source.outbox = outbox
            return source

        yield outbox, reactor, line, plain


def test_asyncssh_gets_packets() -> None:
    """Data goes to asyncssh at once, in packets of a size that everybody takes."""
    with plain_line() as (outbox, _, line, feed):
        source = feed(1, bytes(PLAIN_PACKET + 10))
        assert [source.send(), source.send()] == [PLAIN_PACKET, 10]
        assert [(number, len(data)) for _, number, data in line.plain] == [(1, PLAIN_PACKET), (1, 10)]
        assert outbox.limit == PLAIN_PACKET
        with pytest.raises(BlockingIOError):
            source.send()
        source.far.shutdown(socket.SHUT_WR)
        assert source.send() == 0
        assert len(line.plain) == 2


def test_asyncssh_s_sources_take_turns() -> None:
    """Turns are the same: round robin, conversation first."""
    with plain_line() as (outbox, reactor, line, feed):
        for number in (1, 2):
            outbox.enqueue(feed(number))
        talk = feed(3)
        talk.goes_on = False
        outbox.enqueue(talk, small=True)
        for _ in range(3):
            reactor.turn()
        assert line.turns[:7] == [3, 1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize("reason", ["full transport", "exchange of keys"])
def test_asyncssh_is_waited_for(reason: str) -> None:
    """While asyncssh's transport is full, or keys are exchanged, nothing is read; then it goes on by itself."""
    with plain_line() as (outbox, reactor, line, feed):
        stop, go = (outbox.pause, outbox.resume) if reason == "full transport" else (outbox.hold, outbox.release)
        source = feed(1)
        outbox.enqueue(source)
        stop()
        reactor.turn()
        assert (line.turns, source.send(), outbox.has_room) == ([], None, False)
        go()
        reactor.turn()
        assert line.turns == [1]


def test_both_reasons_to_wait_count() -> None:
    """Data waits for a full transport and for keys, whichever takes longer."""
    with plain_line() as (outbox, _, _, feed):
        source = feed(1, b"x")
        outbox.pause()
        outbox.hold()
        outbox.resume()
        assert source.send() is None
        outbox.pause()
        outbox.release()
        assert source.send() is None
        outbox.resume()
        assert source.send() == 1
