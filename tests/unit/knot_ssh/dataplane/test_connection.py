"""Connections that carry channels: client and server in one process, on every mixture of data planes and ciphers."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_GLOBAL_REQUEST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
)
from asyncssh.packet import Boolean, Byte, NameList, String, UInt32
from hypothesis import given, settings
from hypothesis import strategies as st

from knot_ssh.dataplane import connection as module
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.connection import PACKET_LENGTH, CarryingConnection
from knot_ssh.dataplane.limits import KIB, MIB, OPEN_BURST_SECONDS, WINDOW_MAX, WINDOW_MAX_OPENSSH, Limits
from knot_ssh.dataplane.listening import born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from tests.support.planes import stock_plane
from tests.support.reactors import on_fast, run_on
from tests.support.services import free_port, noise
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, connected
from tests.unit.knot_ssh.dataplane.duo import (
    SIDES,
    Duo,
    ServerConnection,
    Stream,
    joined,
    listener,
    planes,
    read_all,
    relayed,
    say,
    server_options,
    serving,
    stock,
)

GCM, CHACHA, CTR = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"
NOBODYS = 4711
"""A channel number that nobody was given."""
LATE = 2.0
"""Seconds that a timer may be late on a busy machine."""

sides = pytest.mark.parametrize("sides", SIDES)
servers = pytest.mark.parametrize("sides", ["fast-fast", "fast-stock"])
"""Where it is the server that a test is about."""
ciphers = pytest.mark.parametrize("cipher", [GCM, "aes256-gcm@openssh.com", CHACHA, CTR])


@asynccontextmanager
async def carrying(
    plane: DataPlane, sides: str, limits: Limits | None = None, **options: Any
) -> AsyncIterator[tuple[Duo, Stream]]:
    """Both connections, and a forwarded connection over them."""
    async with joined(*planes(plane, sides, limits), **options) as duo, duo.forwarded() as stream:
        yield duo, stream


# Streams


@sides
@ciphers
@on_fast
async def test_streams_pass(plane: DataPlane, sides: str, cipher: str) -> None:
    """Streams pass both ways at once, whole and with their ends, whatever the planes and the cipher."""
    async with joined(*planes(plane, sides), encryption_algs=[cipher]) as duo:
        async with duo.forwarded() as stream, duo.forwarded() as other:
            await asyncio.gather(stream.exchange(noise(1_000_000, 1), noise(1_500_000, 2)), other.exchange(b"", noise(10)))
        assert duo.client.get_extra_info("send_cipher") == cipher
        assert duo.server.get_extra_info("send_cipher") == cipher


@sides
@on_fast
async def test_conversation_passes(plane: DataPlane, sides: str) -> None:
    """Small questions and answers go back and forth."""
    async with carrying(plane, sides) as (_, stream):
        for size in (1, 5, 1000, 1):
            await stream.ask(noise(size, 1), noise(size, 2))


@sides
@on_fast
async def test_every_size_passes(plane: DataPlane, sides: str) -> None:
    """Packets of all sizes pass, whatever their padding."""
    async with carrying(plane, sides) as (_, stream):
        for size in [*range(1, 50), 4095, 4096, 4097, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1]:
            await stream.ask(noise(size))


@sides
@on_fast
async def test_half_close_passes(plane: DataPlane, sides: str) -> None:
    """Each direction ends by itself."""
    async with carrying(plane, sides) as (_, stream):
        stream.app.shutdown(socket.SHUT_WR)
        assert await read_all(stream.service) == b""
        await asyncio.get_running_loop().sock_sendall(stream.service, noise(300_000))
        stream.service.shutdown(socket.SHUT_WR)
        assert (await read_all(stream.app) == noise(300_000)) is True


@sides
@on_fast
async def test_many_channels(plane: DataPlane, sides: str) -> None:
    """Many channels at once pass what is theirs, and nothing is left of them then."""
    async with joined(*planes(plane, sides)) as duo:
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(duo.forwarded()) for _ in range(50)]
            await asyncio.gather(
                *(stream.exchange(noise(20_000, count), noise(30_000, -count)) for count, stream in enumerate(streams))
            )
        await duo.client.wait_idle()
        await duo.server.wait_idle()
        for side in (duo.client, duo.server):
            assert (side.tally.opened, side.tally.open) == (50, 0)
            assert (side._channels, side.plane.budget.left) == ({}, side.plane.limits.in_flight)
        assert duo.client.tally.sent == duo.server.tally.received == 50 * 20_000
        assert duo.client.tally.received == duo.server.tally.sent == 50 * 30_000


@sides
@on_fast
async def test_slow_reader_holds_nobody_up(plane: DataPlane, sides: str) -> None:
    """A reader that has stopped holds its own channel up, and no other one; then it gets everything."""
    much = noise(12 * MIB)
    async with (
        joined(*planes(plane, sides, Limits(in_flight=MIB))) as duo,
        duo.forwarded() as slow,
        duo.forwarded() as other,
    ):
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(slow.app, much))
        await becomes(lambda: duo.client.tally.sent > MIB)
        await other.exchange(noise(500_000, 1), noise(500_000, 2))
        assert not sending.done()
        reading = asyncio.ensure_future(read_all(slow.service))
        await sending
        slow.app.shutdown(socket.SHUT_WR)
        assert (await reading == much) is True


@sides
@on_fast
async def test_refused_port_resets(plane: DataPlane, sides: str) -> None:
    """Where nobody listens the application is reset, and everybody knows why."""
    async with joined(*planes(plane, sides)) as duo:
        port = free_port()
        near, app = connected()
        with app:
            duo.ask(near, port)
            with pytest.raises(ConnectionResetError):
                await read_all(app)
        reason = f"port {port}: connection refused"
        assert duo.owner.heard == duo.doors.heard == [f"refused: {reason}", "gone"]
        assert (duo.client.tally.refused, duo.client.tally.last_error) == (1, reason)


@sides
@on_fast
async def test_asyncssh_s_channels_pass(plane: DataPlane, sides: str) -> None:
    """Channels of asyncssh's own pass over the same connection, beside ours and through exchanges of keys."""
    data = noise(1_500_000)
    async with carrying(plane, sides, rekey_bytes=200 * KIB) as (duo, stream):
        with listener() as listening:
            reader, writer = await duo.client.open_connection("127.0.0.1", listening.getsockname()[1])
            service, _ = await asyncio.get_running_loop().sock_accept(listening)
        with service:
            writer.write(data)
            writer.write_eof()
            got = await asyncio.gather(read_all(service), reader.read(), say(service, data), stream.exchange(data, data))
            assert (got[0] == data) is True
            assert (got[1] == data) is True
        writer.close()


