"""A splice carries bytes and ends both ways: over real TCP, with a stand-in for the SSH channel."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import cast

import asyncssh
import pytest

from knot_ssh.dataplane.splice import LINGER_OFF, LINGER_RESET, Splice, Splices

PATIENCE = 10.0
"""Seconds after which a test gives up waiting for what should come at once."""
BUFFER = 16 * 1024
"""Bytes that a socket's buffers are asked to hold, so that a test need not send much to fill them."""
MUCH = b"x" * (8 << 20)
"""More than the kernel takes without a reader."""
CLOSE_WAIT = 8
"""The state in which TCP has seen the peer's FIN and not sent its own (tcp(7), TCP_INFO)."""


HOLDER = """
import asyncio, sys
from knot_ssh.dataplane.splice import Splice

async def hold(port, count):
    splice = Splice()
    await asyncio.get_running_loop().create_connection(lambda: splice.socket_side, "127.0.0.1", port)
    splice.release("opening")
    splice.channel_side.data_received(b"x" * count, None)
    splice.channel_side.eof_received()
    while not splice.is_whole:
        await asyncio.sleep(0.001)
    print("whole", flush=True)
    await asyncio.Event().wait()

asyncio.run(hold(*map(int, sys.argv[1:])))
"""
"""Has data for the socket and both ends of the stream, and waits to be killed."""


class Carrier:
    """A connection that is there, until a test says otherwise."""

    lost = False


class Channel:
    """Stands in for an SSH channel: remembers what was sent over it, and what was asked of it."""

    def __init__(self) -> None:
        self.carrier = Carrier()
        self.sent = b""
        self.queued = 0
        self.calls: list[str] = []
        self.news = asyncio.Event()

    def get_connection(self) -> Carrier:
        return self.carrier

    def is_closing(self) -> bool:
        return "close" in self.calls or "abort" in self.calls

    def get_write_buffer_size(self) -> int:
        return self.queued

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._called(f"limits {high} {low}")

    def write(self, data: bytes) -> None:
        self.sent += data
        self.news.set()

    def write_eof(self) -> None:
        self._called("eof")

    def pause_reading(self) -> None:
        self._called("pause")

    def resume_reading(self) -> None:
        self._called("resume")

    def close(self) -> None:
        self._called("close")

    def abort(self) -> None:
        self._called("abort")

    def _called(self, name: str) -> None:
        self.calls.append(name)
        self.news.set()


class Watched(Splice):
    """A splice that tells when one of its sides has gone."""

    def __init__(self, on_open: Callable[[Splice], None] | None = None) -> None:
        super().__init__(on_open)
        self.news = asyncio.Event()

    def side_gone(self) -> None:
        super().side_gone()
        self.news.set()


class Bench:
    """A splice between a TCP connection, of which `far` is the other end, and a channel."""

    def __init__(self, splice: Watched, far: socket.socket, near: socket.socket) -> None:
        self.splice = splice
        self.far = far
        self.near = near
        self.channel = Channel()

    def open(self) -> None:
        """The channel has been opened."""
        self.splice.channel_side.connection_made(cast("asyncssh.SSHTCPChannel[bytes]", self.channel))

    def receive(self, data: bytes) -> None:
        """Data has come over the channel."""
        self.splice.channel_side.data_received(data, None)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the channel is as a test wants it."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.channel.news.clear()
                await self.channel.news.wait()

    async def sends(self, data: bytes) -> None:
        """The far end writes this."""
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_sendall(self.far, data)

    async def reads(self, count: int = 1 << 30) -> bytes:
        """What the far end reads, up to so much or a clean end; raises ConnectionResetError where that is a reset."""
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            while len(data) < count:
                part = await asyncio.get_running_loop().sock_recv(self.far, 1 << 20)
                if not part:
                    break
                data += part
        return bytes(data)

    async def is_reset(self) -> None:
        """The far end reads a reset, whatever came before."""
        with pytest.raises(ConnectionResetError):
            await self.reads()

    async def both_ended(self) -> None:
        """Both directions come to their proper end."""
        self.far.shutdown(socket.SHUT_WR)
        await self.until(lambda: "eof" in self.channel.calls)
        self.splice.channel_side.eof_received()

    async def socket_gone(self) -> None:
        """Wait until the splice has no socket any more."""
        async with asyncio.timeout(PATIENCE):
            while not self.splice.socket_side.gone:
                self.splice.news.clear()
                await self.splice.news.wait()

    def linger(self) -> bytes:
        """Whether closing would reset."""
        return self.near.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(LINGER_OFF))

    def tcp_state(self) -> int:
        """The state of the near end, as the kernel has it."""
        return self.near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, with small buffers."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    far.setblocking(False)
    return far, near