# Whatever happens


class End:
    """One end of a stream: what it has written and read, and how reading has ended."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.written = bytearray()
        self.got = bytearray()
        self.end = ""
        self.is_done = False
        self.steps = {"write": self.write, "read": self.read, "fin": self.fin, "reset": self.reset}

    def write(self, size: int) -> None:
        if self.is_done:
            return
        data = noise(size, len(self.written))
        try:
            self.written += data[: self.sock.send(data)]
        except BlockingIOError:
            return
        except OSError:  # told once: reading would only show an end now
            self.is_done, self.end = True, "reset"

    def read(self, size: int) -> None:
        if self.end:
            return
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.end = "reset"
            return
        self.got += data
        self.end = "" if data else "fin"

    def fin(self, _size: int) -> None:
        if self.is_done:
            return
        self.is_done = True
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.end = self.end or "reset"

    def reset(self, _size: int) -> None:
        if not self.end:
            self.is_done, self.end = True, "reset"
            born_to_reset(self.sock).close()

    def check(self, other: End) -> None:
        """What holds at all times for what the other end writes."""
        assert other.written.startswith(self.got), "what is read is a prefix of what was written"
        if self.end == "fin":
            assert self.got == other.written, "a clean end is shown only for a whole stream"
            assert other.is_done

    def has_all(self, other: End) -> bool:
        """Whether all that the other end has said has arrived, its end too; where one was reset, whether both know."""
        self.read(1 << 20)
        if "reset" in (self.end, other.end):
            return bool(self.end) or not other.end
        return self.got == other.written and (self.end == "fin") == other.is_done


script = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "read", "read", "fin", "reset", "client keys", "server keys"]),
        st.integers(0, 3),
        st.integers(1, 300_000),
        st.integers(0, 2),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(st.sampled_from(SIDES), script)
def test_whatever_happens(sides: str, script: list[tuple[str, int, int, int]]) -> None:
    """Whatever both ends of two streams do, and whenever keys are exchanged, the rules of how streams end hold.

    What one end reads is a prefix of what the other wrote, only whole streams end cleanly, and everything arrives unless an
    end resets.
    """

    async def live(plane: DataPlane) -> None:
        async with joined(*planes(plane, sides)) as duo, duo.forwarded() as one, duo.forwarded() as two:
            ends = [End(sock) for stream in (one, two) for sock in (stream.app, stream.service)]
            pairs = [(ends[0], ends[1]), (ends[1], ends[0]), (ends[2], ends[3]), (ends[3], ends[2])]
            for name, which, size, turns in script:
                step(duo, ends[which], name, size)
                for _ in range(turns):
                    await asyncio.sleep(0)
                for end, other in pairs:
                    end.check(other)
            await becomes(lambda: False not in [end.has_all(other) for end, other in pairs], PATIENCE)
            for end, other in pairs:
                end.check(other)
            assert not duo.client.lost
            assert not duo.server.lost

    run_on("fast", live)


def step(duo: Duo, end: End, name: str, size: int) -> None:
    """One step of a script."""
    if name in end.steps:
        end.steps[name](size)
    else:
        side = duo.client if name == "client keys" else duo.server
        if side._kex_complete:
            side.exchange_keys()


# Exchange of keys


@sides
@pytest.mark.parametrize("cipher", [GCM, CHACHA])
@on_fast
async def test_keys_are_exchanged_while_data_flows(plane: DataPlane, sides: str, cipher: str) -> None:
    """New keys every megabyte, while data flows both ways on several channels: nothing is lost, and nothing is late."""
    async with carrying(plane, sides, rekey_bytes=MIB, encryption_algs=[cipher]) as (duo, stream):
        async with duo.forwarded() as other:
            there, back = noise(2 * MIB, 1), noise(3 * MIB, 2)
            await asyncio.gather(stream.exchange(there, back), other.exchange(back, there))
        assert duo.client.exchanges >= 5
        assert duo.client.exchanges == duo.server.exchanges


@sides
@on_fast
async def test_keys_are_exchanged_from_both_sides_at_once(plane: DataPlane, sides: str) -> None:
    """Both sides may begin to exchange keys at the same time, and in the middle of a conversation."""
    async with carrying(plane, sides) as (duo, stream):
        for count in range(2, 6):
            duo.client.exchange_keys()
            duo.server.exchange_keys()
            await stream.ask()
            await becomes(lambda: duo.client.exchanges == duo.server.exchanges == count)  # noqa: B023
        await stream.exchange(noise(500_000, 1), noise(500_000, 2))


@sides
@on_fast
async def test_keys_are_exchanged_after_a_while(plane: DataPlane, sides: str) -> None:
    """Keys that are old are exchanged, however little was sent with them."""
    async with carrying(plane, sides, rekey_seconds=1) as (duo, stream):
        duo.client._rekey_time = 0
        await stream.ask()
        await becomes(lambda: duo.client.exchanges >= 2 and duo.server.exchanges >= 2)
        await stream.ask()


@sides
@on_fast
async def test_another_cipher(plane: DataPlane, sides: str) -> None:
    """An exchange of keys may change to a cipher of another family, and back, while data flows both ways."""
    async with carrying(plane, sides) as (duo, stream):
        data = noise(3 * MIB)
        passing = asyncio.ensure_future(stream.exchange(data, data))
        async with duo.forwarded() as talk:
            for count, cipher in enumerate([CHACHA, CTR, GCM, CTR, GCM, CHACHA], start=2):
                duo.client._enc_algs = [cipher.encode()]
                duo.client.exchange_keys()
                await becomes(lambda: duo.client.exchanges == duo.server.exchanges == count)  # noqa: B023
                assert duo.server.get_extra_info("send_cipher") == cipher
                await talk.ask()
        await passing


@sides
@on_fast
async def test_channels_open_and_end_while_keys_are_exchanged(plane: DataPlane, sides: str) -> None:
    """Requests, grants and ends that fall into an exchange of keys are served after it, in their order."""
    async with joined(*planes(plane, sides)) as duo:
        for _ in range(5):
            duo.client.exchange_keys()
            duo.server.exchange_keys()
            async with duo.forwarded() as stream:
                await stream.exchange(noise(3 * MIB, 1), noise(100, 2))
        await duo.client.wait_idle()
        await duo.server.wait_idle()


# Ends of the connection


@sides
@on_fast
async def test_lost_connection_resets_everything(plane: DataPlane, sides: str) -> None:
    """When the connection ends every channel is reset on both sides, and new ones are refused."""
    async with carrying(plane, sides) as (duo, stream):
        async with duo.forwarded() as other:
            await stream.ask()
            duo.client.abort()
            await stream.is_reset()
            await other.is_reset()
        await duo.server_lost()
        await duo.client.wait_idle()
        assert duo.client.lost
        near, app = connected()
        with app:
            duo.ask(near, 80)
            with pytest.raises(ConnectionResetError):
                await read_all(app)


@sides
@on_fast
async def test_channels_of_a_lost_connection_are_gone_once(plane: DataPlane, sides: str) -> None:
    """Each owner hears once of each channel that goes down with the connection, also of what was being opened."""
    async with carrying(plane, sides) as (duo, stream):
        doors = duo.doors
        near, app = connected()
        with app:
            duo.ask(near, 80)
            duo.client.abort()
            await stream.is_reset()
            await duo.server_lost()
        await duo.client.wait_idle()
        await duo.server.wait_idle()
        assert sorted(duo.owner.heard) == ["gone", "gone", "opened", "unanswered"]
        assert doors.heard.count("opened") == 1
        assert doors.heard.count("gone") in (1, 2)
        for side in (duo.client, duo.server):
            assert side.plane.budget.left == side.plane.limits.in_flight


@sides
@on_fast
async def test_connection_that_is_closed_politely(plane: DataPlane, sides: str) -> None:
    """Who closes the connection resets its channels, and tells the peer."""
    async with carrying(plane, sides) as (duo, stream):
        duo.client.close()
        await stream.is_reset()
        assert isinstance(await duo.server_lost(), asyncssh.DisconnectError | None)


async def test_connection_that_was_never_made() -> None:
    """A connection that never had a transport has ended."""
    made: list[ServerConnection] = []
    connection = (await server_options(stock(), made))()
    assert made == [connection]
    async with asyncio.timeout(PATIENCE):
        await connection.wait_gone()
    assert connection.lost


@sides
@pytest.mark.parametrize("direction", ["there", "back"])
@pytest.mark.parametrize("cipher", [GCM, CHACHA, CTR])
@on_fast
async def test_altered_byte(plane: DataPlane, sides: str, direction: str, cipher: str) -> None:
    """A byte that is altered on its way ends the connection: both ends of every stream see a reset, and nothing wrong."""
    async with relayed(*planes(plane, sides), encryption_algs=[cipher]) as (duo, relay), duo.forwarded() as stream:
        await stream.ask()
        relay.flip = direction
        await asyncio.get_running_loop().sock_sendall(stream.app if direction == "there" else stream.service, bytes(1000))
        await stream.is_reset()
        side = duo.server if direction == "there" else duo.client
        await becomes(lambda: side.lost)
        assert isinstance(side.error, asyncssh.ProtocolError | asyncssh.MACError)


@sides
@on_fast
async def test_network_that_is_cut(plane: DataPlane, sides: str) -> None:
    """A connection that ends in the middle of everything resets both ends of every stream."""
    async with relayed(*planes(plane, sides)) as (duo, relay), duo.forwarded() as stream:
        passing = asyncio.ensure_future(stream.exchange(noise(20 * MIB), noise(20 * MIB)))
        await becomes(lambda: relay.carried > MIB)
        await relay.close()
        with pytest.raises(ConnectionResetError):
            await passing
        await becomes(lambda: duo.client.lost and duo.server.lost)


# What breaks the protocol


@servers
@pytest.mark.parametrize("length", [0, 8, 15, 17, PACKET_LENGTH + 16 - PACKET_LENGTH % 16, 2**32 - 16])
@on_fast
async def test_impossible_length(plane: DataPlane, sides: str, length: int) -> None:
    """A packet that is too long, too short or no whole number of blocks ends the connection before it is waited for."""
    async with carrying(plane, sides) as (duo, stream):
        duo.client.plane_transport.write(struct.pack(">I", length) + bytes(60))
        if sides == "fast-fast":
            assert isinstance(await duo.server_lost(), asyncssh.ProtocolError)
        elif length > 16 * MIB:
            await duo.server_lost()
        else:
            duo.client.abort()
        await stream.is_reset()


Said = list[tuple[int, bytes]]
"""Packets: their types, and what follows the channel's number."""

WRONG: dict[str, Said] = {
    "data with a rest": [(MSG_CHANNEL_DATA, String(b"data") + b"x")],
    "data that is cut": [(MSG_CHANNEL_DATA, UInt32(10) + b"data")],
    "data without length": [(MSG_CHANNEL_DATA, b"")],
    "data beyond the window": [(MSG_CHANNEL_DATA, String(bytes(32 * KIB)))] * 320,
    "window with a rest": [(MSG_CHANNEL_WINDOW_ADJUST, UInt32(1) + b"x")],
    "window without size": [(MSG_CHANNEL_WINDOW_ADJUST, b"")],
    "window beyond its largest": [(MSG_CHANNEL_WINDOW_ADJUST, UInt32(2**32 - 1))],
    "end with a rest": [(MSG_CHANNEL_EOF, b"x")],
    "two ends": [(MSG_CHANNEL_EOF, b"")] * 2,
    "data after the end": [(MSG_CHANNEL_EOF, b""), (MSG_CHANNEL_DATA, String(b"data"))],
    "close with a rest": [(MSG_CHANNEL_CLOSE, b"xxxx")],
    "two closes": [(MSG_CHANNEL_CLOSE, b"")] * 2,
    "confirmation of what was not asked": [(MSG_CHANNEL_OPEN_CONFIRMATION, UInt32(1) + UInt32(1000) + UInt32(1000))],
    "confirmation without terms": [(MSG_CHANNEL_OPEN_CONFIRMATION, UInt32(1))],
}
"""What no peer may send for a channel that is open."""