async def benched(splice: Watched) -> Bench:
    """This splice on a new connection."""
    far, near = connected()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: splice.socket_side, near)
    return Bench(splice, far, near)


def drain(sock: socket.socket) -> None:
    """Read to a clean end."""
    while sock.recv(1 << 20):
        pass


async def cleared(bench: Bench) -> None:
    """Leave nothing open behind a test."""
    bench.splice.abort()
    bench.far.close()
    await bench.socket_gone()


@pytest.fixture
async def unopened() -> AsyncIterator[Bench]:
    """A splice whose channel is still being asked for."""
    bench = await benched(Watched())
    yield bench
    await cleared(bench)


@pytest.fixture
async def bench(unopened: Bench) -> Bench:
    """A splice whose channel is open."""
    unopened.open()
    return unopened


# Bytes and proper ends


async def test_bytes_both_ways(bench: Bench) -> None:
    """What one side sends the other side gets."""
    await bench.sends(b"question")
    await bench.until(lambda: bench.channel.sent == b"question")
    bench.receive(b"ans")
    bench.receive(b"wer")
    assert await bench.reads(6) == b"answer"


async def test_peer_is_known(bench: Bench) -> None:
    """The splice knows who is at the other end of the socket."""
    assert bench.splice.socket_side.peer == bench.far.getsockname()


async def test_fin_becomes_channel_eof(bench: Bench) -> None:
    """A FIN is passed on as CHANNEL_EOF after the last byte, and the other direction goes on."""
    await bench.sends(b"last words")
    bench.far.shutdown(socket.SHUT_WR)
    await bench.until(lambda: "eof" in bench.channel.calls)
    assert (bench.channel.sent, bench.channel.calls) == (b"last words", ["eof"])
    bench.receive(b"still here")
    assert await bench.reads(10) == b"still here"


async def test_channel_eof_becomes_fin(bench: Bench) -> None:
    """A CHANNEL_EOF is passed on as FIN after the last byte, and the other direction goes on."""
    bench.receive(b"last words")
    bench.splice.channel_side.eof_received()
    assert await bench.reads() == b"last words"
    await bench.sends(b"still here")
    await bench.until(lambda: bench.channel.sent == b"still here")
    assert bench.channel.calls == []


async def test_both_ends_close_both_sides(bench: Bench) -> None:
    """When both directions have ended, both sides are closed and neither is reset."""
    bench.receive(b"answer")
    await bench.both_ended()
    assert await bench.reads() == b"answer"
    await bench.socket_gone()
    assert bench.channel.calls == ["eof", "close"]


# The last bytes


async def test_reset_is_armed_from_birth(unopened: Bench) -> None:
    """From its first instant a socket would be reset if the process died."""
    assert unopened.linger() == LINGER_RESET


async def test_fin_waits_for_the_last_byte(bench: Bench) -> None:
    """While bytes wait in our own buffer no FIN is sent and a reset stays armed; then everything comes, and a clean end."""
    bench.receive(MUCH)
    await bench.both_ended()
    assert bench.splice.is_whole
    assert (bench.tcp_state(), bench.linger()) == (CLOSE_WAIT, LINGER_RESET)
    start = await bench.reads(1 << 20)
    assert (bench.tcp_state(), bench.linger()) == (CLOSE_WAIT, LINGER_RESET)
    assert start + await bench.reads() == MUCH
    await bench.socket_gone()


async def test_fin_waits_for_the_last_byte_of_a_closed_channel(bench: Bench) -> None:
    """So too when the channel has ended and is gone already: its last bytes are delivered before a clean end."""
    bench.receive(MUCH)
    bench.splice.channel_side.eof_received()
    bench.splice.channel_side.connection_lost(None)
    assert not bench.splice.socket_side.gone
    assert bench.linger() == LINGER_RESET
    assert await bench.reads() == MUCH
    await bench.socket_gone()