NONSENSE: dict[str, tuple[int, bytes]] = {
    "data for nobody": (MSG_CHANNEL_DATA, UInt32(NOBODYS) + String(b"data")),
    "window for nobody": (MSG_CHANNEL_WINDOW_ADJUST, UInt32(NOBODYS) + UInt32(1)),
    "end of nobody": (MSG_CHANNEL_EOF, UInt32(NOBODYS)),
    "close of nobody": (MSG_CHANNEL_CLOSE, UInt32(NOBODYS)),
    "no channel number": (MSG_CHANNEL_DATA, b"xx"),
    "a request that is cut": (MSG_CHANNEL_OPEN, String("direct-tcpip") + UInt32(1)),
}
"""What no peer may send at all."""


@servers
@pytest.mark.parametrize("name", WRONG)
@on_fast
async def test_what_breaks_the_protocol(plane: DataPlane, sides: str, name: str) -> None:
    """Whatever no peer may send for a channel ends its connection, and both ends of the streams see that."""
    async with carrying(plane, sides, Limits(in_flight=MIB)) as (duo, stream):
        await stream.ask()
        for kind, payload in WRONG[name]:
            duo.send(kind, stream.channel, payload)
            await becomes(lambda: duo.client.lost or duo.client.plane_transport.get_write_buffer_size() < MIB)
        await is_thrown_out(duo, stream)