def test_process_that_dies_before_the_last_byte_resets() -> None:
    """A process that is killed while bytes wait in it resets: the far end does not take the stream for whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", HOLDER, str(listener.getsockname()[1]), str(len(MUCH))]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
            listener.settimeout(PATIENCE)
            far, _ = listener.accept()
            with far:
                far.settimeout(PATIENCE)
                far.shutdown(socket.SHUT_WR)
                assert holder.stdout
                assert holder.stdout.readline() == b"whole\n"
                holder.kill()
                holder.wait()
                with pytest.raises(ConnectionResetError):
                    drain(far)


async def test_abort_before_the_last_byte_resets(bench: Bench) -> None:
    """A splice that is aborted while bytes wait resets, also after both ends."""
    bench.receive(MUCH)
    await bench.both_ended()
    bench.splice.socket_side.abort()
    await bench.is_reset()


async def test_channel_eof_waits_for_its_last_byte(bench: Bench) -> None:
    """The channel is closed only when what is queued on it, and CHANNEL_EOF behind that, has left."""
    bench.splice.channel_side.eof_received()
    bench.channel.queued = 7
    bench.far.shutdown(socket.SHUT_WR)
    await bench.until(lambda: "limits 0 0" in bench.channel.calls)
    assert "close" not in bench.channel.calls
    bench.channel.queued = 0
    bench.splice.channel_side.resume_writing()
    assert "close" not in bench.channel.calls
    await bench.until(lambda: "close" in bench.channel.calls)
    assert bench.channel.calls == ["eof", "limits 0 0", "close"]


# Broken ends


async def test_reset_closes_the_channel_without_eof(bench: Bench) -> None:
    """A reset socket is passed on as CHANNEL_CLOSE without CHANNEL_EOF."""
    bench.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    bench.far.close()
    await bench.until(lambda: "abort" in bench.channel.calls)
    assert bench.channel.calls == ["abort"]


async def test_channel_close_without_eof_resets(bench: Bench) -> None:
    """A CHANNEL_CLOSE without CHANNEL_EOF is passed on as RST."""
    bench.receive(b"half a stre")
    bench.splice.channel_side.connection_lost(None)
    await bench.is_reset()


async def test_lost_connection_resets(bench: Bench) -> None:
    """A lost connection is passed on as RST even after CHANNEL_EOF: the other direction was cut."""
    bench.receive(MUCH)
    bench.splice.channel_side.eof_received()
    bench.channel.carrier.lost = True
    bench.splice.channel_side.connection_lost(asyncssh.ConnectionLost("gone"))
    await bench.is_reset()


async def test_lost_connection_after_both_ends(bench: Bench) -> None:
    """Once both directions have ended, a lost connection takes nothing back."""
    bench.receive(MUCH)
    await bench.both_ended()
    bench.channel.carrier.lost = True
    bench.splice.channel_side.connection_lost(asyncssh.ConnectionLost("gone"))
    assert await bench.reads() == MUCH


async def test_abort_ends_both_sides(bench: Bench) -> None:
    """Who aborts a splice resets the socket and closes the channel without CHANNEL_EOF."""
    bench.splice.abort()
    assert bench.channel.calls == ["abort"]
    await bench.is_reset()


async def test_socket_that_went_away_while_the_channel_opened(unopened: Bench) -> None:
    """A channel that opens when the socket is gone is closed at once."""
    unopened.splice.abort()
    await unopened.socket_gone()
    unopened.open()
    assert unopened.channel.calls == ["abort"]


# Slowing down


async def test_nothing_is_read_before_the_channel_is_open(unopened: Bench) -> None:
    """What the far end sends before the channel is open stays with the kernel, and is passed on then."""
    transport = unopened.splice.socket_side._transport
    assert transport
    await unopened.sends(b"early")
    assert not transport.is_reading()
    unopened.open()
    assert transport.is_reading()
    await unopened.until(lambda: unopened.channel.sent == b"early")


async def test_reading_waits_for_every_reason(bench: Bench) -> None:
    """Nothing is read until every reason to wait has been taken back, in whatever order."""
    transport = bench.splice.socket_side._transport
    assert transport
    for reason in ("channel", "connection", "channel"):
        bench.splice.brake(reason)
        assert not transport.is_reading()
    await bench.sends(b"later")
    bench.splice.release("channel")
    assert not transport.is_reading()
    bench.splice.release("something else")
    assert not transport.is_reading()
    bench.splice.release("connection")
    assert transport.is_reading()
    await bench.until(lambda: bench.channel.sent == b"later")


async def test_opening_is_a_reason_of_its_own(unopened: Bench) -> None:
    """A channel that opens on a connection that is full does not start reading yet."""
    transport = unopened.splice.socket_side._transport
    assert transport
    unopened.splice.brake("connection")
    unopened.open()
    assert not transport.is_reading()
    unopened.splice.release("connection")
    assert transport.is_reading()


async def test_full_channel_stops_the_socket(bench: Bench) -> None:
    """While the channel takes nothing, nothing is read from the socket."""
    transport = bench.splice.socket_side._transport
    assert transport
    bench.splice.channel_side.pause_writing()
    assert not transport.is_reading()
    await bench.sends(b"x")
    bench.splice.channel_side.resume_writing()
    await bench.until(lambda: bench.channel.sent == b"x")


async def test_full_socket_stops_the_channel(bench: Bench) -> None:
    """While the far end reads nothing, nothing more is taken from the channel; it goes on once the far end reads."""
    bench.receive(MUCH)
    assert bench.channel.calls == ["pause"]
    assert await bench.reads(len(MUCH)) == MUCH
    await bench.until(lambda: bench.channel.calls == ["pause", "resume"])


async def test_brakes_of_a_closed_socket(bench: Bench) -> None:
    """Slowing down what is gone already does nothing."""
    bench.splice.abort()
    await bench.socket_gone()
    bench.splice.brake("connection")
    bench.splice.release("connection")
    bench.splice.socket_side.write(b"x")
    bench.splice.socket_side.write_eof()


# Owners


async def test_owner_hears_of_the_socket() -> None:
    """The owner hears once the socket is there, and may ask for the channel then."""
    heard: list[tuple[str, int]] = []
    bench = await benched(Watched(lambda splice: heard.append(splice.socket_side.peer)))
    assert heard == [bench.far.getsockname()]
    await cleared(bench)


async def test_owner_hears_of_the_end_once(bench: Bench) -> None:
    """An owner hears of the end when both sides are gone, and only once."""
    heard: list[Splice] = []
    bench.splice.on_closed.append(heard.append)
    bench.splice.abort()
    await bench.socket_gone()
    assert (heard, bench.splice.is_gone) == ([], False)
    bench.splice.channel_side.connection_lost(None)
    assert (heard, bench.splice.is_gone) == ([bench.splice], True)
    bench.splice.side_gone()
    assert heard == [bench.splice]


async def test_idle_without_splices() -> None:
    """Who owns no splice need not wait."""
    async with asyncio.timeout(PATIENCE):
        await Splices().wait_idle()


async def test_idle_when_the_last_has_closed(bench: Bench) -> None:
    """An owner is idle when of the last splice both sides are gone, and not before."""
    owner, other = Splices(), await benched(Watched())
    owner.add(bench.splice)
    owner.add(other.splice)
    idle = asyncio.ensure_future(owner.wait_idle())
    await cleared(other)
    await asyncio.sleep(0)
    assert not idle.done()
    await bench.both_ended()
    await bench.socket_gone()
    await asyncio.sleep(0)
    assert not idle.done()
    bench.splice.channel_side.connection_lost(None)
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_not_idle_while_the_last_byte_waits(bench: Bench) -> None:
    """A splice whose channel is gone counts until the kernel has taken its last byte."""
    owner = Splices()
    owner.add(bench.splice)
    idle = asyncio.ensure_future(owner.wait_idle())
    bench.receive(MUCH)
    await bench.both_ended()
    bench.splice.channel_side.connection_lost(None)
    await bench.reads(1 << 20)
    assert not idle.done()
    await bench.reads()
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_idle_again_after_more(bench: Bench) -> None:
    """An owner that was idle is so no more with a new splice, and again when that is taken from it."""
    owner = Splices()
    await owner.wait_idle()
    owner.add(bench.splice)
    idle = asyncio.ensure_future(owner.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    owner.remove(bench.splice)
    owner.remove(bench.splice)
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_two_owners(bench: Bench) -> None:
    """A splice may have several owners: each hears of its end."""
    owners = Splices(), Splices()
    for owner in owners:
        owner.add(bench.splice)
    bench.splice.abort()
    await bench.socket_gone()
    bench.splice.channel_side.connection_lost(None)
    async with asyncio.timeout(PATIENCE):
        for owner in owners:
            await owner.wait_idle()


async def test_owner_aborts_every_one(bench: Bench) -> None:
    """An owner may reset all its splices."""
    owner, other = Splices(), await benched(Watched())
    owner.add(bench.splice)
    owner.add(other.splice)
    owner.abort()
    await bench.is_reset()
    await other.is_reset()
    bench.splice.channel_side.connection_lost(None)
    async with asyncio.timeout(PATIENCE):
        await owner.wait_idle()
    await cleared(other)


async def test_owner_slows_every_one_down(bench: Bench) -> None:
    """An owner may stop and start the reading of all its splices."""
    owner, other = Splices(), await benched(Watched())
    other.open()
    transports = [one.splice.socket_side._transport for one in (bench, other)]
    owner.add(bench.splice)
    owner.add(other.splice)
    owner.brake("connection")
    assert [transport.is_reading() for transport in transports if transport] == [False, False]
    owner.release("connection")
    assert [transport.is_reading() for transport in transports if transport] == [True, True]
    await cleared(other)