@servers
@pytest.mark.parametrize("name", NONSENSE)
@on_fast
async def test_nonsense(plane: DataPlane, sides: str, name: str) -> None:
    """Whatever makes no sense ends its connection."""
    async with carrying(plane, sides) as (duo, stream):
        await stream.ask()
        duo.client.send_packet(*NONSENSE[name])
        await is_thrown_out(duo, stream)


@on_fast
async def test_padding_that_is_too_long(plane: DataPlane) -> None:
    """A packet that claims more padding than there is of it ends its connection."""
    async with carrying(plane, "fast-fast") as (duo, stream):
        await stream.ask()
        body = bytes((255, MSG_CHANNEL_DATA)) + bytes(30)
        sealer = duo.client._sealer
        assert sealer
        duo.client.plane_transport.write(b"".join(sealer.encrypt_packet(0, UInt32(len(body)), body)))
        await is_thrown_out(duo, stream)


@servers
@on_fast
async def test_others_are_not_harmed(plane: DataPlane, sides: str) -> None:
    """A connection that ends for breaking the protocol takes no other one with it."""
    client, server = planes(plane, sides)
    async with joined(client, server) as good, good.forwarded() as stream, joined(client, server) as bad:
        bad.client.send_packet(*NONSENSE["data for nobody"])
        await bad.server_lost()
        await stream.exchange(noise(100_000, 1), noise(100_000, 2))


@servers
@on_fast
async def test_everything_at_once(plane: DataPlane, sides: str) -> None:
    """A client that sends its part of the first exchange of keys in one go, and much that is nonsense behind, is thrown out."""
    async with serving(planes(plane, sides)[1]) as (port, made):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            with does_not_matter():
                await asyncio.get_running_loop().sock_sendall(client, first_exchange() + noise(100_000))
            await read_to_the_end(client)
        await becomes(lambda: made[0].lost)
        assert isinstance(made[0].error, asyncssh.DisconnectError)


# Bounds


@servers
@on_fast
async def test_tiny_packets_are_slowed_down(plane: DataPlane, sides: str) -> None:
    """Who sends more tiny packets than it may is not read from for a while; everything arrives all the same."""
    loop = asyncio.get_running_loop()
    count, rate = 3000, 2000
    async with carrying(plane, sides, Limits(small_packets=rate)) as (duo, stream):
        reasons: list[str] = []
        stop = duo.server.stop_reading

        def note(reason: str) -> None:
            reasons.append(reason)
            stop(reason)

        duo.server.stop_reading = note  # type: ignore[method-assign]
        await stream.ask()
        began = loop.time()
        for _ in range(count):
            duo.send(MSG_CHANNEL_DATA, stream.channel, String(b"x"))
        got = b""
        async with asyncio.timeout(4 * PATIENCE):
            while len(got) < count:
                got += await loop.sock_recv(stream.service, count)
        assert "throttled" in reasons
        if sides == "fast-fast":  # asyncio's transports read in large pieces: there it takes more to be slower
            assert loop.time() - began > 0.5 * (count - rate) / rate
        await becomes(lambda: not duo.server._not_reading)
        await stream.ask()


@servers
@on_fast
async def test_large_packets_are_not_slowed_down(plane: DataPlane, sides: str) -> None:
    """Bulk is no crowd of tiny packets."""
    async with carrying(plane, sides, Limits(small_packets=1000)) as (duo, stream):
        await stream.exchange(noise(3 * MIB), noise(3 * MIB))
        assert duo.server._small.left(plane.reactor.now) > 0


@sides
@on_fast
async def test_channels_are_bounded(plane: DataPlane, sides: str) -> None:
    """A server opens so many channels of one connection and refuses the next, until one of them is gone."""
    async with joined(*planes(plane, sides, Limits(channels=2))) as duo, duo.forwarded() as first:
        async with duo.forwarded() as stream:
            near, app = connected()
            with app:
                duo.ask(near, 80)
                with pytest.raises(ConnectionResetError):
                    await read_all(app)
            assert duo.client.tally.last_error == "too many connections at once"
            await stream.exchange(b"", b"")
        await becomes(lambda: duo.server.tally.open == 1)
        async with duo.forwarded() as stream:
            await stream.ask()
        await first.ask()


@on_fast
async def test_own_channels_are_bounded(plane: DataPlane) -> None:
    """Nor does a client ask for more channels than it may have itself."""
    client, server = planes(plane, "fast-fast")
    client.limits = Limits(channels=1)
    async with joined(client, server) as duo, duo.forwarded() as stream:
        near, app = connected()
        with app:
            duo.ask(near, 80)
            with pytest.raises(ConnectionResetError):
                await read_all(app)
        assert duo.owner.heard == ["opened", "refused: too many connections at once", "gone"]
        assert duo.server.tally.refused == 0
        await stream.ask()


@servers
@on_fast
async def test_requests_are_bounded(plane: DataPlane, sides: str) -> None:
    """A peer that asks and asks is given up; one that asks now and then is answered."""
    async with carrying(plane, sides) as (duo, stream):
        for _ in range(3):
            await duo.client._make_keepalive_request()
        await stream.ask()
        asked = String("tcpip-forward") + Boolean(True) + String("127.0.0.1") + UInt32(1)
        for _ in range(module.REQUESTS + 1):
            duo.client.send_packet(MSG_GLOBAL_REQUEST, asked)
        assert isinstance(await duo.server_lost(), asyncssh.ProtocolError)


@servers
@on_fast
async def test_exchange_of_keys_that_never_ends(plane: DataPlane, sides: str) -> None:
    """A peer that begins to exchange keys, does not go on, and has ever more wait for that, is given up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DEFERRED", 50)
        async with carrying(plane, sides) as (duo, stream):
            await stream.ask()
            duo.server.exchange_keys()
            duo.server._kex_complete = False
            for _ in range(51):
                duo.server.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(stream.channel.number) + UInt32(1))
            await duo.server_lost()
            await stream.is_reset()


@on_fast
async def test_request_that_is_not_answered(plane: DataPlane) -> None:
    """A client whose channel is not answered in time is reset; others, asked for later, have their own time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ANSWER_TIMEOUT", 0.1)
        async with relayed(*planes(plane, "fast-fast")) as (duo, relay):
            relay.silent = True
            (near, app), (later, other) = connected(), connected()
            with app, other:
                duo.ask(near, 80)
                await asyncio.sleep(0.05)
                duo.ask(later, 80)
                with pytest.raises(ConnectionResetError):
                    await read_all(app)
                assert duo.owner.heard == ["refused: no answer"]
                with pytest.raises(ConnectionResetError):
                    await read_all(other)
            assert duo.owner.heard == ["refused: no answer"] * 2
        assert duo.owner.heard[2:] == ["gone"] * 2


@on_fast
async def test_answered_channel_has_all_the_time(plane: DataPlane) -> None:
    """A channel that was answered in time lives as long as it likes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ANSWER_TIMEOUT", 0.1)
        async with carrying(plane, "fast-fast") as (_, stream):
            await asyncio.sleep(0.15)
            await stream.ask()


# Distance and silence


@sides
@on_fast
async def test_round_trip_is_learnt(plane: DataPlane, sides: str) -> None:
    """With the first channel each side learns how far away the other one is."""
    async with joined(*planes(plane, sides)) as duo:
        assert (duo.client.round_trip, duo.server.round_trip) == (0, 0)
        async with duo.forwarded() as stream:
            await stream.ask()
            await becomes(lambda: duo.client.round_trip and duo.server.round_trip)
            assert max(duo.client.round_trip, duo.server.round_trip) < LATE
            assert duo.client.largest_window == WINDOW_MAX


@sides
@on_fast
async def test_openssh_gets_smaller_windows(plane: DataPlane, sides: str) -> None:
    """Towards a peer that is OpenSSH windows grow only to what is good for it."""
    async with carrying(plane, sides, server_version="OpenSSH_9.9") as (duo, stream):
        await stream.ask()
        assert duo.client.largest_window == WINDOW_MAX_OPENSSH
        assert duo.server.largest_window == WINDOW_MAX


class Pensive:
    """Does not make up its mind."""

    def __init__(self, connection: CarryingConnection) -> None:
        self.connection = connection

    def begin(self, channel: Channel) -> None:
        """Nothing comes of it."""

    def give_up(self) -> None:
        """Nothing was begun."""


@on_fast
async def test_silent_peer_is_doubted_while_somebody_waits(plane: DataPlane) -> None:
    """A peer that leaves a channel and a sign of life unanswered is doubted long before it is given up; one word clears it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOUBT", 0.1)
        async with relayed(*planes(plane, "fast-fast")) as (duo, relay):
            heard: list[bool] = []
            duo.client.watch_silence(heard.append)
            near, app = connected()
            with app:
                relay.silent = True
                duo.ask(near, 80)
                await becomes(lambda: heard == [True])
                assert [channel.is_opening for channel in duo.client.unanswered()] == [True]
                assert duo.client.is_silent
                assert not duo.client.lost


@on_fast
async def test_thoughtful_peer_is_not_doubted(plane: DataPlane) -> None:
    """A peer that takes its time with a channel, but gives signs of life, is not doubted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DOUBT", 0.05)
        async with joined(*planes(plane, "fast-fast")) as duo:
            door: Any = duo.server.get_owner()
            door.connection_requested = lambda *_: (Channel(door.owner), Pensive(duo.server))
            heard: list[bool] = []
            duo.client.watch_silence(heard.append)
            near, app = connected()
            with app:
                duo.ask(near, 80)
                await asyncio.sleep(0.5)
                assert duo.client.unanswered()
                assert True not in heard


@sides
@on_fast
async def test_silent_peer_is_given_up(plane: DataPlane, sides: str) -> None:
    """A peer from which nothing comes is given up after so many questions without an answer, and its streams are reset."""
    interval, count = 0.05, 2
    options: dict[str, Any] = {"keepalive_interval": interval, "keepalive_count_max": count}
    loop = asyncio.get_running_loop()
    async with relayed(*planes(plane, sides), **options) as (duo, relay), duo.forwarded() as stream:
        await stream.ask()
        relay.silent = True
        began = loop.time()
        await stream.is_reset()
        await becomes(lambda: duo.client.lost and duo.server.lost)
        assert interval * count < loop.time() - began < interval * (count + 1) + LATE
        assert isinstance(duo.client.error, asyncssh.ConnectionLost)


@sides
@on_fast
async def test_quiet_peer_is_kept(plane: DataPlane, sides: str) -> None:
    """A peer that has nothing to say but answers is kept, and so is one that only sends."""
    options: dict[str, Any] = {"keepalive_interval": 0.03, "keepalive_count_max": 1}
    async with relayed(*planes(plane, sides), **options) as (duo, relay), duo.forwarded() as stream:
        await stream.ask()
        before = relay.carried
        await asyncio.sleep(0.3)
        assert relay.carried > before
        await stream.exchange(noise(2 * MIB), b"")
        assert not duo.client.lost
        assert not duo.server.lost


async def test_end_and_last_write_in_one_turn() -> None:
    """When the peer's end comes in the same turn as room for the last that is to be sent, the event loop has no complaint."""
    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    plane = stock_plane()
    server = (await server_options(plane, []))()
    ours, theirs = socket.socketpair()
    with closing(theirs):
        await plane.carry(ours, server)
        assert server._transport
        while not server._transport.get_write_buffer_size():
            server._send(bytes(KIB))
        theirs.setblocking(False)
        with suppress(BlockingIOError):
            while theirs.recv(MIB):
                pass
        theirs.shutdown(socket.SHUT_WR)
        await server.wait_gone()
        await read_all(theirs)
    assert complaints == []


# Helpers


async def is_thrown_out(duo: Duo, stream: Stream) -> None:
    """The server ends the connection for breaking the protocol, and both ends of the stream see an end."""
    assert isinstance(await duo.server_lost(), asyncssh.ProtocolError)
    await read_to_the_end(stream.app)
    await read_to_the_end(stream.service)
    await duo.server.wait_idle()


async def read_to_the_end(sock: socket.socket) -> None:
    """Read until there is an end of any kind."""
    with does_not_matter():
        await read_all(sock)


def does_not_matter() -> AbstractContextManager[None]:
    """The peer may have reset by now."""
    return suppress(ConnectionResetError, BrokenPipeError)


def first_exchange() -> bytes:
    """Version and first exchange of keys of a client, all in one."""
    names = [b"curve25519-sha256"], [b"ssh-ed25519"], [GCM.encode()], [GCM.encode()], [b"none"], [b"none"], [b"none"], [b"none"]
    kexinit = Byte(MSG_KEXINIT) + os.urandom(16) + b"".join(map(NameList, names)) + NameList([]) * 2 + Boolean(False)
    packets = kexinit + UInt32(0), Byte(30) + String(b"\x09" + bytes(31)), Byte(MSG_NEWKEYS)
    return b"SSH-2.0-all_at_once\r\n" + b"".join(map(plain_packet, packets))


def plain_packet(payload: bytes) -> bytes:
    """A packet before there are keys (RFC 4253 section 6)."""
    padding = -(5 + len(payload)) % 8
    if padding < 4:
        padding += 8
    return UInt32(1 + len(payload) + padding) + Byte(padding) + payload + bytes(padding)


@servers
@on_fast
async def test_channels_of_one_peer_are_bounded(plane: DataPlane, sides: str) -> None:
    """Channels of other connections of the same peer count as well, until they are gone."""
    async with joined(*planes(plane, sides, Limits(peer_channels=2))) as duo, duo.forwarded() as first:
        duo.server.share.channels += 1  # on another connection
        near, app = connected()
        with app:
            duo.ask(near, 80)
            with pytest.raises(ConnectionResetError):
                await read_all(app)
        duo.server.share.channels -= 1
        async with duo.forwarded() as stream:
            await stream.ask()
        await first.ask()
    assert duo.server.share.channels == 0


@servers
@on_fast
async def test_channel_opens_are_slowed_down(plane: DataPlane, sides: str) -> None:
    """Who asks for channels faster than they may is not read from for a while, and gets every one of them all the same."""
    async with joined(*planes(plane, sides, Limits(opens=2))) as duo:
        reasons: list[str] = []
        stop = duo.server.stop_reading

        def note(reason: str) -> None:
            reasons.append(reason)
            stop(reason)

        duo.server.stop_reading = note  # type: ignore[method-assign]
        for _ in range(2 * OPEN_BURST_SECONDS + 1):
            async with duo.forwarded() as stream:
                await stream.ask()
        assert reasons.count("throttled") == 1


@servers
@on_fast
async def test_requests_count_as_many_small_packets(plane: DataPlane, sides: str) -> None:
    """Requests, which asyncssh handles, are slowed down long before packets of one byte are."""
    async with carrying(plane, sides, Limits(small_packets=1000)) as (duo, stream):
        before = duo.server._small.left(plane.reactor.now)
        for _ in range(30):
            duo.client.send_packet(MSG_GLOBAL_REQUEST, String("x"), Boolean(False))
        await becomes(lambda: duo.server._small.left(plane.reactor.now) < before - 900)
        await stream.ask()
