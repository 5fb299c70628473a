"""A channel carries bytes and ends both ways: over real TCP, with a stand-in for the SSH connection."""

from __future__ import annotations

import asyncio
import errno
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from asyncssh.packet import Boolean, PacketDecodeError, SSHPacket, String, UInt32
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from knot_ssh.dataplane.channel import LINGER_OFF, LINGER_RESET, Channel
from knot_ssh.dataplane.connection import CarryingConnection
from knot_ssh.dataplane.limits import PACKET, PACKET_MIN, PLAIN_PACKET, SEND_WINDOW_MAX, TINY
from knot_ssh.dataplane.outbox import Source
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.windows import ReceiveWindow
from tests.support.reactors import KINDS, on_both, on_fast, run_on
from tests.support.services import noise
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import (
    CLOSE_WAIT,
    MINE,
    MUCH,
    PATIENCE,
    PEERS,
    SMALL_BUFFER,
    TCP_CLOSE,
    Bench,
    FakeConnection,
    FakeOwner,
    asked,
    connected,
    fake_connection,
    new,
    opened,
    tcp_state,
    whole,
)

HOLDER = """
import asyncio, socket, sys
from knot_ssh.dataplane.listening import born_to_reset
from tests.support.reactors import run_on
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import Bench, FakeConnection

async def hold(plane):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as near, socket.socket() as unused:
        born_to_reset(near).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        near.setblocking(False)
        bench = Bench(plane, FakeConnection(plane, unused), near, unused)
        bench.ask()
        bench.opens()
        bench.receive(b"x" * int(sys.argv[2]))
        bench.channel.got_eof()
        await becomes(lambda: "eof" in bench.said)
        assert bench.waiting()
        print("whole", flush=True)
        await asyncio.Event().wait()

run_on("fast", hold)
"""
"""Has data for the socket and both ends of the stream, and waits to be killed."""


# Bytes and proper ends


@on_both
async def test_bytes_both_ways(plane: DataPlane) -> None:
    """What one side sends the other side gets."""
    with opened(plane) as bench:
        await bench.sends(b"question")
        await becomes(lambda: bench.sent == b"question")
        bench.receive(b"ans")
        bench.receive(b"wer")
        assert await bench.reads(6) == b"answer"


@on_both
async def test_much_both_ways_at_once(plane: DataPlane) -> None:
    """Large streams pass both ways at once, unchanged, through sockets that hold little."""
    there, back = noise(1 << 20, 1), noise(1 << 20, 2)
    with opened(plane) as bench:
        sending = asyncio.ensure_future(bench.sends(there))
        for start in range(0, len(back), PLAIN_PACKET):
            bench.receive(back[start : start + PLAIN_PACKET])
        assert same(await bench.reads(len(back)), back)
        await sending
        await becomes(lambda: bench.sent == there)


@on_both
async def test_fin_becomes_channel_eof(plane: DataPlane) -> None:
    """A FIN is passed on as CHANNEL_EOF after the last byte, and the other direction goes on."""
    with opened(plane) as bench:
        await bench.sends(b"last words")
        bench.far_ends()
        await bench.says("data", "eof")
        assert bench.sent == b"last words"
        bench.receive(b"still here")
        assert await bench.reads(10) == b"still here"
        assert bench.said == ["data", "eof"]


@on_both
async def test_channel_eof_becomes_fin(plane: DataPlane) -> None:
    """A CHANNEL_EOF is passed on as FIN after the last byte, and the other direction goes on."""
    with opened(plane) as bench:
        bench.receive(b"last words")
        bench.channel.got_eof()
        assert await bench.reads() == b"last words"
        await bench.sends(b"still here")
        await becomes(lambda: bench.sent == b"still here")
        assert bench.said == ["data"]


@pytest.mark.parametrize("first", ["fin", "eof"])
@on_both
async def test_both_ends_close_both_sides(plane: DataPlane, first: str) -> None:
    """When both directions have ended, in whatever order, both sides are closed and neither is reset."""
    with opened(plane) as bench:
        bench.receive(b"answer")
        await both_ended(bench, first)
        await bench.says("eof", "close")
        assert await bench.reads() == b"answer"
        bench.channel.got_close()
        assert bench.owner.heard == ["opened", "gone"]


@on_both
async def test_empty_stream(plane: DataPlane) -> None:
    """A stream of no bytes ends properly both ways."""
    with opened(plane) as bench:
        await whole(bench)
        assert (await bench.reads(), bench.said) == (b"", ["eof", "close"])


@on_both
async def test_what_came_early_is_passed_on(plane: DataPlane) -> None:
    """Bytes and FIN that came before the channel was open are passed on as soon as it is."""
    with asked(plane) as bench:
        await bench.sends(b"early")
        bench.far_ends()
        await asyncio.sleep(0)
        assert bench.said == []
        bench.opens()
        await bench.says("data", "eof")
        assert bench.sent == b"early"


# The last bytes


@on_both
async def test_reset_stays_armed(plane: DataPlane) -> None:
    """Until both directions have ended the socket would be reset if the process died; then it closes properly."""
    with opened(plane) as bench:
        near = bench.near.dup()
        with near:
            bench.near = near
            assert bench.linger() == LINGER_RESET
            bench.far_ends()
            await bench.says("eof")
            assert bench.linger() == LINGER_RESET
            bench.channel.got_eof()
            assert bench.linger() == LINGER_OFF


@on_both
async def test_half_closed_socket_stays_armed(plane: DataPlane) -> None:
    """A socket of which only our direction has ended would still be reset."""
    with opened(plane) as bench:
        bench.channel.got_eof()
        assert await bench.reads() == b""
        assert bench.linger() == LINGER_RESET
        bench.channel.abort()
        await becomes(lambda: is_reset(bench.far))


@pytest.mark.parametrize("first", ["fin", "eof"])
@on_both
async def test_fin_waits_for_the_last_byte(plane: DataPlane, first: str) -> None:
    """While bytes wait in our own buffer no FIN is sent and a reset stays armed; then everything comes, and a clean end."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        await both_ended(bench, first)
        await bench.says("eof", "close")
        assert bench.waiting()
        assert (bench.tcp_state(), bench.linger()) == (CLOSE_WAIT, LINGER_RESET)
        start = await bench.reads(MUCH_READ)
        assert (bench.tcp_state(), bench.linger()) == (CLOSE_WAIT, LINGER_RESET)
        assert same(start + await bench.reads(), MUCH)
        await becomes(lambda: bench.channel.sock is None)


@on_both
async def test_half_close_waits_for_the_last_byte(plane: DataPlane) -> None:
    """A CHANNEL_EOF that comes while bytes wait is shown behind them, and the other direction goes on."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.channel.got_eof()
        assert same(await bench.reads(), MUCH)
        await bench.sends(b"still here")
        await becomes(lambda: bench.sent == b"still here")


@pytest.mark.parametrize("end", ["close", "loss"])
@pytest.mark.parametrize("first", ["fin", "eof"])
@on_both
async def test_last_bytes_of_a_whole_channel(plane: DataPlane, first: str, end: str) -> None:
    """Once both directions have ended, neither CHANNEL_CLOSE nor a lost connection takes anything back."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        await both_ended(bench, first)
        await bench.says("eof", "close")
        ends(bench, end)
        assert bench.owner.heard == ["opened"]
        assert bench.linger() == LINGER_RESET
        assert same(await bench.reads(), MUCH)
        await becomes(lambda: bench.owner.heard == ["opened", "gone"])


@on_both
async def test_last_bytes_after_close(plane: DataPlane) -> None:
    """CHANNEL_CLOSE after CHANNEL_EOF: what was received is delivered, then the socket closes as by close(2)."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.channel.got_eof()
        bench.channel.got_close()
        assert (bench.said, bench.owner.heard, bench.linger()) == (["close"], ["opened"], LINGER_RESET)
        assert same(await bench.reads(), MUCH)
        await becomes(lambda: bench.channel.is_gone)
        await bench.sends(b"to nobody")
        await becomes(lambda: is_reset(bench.far))


@on_both
async def test_close_after_eof_ends_cleanly(plane: DataPlane) -> None:
    """CHANNEL_CLOSE after CHANNEL_EOF, with nothing waiting, closes the socket properly at once."""
    with opened(plane) as bench:
        bench.receive(b"answer")
        bench.channel.got_eof()
        bench.channel.got_close()
        assert bench.channel.is_gone
        assert await bench.reads() == b"answer"


def test_process_that_dies_before_the_last_byte_resets() -> None:
    """A process that is killed while bytes wait in it resets: the far end does not take the stream for whole."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
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


@pytest.mark.parametrize("first", ["fin", "eof"])
@on_both
async def test_abort_before_the_last_byte_resets(plane: DataPlane, first: str) -> None:
    """A channel that is aborted while bytes wait resets, also after both ends."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        await both_ended(bench, first)
        await bench.says("eof", "close")
        bench.channel.abort()
        await bench.is_reset()
        assert bench.said == ["eof", "close"]


@on_both
async def test_far_end_resets_before_the_last_byte(plane: DataPlane) -> None:
    """A reader that resets while bytes wait after a closed channel ends it: nobody waits for ever."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.channel.got_eof()
        bench.channel.got_close()
        bench.far_resets()
        await becomes(lambda: bench.channel.is_gone)


@on_both
async def test_channel_eof_waits_for_its_last_byte(plane: DataPlane) -> None:
    """CHANNEL_EOF leaves behind the last byte, also where the connection has no room for that yet."""
    with opened(plane) as bench:
        bench.connection.outbox.hold()
        bench.channel.got_eof()
        await bench.sends(b"last words")
        bench.far_ends()
        await becomes(lambda: bench.unread() == 10)
        await asyncio.sleep(0.01)
        assert bench.said == []
        bench.connection.outbox.release()
        await bench.says("data", "eof", "close")
        assert bench.sent == b"last words"


# Broken ends


@on_both
async def test_reset_closes_the_channel_without_eof(plane: DataPlane) -> None:
    """A reset socket is passed on as CHANNEL_CLOSE without CHANNEL_EOF."""
    with opened(plane) as bench:
        bench.far_resets()
        await bench.says("close")
        bench.channel.got_close()
        assert bench.owner.heard == ["opened", "gone"]


@on_both
async def test_reset_behind_bytes(plane: DataPlane) -> None:
    """A reset behind bytes never becomes CHANNEL_EOF."""
    with opened(plane) as bench:
        await bench.sends(b"half a stre")
        bench.far_resets()
        await becomes(lambda: "close" in bench.said)
        assert "eof" not in bench.said
        assert b"half a stre".startswith(bench.sent)


@on_both
async def test_reset_while_bytes_wait(plane: DataPlane) -> None:
    """A reader that resets while bytes wait for it is passed on as CHANNEL_CLOSE, and what comes then is dropped."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.far_resets()
        await bench.says("close")
        bench.receive(b"more")
        bench.channel.got_eof()
        bench.channel.got_close()
        assert bench.channel.is_gone


@on_both
async def test_reset_after_channel_eof(plane: DataPlane) -> None:
    """A reset after our FIN is passed on as CHANNEL_CLOSE without CHANNEL_EOF."""
    with opened(plane) as bench:
        bench.channel.got_eof()
        assert await bench.reads() == b""
        bench.far_resets()
        await bench.says("close")


@on_fast
async def test_reset_after_fin(plane: DataPlane) -> None:
    """A reset after FIN is passed on as CHANNEL_CLOSE, though nothing more is read."""
    with opened(plane) as bench:
        bench.far_ends()
        await bench.says("eof")
        bench.far_resets()
        await bench.says("eof", "close")


@on_both
async def test_reset_after_fin_is_met_by_data(plane: DataPlane) -> None:
    """A reset after FIN is noticed at the latest with the next data, and passed on as CHANNEL_CLOSE."""
    with opened(plane) as bench:
        bench.far_ends()
        await bench.says("eof")
        bench.far_resets()
        await becomes(lambda: has_error(bench) or "close" in bench.said)
        bench.receive(b"x")
        await bench.says("eof", "close")


@on_both
async def test_reset_while_the_channel_opens(plane: DataPlane) -> None:
    """A socket that was reset before the channel opened closes it without CHANNEL_EOF as soon as it does."""
    with asked(plane) as bench:
        bench.far_resets()
        await becomes(lambda: has_error(bench))
        bench.opens()
        await bench.says("close")


@on_both
async def test_reset_before_asking(plane: DataPlane) -> None:
    """For a socket that was reset already no channel is asked for."""
    with new(plane) as bench:
        bench.far_resets()
        await becomes(lambda: has_error(bench))
        bench.ask()
        assert bench.connection.asked == b""
        assert bench.owner.heard == ["refused: the client has gone", "gone"]


@on_both
async def test_channel_close_without_eof_resets(plane: DataPlane) -> None:
    """A CHANNEL_CLOSE without CHANNEL_EOF is passed on as RST, and answered."""
    with opened(plane) as bench:
        bench.receive(b"half a stre")
        bench.channel.got_close()
        assert (bench.said, bench.owner.heard) == (["close"], ["opened", "gone"])
        await bench.is_reset()


@on_both
async def test_channel_close_without_eof_after_fin_resets(plane: DataPlane) -> None:
    """So too where the socket had ended: the other direction was cut."""
    with opened(plane) as bench:
        bench.far_ends()
        await bench.says("eof")
        bench.receive(b"half a stre")
        bench.channel.got_close()
        assert bench.said == ["eof", "close"]
        await bench.is_reset()


@on_both
async def test_channel_close_while_bytes_wait_resets(plane: DataPlane) -> None:
    """A CHANNEL_CLOSE without CHANNEL_EOF resets though bytes wait: they are no whole stream."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.channel.got_close()
        assert bench.channel.is_gone
        await bench.is_reset()


@pytest.mark.parametrize("ended", ["nothing", "fin", "eof"])
@on_both
async def test_lost_connection_resets(plane: DataPlane, ended: str) -> None:
    """A lost connection is passed on as RST unless both directions had ended."""
    with opened(plane) as bench:
        bench.receive(b"some")
        if ended == "fin":
            bench.far_ends()
            await bench.says("eof")
        elif ended == "eof":
            bench.channel.got_eof()
        bench.connection.lose()
        assert bench.owner.heard == ["opened", "gone"]
        assert await becomes_reset(bench) in (b"", b"some")


@on_both
async def test_lost_connection_resets_a_slow_reader(plane: DataPlane) -> None:
    """A lost connection is passed on as RST though the stream towards the reader was whole, while bytes of it wait."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        bench.channel.got_eof()
        bench.connection.lose()
        await bench.is_reset()


@on_both
async def test_abort_ends_both_sides(plane: DataPlane) -> None:
    """Who aborts a channel resets the socket and closes the channel without CHANNEL_EOF, and once."""
    with opened(plane) as bench:
        bench.channel.abort()
        bench.channel.abort()
        bench.channel.close()
        assert (bench.said, bench.owner.heard) == (["close"], ["opened"])
        await bench.is_reset()
        bench.channel.got_close()
        assert bench.owner.heard == ["opened", "gone"]


@on_both
async def test_fault_ends_both_sides(plane: DataPlane) -> None:
    """A fault of ours while a channel is served is passed on to both sides as a broken stream, and ends nothing else."""
    with opened(plane) as bench, opened(plane) as other:

        def fail(*_args: object) -> None:
            raise ZeroDivisionError

        bench.connection.outbox.send_from = fail  # type: ignore[method-assign, assignment]
        with capture_logs() as logs:
            await bench.sends(b"x")
            await bench.says("close")
        assert [entry["event"] for entry in logs] == ["data path fault"]
        await bench.is_reset()
        await other.sends(b"question")
        await becomes(lambda: other.sent == b"question")


@on_both
async def test_abort_while_the_channel_opens(plane: DataPlane) -> None:
    """A channel that opens when the socket was given up is closed at once, without CHANNEL_EOF, and is nobody's news."""
    with asked(plane) as bench:
        bench.channel.abort()
        await bench.is_reset()
        assert bench.owner.heard == []
        bench.opens()
        assert bench.said == ["close"]
        bench.receive(b"dropped")
        bench.channel.got_eof()
        bench.channel.got_close()
        assert bench.owner.heard == ["gone"]
        assert (bench.owner.tally.opened, bench.owner.tally.open) == (0, 0)


@on_both
async def test_abort_of_what_is_refused_then(plane: DataPlane) -> None:
    """A channel that was given up and is then refused is gone, once."""
    with asked(plane) as bench:
        bench.channel.abort()
        bench.channel.process_open_failure(2, "no", "en")
        assert bench.owner.heard == ["refused: no", "gone"]


@on_both
async def test_abort_before_asking(plane: DataPlane) -> None:
    """A channel that never was asked for is gone as soon as it is aborted."""
    with new(plane) as bench:
        bench.channel.abort()
        assert bench.owner.heard == ["gone"]
        await bench.is_reset()


# Opening


@on_both
async def test_ask(plane: DataPlane) -> None:
    """The peer is asked for a direct-tcpip channel with our window, our largest packet and the client's address."""
    with new(plane) as bench:
        bench.channel.ask(bench.connection.real, "127.0.0.1", 80)
        packet = SSHPacket(bench.connection.asked)
        assert packet.get_string() == b"direct-tcpip"
        assert (packet.get_uint32(), packet.get_uint32(), packet.get_uint32()) == (MINE, window_left(bench.channel), PACKET)
        assert (packet.get_string(), packet.get_uint32()) == (b"127.0.0.1", 80)
        assert (packet.get_string().decode(), packet.get_uint32()) == bench.far.getsockname()
        packet.check_end()
        assert bench.owner.heard == []


@on_both
async def test_refusal_resets(plane: DataPlane) -> None:
    """A channel that the peer will not open resets the client, and the owner hears why, but no essay."""
    with asked(plane) as bench:
        bench.channel.process_open_failure(2, "because\x1b[2J " * 100, "en")
        reason = bench.connection.tally.last_error
        assert reason
        assert len(reason) < 1000
        assert reason.startswith("because\\x1b[2J because")
        assert bench.owner.heard == [f"refused: {reason}", "gone"]
        assert bench.connection.tally.refused == 1
        await bench.is_reset()


@on_both
async def test_peer_that_does_not_answer(plane: DataPlane) -> None:
    """A channel to which the peer gives no answer in time resets the client; it is gone when the connection is."""
    with asked(plane) as bench:
        assert bench.connection.expected == [bench.channel]
        bench.channel.abandon()
        bench.channel.abandon()
        await bench.is_reset()
        assert bench.owner.heard == ["refused: no answer"]
        bench.connection.lose()
        assert bench.owner.heard == ["refused: no answer", "gone"]


@on_both
async def test_refusal_that_comes_too_late(plane: DataPlane) -> None:
    """A refusal after the time was up ends the channel, and is not told again."""
    with asked(plane) as bench:
        bench.channel.abandon()
        bench.channel.process_open_failure(2, "no", "en")
        assert bench.owner.heard == ["refused: no answer", "gone"]


@on_both
async def test_answer_that_comes_too_late(plane: DataPlane) -> None:
    """A channel that opens after the time was up is closed at once; its owner heard of a refusal, and hears no more."""
    with asked(plane) as bench:
        bench.channel.abandon()
        bench.opens()
        assert bench.said == ["close"]
        bench.channel.got_close()
        assert bench.owner.heard == ["refused: no answer", "gone"]
        assert (bench.owner.tally.opened, bench.owner.tally.open) == (0, 0)


@on_both
async def test_answer_in_time(plane: DataPlane) -> None:
    """A channel that was answered is not given up for that when the time is up."""
    with opened(plane) as bench:
        bench.channel.abandon()
        await bench.sends(b"question")
        await becomes(lambda: bench.sent == b"question")


@on_both
async def test_connection_lost_while_opening(plane: DataPlane) -> None:
    """A connection that is lost before the far side has answered leaves the socket to the owner, as it was."""
    with asked(plane) as bench:
        bench.connection.lose()
        assert bench.owner.heard == ["gone", "unanswered"]
        await bench.is_reset()


@on_both
async def test_withdrawn_while_opening(plane: DataPlane) -> None:
    """What was asked for can be withdrawn until there is an answer; a late yes closes the channel, and nobody is told."""
    with asked(plane) as bench:
        sock = bench.channel.withdraw()
        assert sock is not None
        assert bench.channel.withdraw() is None
        assert bench.owner.heard == []
        bench.channel.process_open_confirmation(PEERS, PACKET, PACKET)
        bench.channel.got_close()
        assert bench.owner.heard == ["gone"]
        sock.close()
        await bench.is_reset()


@on_both
async def test_withdrawn_and_refused(plane: DataPlane) -> None:
    """The same for a late no, and for a connection that is lost before either."""
    with asked(plane) as bench:
        sock = bench.channel.withdraw()
        assert sock is not None
        bench.channel.process_open_failure(2, "no", "en")
        assert bench.owner.heard == ["gone"]
        sock.close()
    with asked(plane) as bench:
        sock = bench.channel.withdraw()
        assert sock is not None
        bench.connection.lose()
        assert bench.owner.heard == ["gone"]
        sock.close()


@on_both
async def test_open_channels_cannot_be_withdrawn(plane: DataPlane) -> None:
    """Once the far side has said yes something may have been said on it."""
    with opened(plane) as bench:
        assert bench.channel.withdraw() is None
        assert bench.owner.heard == ["opened"]


@on_both
async def test_too_many_channels(plane: DataPlane) -> None:
    """Where the connection carries too many channels already the client is reset and nothing is asked."""
    with new(plane) as bench:
        bench.connection.too_many = True
        bench.ask()
        assert (bench.owner.heard, bench.connection.asked) == (["refused: too many", "gone"], b"")
        await bench.is_reset()


@on_both
async def test_peer_that_takes_tiny_packets_only(plane: DataPlane) -> None:
    """A peer that takes less than PACKET_MIN bytes a packet breaks the protocol; one that takes just that does not."""
    with asked(plane) as bench:
        with pytest.raises(asyncssh.ProtocolError):
            bench.opens(packet=PACKET_MIN - 1)
        bench.opens(packet=PACKET_MIN)
        await bench.sends(noise(1000))
        await becomes(lambda: bench.sent == noise(1000))
        assert max(bench.connection.sizes) == PACKET_MIN


@on_both
async def test_peers_channel_is_confirmed(plane: DataPlane) -> None:
    """A channel that the peer asked for is confirmed with our number, window and largest packet, and carries bytes."""
    near, far = connected()
    with far, requested(plane) as (channel, connection, _):
        channel.confirm(near)
        assert connection.said == ["confirmation"]
        assert connection.answer == (PEERS, MINE, window_left(channel), PACKET)
        channel.data(memoryview(b"question"))
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(far, 100) == b"question"
        far.send(b"answer")
        await becomes(lambda: connection.sent == b"answer")


@on_both
async def test_peers_channel_is_refused(plane: DataPlane) -> None:
    """A channel that the peer asked for and does not get is refused with code and reason; another refusal does nothing."""
    with requested(plane) as (channel, connection, owner):
        channel.refuse(asyncssh.OPEN_CONNECT_FAILED, "nobody there")
        channel.refuse(asyncssh.OPEN_CONNECT_FAILED, "nobody there")
        assert connection.said == ["refusal"]
        assert connection.answer == (PEERS, asyncssh.OPEN_CONNECT_FAILED, "nobody there")
        assert owner.heard == ["refused: nobody there", "gone"]


@on_both
async def test_peers_channel_is_given_up(plane: DataPlane) -> None:
    """A channel that the peer asked for is refused when it is aborted before it is open."""
    with requested(plane) as (channel, connection, owner):
        channel.abort()
        channel.abort()
        assert (connection.said, owner.heard) == (["refusal"], ["refused: given up", "gone"])


@pytest.mark.parametrize("end", ["abort", "loss"])
@on_both
async def test_who_dials_hears_that_nobody_waits(plane: DataPlane, end: str) -> None:
    """Whoever gets a socket for the channel is told when the channel ends first, before that socket is closed."""
    near, far = connected()
    with far, fake_connection(plane) as connection:
        channel, opening = Channel(FakeOwner(plane)), FakeOpening(connection)
        opening.sock = near
        channel.process_open(PEERS, 1 << 20, PACKET, opening)
        if end == "abort":
            channel.abort()
        else:
            connection.lose()
        assert (opening.given_up, channel.is_gone, near.fileno()) == (1, True, -1)


@pytest.mark.parametrize("why", ["tiny packets", "too many"])
@on_both
async def test_peers_channel_is_not_begun(plane: DataPlane, why: str) -> None:
    """A request with tiny packets, or one too many, is refused before anything is done for it, and the channel is gone."""
    with fake_connection(plane) as connection:
        owner, opening = FakeOwner(plane), FakeOpening(connection)
        connection.too_many = why == "too many"
        with pytest.raises(asyncssh.ChannelOpenError) as caught:
            Channel(owner).process_open(PEERS, 1 << 20, 1000 if connection.too_many else PACKET_MIN - 1, opening)
        assert caught.value.code == asyncssh.OPEN_RESOURCE_SHORTAGE
        assert (opening.begun, owner.heard, connection.said) == ([], ["gone"], [])


@pytest.mark.parametrize("whose", ["ours", "peers"])
@on_both
async def test_system_that_watches_too_much_already(plane: DataPlane, whose: str) -> None:
    """Where the system will not watch one more socket the channel ends, both ways, and nothing else does."""
    with asked(plane) as bench, requested(plane) as (channel, connection, owner), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plane.reactor, "watch", no_watching)
        if whose == "ours":
            bench.opens()
            assert (bench.said, bench.owner.heard) == (["close"], ["opened"])
        else:
            channel.confirm(bench.near.dup())
            assert (connection.said, owner.heard) == (["confirmation", "close"], ["opened"])
        patch.undo()


# What may come when


@dataclass(frozen=True)
class Event:
    """Something the peer sends: through the doors of asyncssh, and in place."""

    kind: int
    payload: bytes
    in_place: Callable[[Channel], None]

    def through_asyncssh(self, channel: Channel) -> None:
        assert channel.process_packet(self.kind, 0, SSHPacket(self.payload))


EVENTS = {
    "data": Event(MSG_CHANNEL_DATA, String(b"some"), lambda channel: channel.data(memoryview(b"some"))),
    "adjust": Event(MSG_CHANNEL_WINDOW_ADJUST, UInt32(9), lambda channel: channel.adjust(9)),
    "eof": Event(MSG_CHANNEL_EOF, b"", Channel.got_eof),
    "close": Event(MSG_CHANNEL_CLOSE, b"", Channel.got_close),
}
OPENED = Event(0, b"", lambda channel: channel.process_open_confirmation(PEERS, 1000, 1000))
REFUSED = Event(0, b"", lambda channel: channel.process_open_failure(2, "no", "en"))


def request(wants_reply: bool) -> Event:
    """A request of a kind that we do not know."""
    payload = String("shell") + Boolean(wants_reply)
    return Event(MSG_CHANNEL_REQUEST, payload, lambda channel: handle(channel, MSG_CHANNEL_REQUEST, payload))


def extended() -> Event:
    """Data of a kind that direct-tcpip channels have none of (RFC 4254 section 5.2)."""
    payload = UInt32(1) + String(b"error")
    return Event(MSG_CHANNEL_EXTENDED_DATA, payload, lambda channel: handle(channel, MSG_CHANNEL_EXTENDED_DATA, payload))


def handle(channel: Channel, kind: int, payload: bytes) -> None:
    channel.process_packet(kind, 0, SSHPacket(payload))


EVERY = EVENTS | {"opened": OPENED, "refused": REFUSED, "request": request(True), "extended": extended()}

ALLOWED: dict[str, set[str]] = {
    "opening": {"opened", "refused"},
    "abandoned": {"opened", "refused"},
    "dialling": set(),
    "open": {"data", "adjust", "eof", "close", "request"},
    "ended by the peer": {"adjust", "close", "request"},
    "ended by us": {"data", "adjust", "eof", "close", "request"},
    "ended both ways": {"adjust", "close", "request"},
    "given up": {"data", "adjust", "eof", "close", "request"},
    "closed": set(),
    "closed, and not empty": set(),
    "lost": set(),
}
"""What the peer may send in each state; anything else breaks the protocol."""


@pytest.mark.parametrize("state", ALLOWED)
@pytest.mark.parametrize("name", EVERY)
@on_fast
async def test_event_in_state(plane: DataPlane, state: str, name: str) -> None:
    """In every state each event is either served, or breaks the protocol and changes nothing; both doors agree."""
    event = EVERY[name]
    for door in (event.in_place, event.through_asyncssh if event.kind else event.in_place):
        async with in_state(plane, state) as channel:
            before = snapshot(channel)
            if name in ALLOWED[state]:
                door(channel)
            else:
                with pytest.raises(asyncssh.ProtocolError):
                    door(channel)
                assert snapshot(channel) == before


@pytest.mark.parametrize("name", EVENTS)
@on_fast
async def test_packet_that_is_too_long(plane: DataPlane, name: str) -> None:
    """A packet with more in it than belongs there changes nothing."""
    with opened(plane) as bench:
        before = snapshot(bench.channel)
        with pytest.raises(PacketDecodeError):
            handle(bench.channel, EVENTS[name].kind, EVENTS[name].payload + b"x")
        assert snapshot(bench.channel) == before


@on_fast
async def test_packet_of_another_kind(plane: DataPlane) -> None:
    """Packets of kinds that we never ask for are left to asyncssh, which says that it does not know them."""
    with opened(plane) as bench:
        assert not bench.channel.process_packet(MSG_CHANNEL_SUCCESS, 0, SSHPacket(b""))


@on_fast
async def test_requests_are_answered(plane: DataPlane) -> None:
    """Every request fails where the peer wants to hear of it, and never after we have closed."""
    with opened(plane) as bench:
        request(False).through_asyncssh(bench.channel)
        assert bench.said == []
        request(True).through_asyncssh(bench.channel)
        assert bench.said == ["failure"]
        bench.channel.abort()
        request(True).through_asyncssh(bench.channel)
        assert bench.said == ["failure", "close"]


@on_fast
async def test_data_beyond_the_window(plane: DataPlane) -> None:
    """The peer may fill our window to the last byte, and one more breaks the protocol."""
    with opened(plane) as bench:
        bench.receive(bytes(window_left(bench.channel) - 1))
        with pytest.raises(asyncssh.ProtocolError):
            bench.receive(bytes(window_left(bench.channel) + 1))
        bench.receive(bytes(window_left(bench.channel)))


@on_fast
async def test_window_beyond_its_largest(plane: DataPlane) -> None:
    """A peer may open its window up to 2^32-1 bytes, and one more breaks the protocol."""
    with opened(plane, window=SEND_WINDOW_MAX - 5) as bench:
        bench.channel.adjust(5)
        with pytest.raises(asyncssh.ProtocolError):
            bench.channel.adjust(1)
        await bench.sends(b"x")
        await becomes(lambda: bench.sent == b"x")
        bench.channel.adjust(1)


@on_fast
async def test_data_of_no_bytes(plane: DataPlane) -> None:
    """A packet without data is allowed, and does nothing but count as tiny."""
    with opened(plane) as bench:
        bench.receive(b"")
        assert (bench.connection.tiny_packets, bench.waiting()) == (1, 0)
        bench.receive(MUCH)
        bench.receive(b"")
        assert bench.waiting()


@on_fast
async def test_tiny_packets_are_counted(plane: DataPlane) -> None:
    """Packets with less than TINY bytes are counted, others are not."""
    with opened(plane) as bench:
        for size in (1, TINY - 1, TINY, 10 * TINY):
            bench.receive(bytes(size))
        assert bench.connection.tiny_packets == 2


# Slowing down


@on_both
async def test_nothing_is_read_before_the_channel_is_open(plane: DataPlane) -> None:
    """What the far end sends before the channel is open stays with the kernel, and is passed on then."""
    with asked(plane) as bench:
        await bench.sends(b"early")
        await becomes(lambda: bench.unread() == 5)
        await asyncio.sleep(0.01)
        assert bench.unread() == 5
        bench.opens()
        await becomes(lambda: bench.sent == b"early")


@on_both
async def test_nothing_is_read_beyond_the_peers_window(plane: DataPlane) -> None:
    """What the peer's window does not take stays with the kernel; each grant lets so much through."""
    data = noise(3000)
    with opened(plane, window=1000) as bench:
        await bench.sends(data)
        await becomes(lambda: len(bench.sent) == 1000 and bench.unread() == 2000)
        bench.channel.adjust(500)
        await becomes(lambda: len(bench.sent) == 1500 and bench.unread() == 1500)
        bench.channel.adjust(1 << 20)
        await becomes(lambda: bench.sent == data)


@on_both
async def test_window_of_nothing(plane: DataPlane) -> None:
    """A peer may open a channel with a window of no bytes, and grant later."""
    with opened(plane, window=0) as bench:
        await bench.sends(b"question")
        await becomes(lambda: bench.unread() == 8)
        bench.channel.adjust(0)
        await asyncio.sleep(0.01)
        assert (bench.said, bench.unread()) == ([], 8)
        bench.channel.adjust(8)
        await becomes(lambda: bench.sent == b"question")


@pytest.mark.parametrize("size", [0, 10])
@on_both
async def test_end_needs_no_window(plane: DataPlane, size: int) -> None:
    """FIN is passed on also where the peer's window is used up to the last byte: an end takes no window."""
    with opened(plane, window=size) as bench:
        await bench.sends(bytes(size))
        await becomes(lambda: len(bench.sent) == size)
        bench.far_ends()
        await becomes(lambda: "eof" in bench.said)


@on_both
async def test_reset_needs_no_window(plane: DataPlane) -> None:
    """A reset is passed on also where the peer's window is used up to the last byte."""
    with opened(plane, window=10) as bench:
        await bench.sends(bytes(10))
        await becomes(lambda: len(bench.sent) == 10)
        bench.far_resets()
        await bench.says("data", "close")


@on_fast
async def test_reset_is_passed_on_before_what_waits(plane: DataPlane) -> None:
    """A reset is passed on also where the peer's window is used up and more bytes have come."""
    with opened(plane, window=10) as bench:
        await bench.sends(bytes(20))
        await becomes(lambda: len(bench.sent) == 10)
        bench.far_resets()
        await bench.says("data", "close")


@on_both
async def test_end_behind_bytes_waits_for_the_window(plane: DataPlane) -> None:
    """FIN behind bytes for which there is no window is passed on once they were, with no more window than they take."""
    with opened(plane, window=10) as bench:
        await bench.sends(bytes(25))
        bench.far_ends()
        await becomes(lambda: len(bench.sent) == 10)
        bench.channel.adjust(10)
        await becomes(lambda: len(bench.sent) == 20)
        assert "eof" not in bench.said
        bench.channel.adjust(5)
        await bench.says("data", "eof")
        assert len(bench.sent) == 25


@on_both
async def test_packets_are_no_larger_than_the_peer_takes(plane: DataPlane) -> None:
    """No packet is larger than the peer said, and none larger than ours may be."""
    for largest in (PACKET_MIN, 1000, 2**32 - 1):
        with opened(plane, packet=largest) as bench:
            sending = asyncio.ensure_future(bench.sends(MUCH))
            await becomes(lambda: bench.sent == MUCH)
            await sending
            assert max(bench.connection.sizes) <= min(largest, PACKET)


@on_both
async def test_full_connection_stops_the_socket(plane: DataPlane) -> None:
    """While the connection takes nothing, nothing is read from the socket; then it goes on by itself."""
    with opened(plane) as bench:
        bench.connection.outbox.hold()
        await bench.sends(b"later")
        await becomes(lambda: bench.unread() == 5)
        await asyncio.sleep(0.01)
        assert (bench.unread(), bench.said) == (5, [])
        bench.connection.outbox.release()
        await becomes(lambda: bench.sent == b"later")


@on_both
async def test_bulk_in_small_packets(plane: DataPlane) -> None:
    """A channel that fills packet after packet is no conversation, however little its peer takes in one: it waits its turn."""
    with asked(plane, buffers=len(MUCH)) as bench:
        await bench.sends(MUCH)
        turns: list[bool] = []
        enqueue = bench.connection.outbox.enqueue

        def note(source: Source, *, small: bool = False) -> None:
            turns.append(small)
            enqueue(source, small=small)

        bench.connection.outbox.enqueue = note  # type: ignore[method-assign]
        bench.opens(packet=PACKET_MIN)
        await becomes(lambda: len(bench.sent) == len(MUCH))
        assert turns
        assert not any(turns)


@on_both
async def test_channel_opens_on_a_full_connection(plane: DataPlane) -> None:
    """A channel that opens on a connection that is full does not start reading yet."""
    with asked(plane) as bench:
        bench.connection.outbox.hold()
        await bench.sends(b"later")
        bench.opens()
        await becomes(lambda: bench.unread() == 5)
        await asyncio.sleep(0.01)
        assert bench.said == []
        bench.connection.outbox.release()
        await becomes(lambda: bench.sent == b"later")


@on_both
async def test_slow_reader_is_waited_for(plane: DataPlane) -> None:
    """What the socket does not take is kept, never more than one window, and granted again only as the reader takes it."""
    with opened(plane) as bench:
        size = window_left(bench.channel)
        while left := window_left(bench.channel):
            bench.receive(bytes(min(left, PACKET)))
            assert bench.waiting() <= size
        assert (bench.connection.granted, bench.waiting()) == (0, size - bench.owner.tally.received)
        with pytest.raises(asyncssh.ProtocolError):
            bench.receive(b"x")
        assert len(await bench.reads(size)) == size
        await becomes(lambda: bench.waiting() == 0 and bench.connection.granted > size // 2)
        assert bench.connection.granted == window_left(bench.channel) <= size


@on_both
async def test_window_is_not_granted_after_the_end(plane: DataPlane) -> None:
    """Whoever has ended is granted nothing more."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        granted = bench.connection.granted
        bench.channel.got_eof()
        assert same(await bench.reads(), MUCH)
        assert bench.connection.granted == granted


@on_both
async def test_given_up_channel_is_not_granted(plane: DataPlane) -> None:
    """What still comes for a channel that was given up is dropped, and bounded by the window all the same."""
    with opened(plane) as bench:
        bench.channel.abort()
        bench.receive(bytes(window_left(bench.channel)))
        assert bench.connection.granted == 0
        with pytest.raises(asyncssh.ProtocolError):
            bench.receive(b"x")


@on_both
async def test_window_belongs_to_the_budget(plane: DataPlane) -> None:
    """A channel's window comes out of the budget when it is asked for, and is back when it is gone, not before."""
    with new(plane) as bench:
        total = plane.budget.left
        bench.ask()
        assert plane.budget.left == total - window_left(bench.channel)
        bench.opens()
        bench.receive(MUCH)
        bench.channel.got_eof()
        bench.channel.got_close()
        assert plane.budget.left < total
        await bench.reads()
        await becomes(lambda: bench.channel.is_gone)
        assert plane.budget.left == total


# Whatever happens


class Story:
    """A channel that lives through a script, and what both of its ends have said and heard."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.from_peer = bytearray()
        self.from_far = bytearray()
        self.at_far = bytearray()
        self.far_end = ""
        self.far_is_done = False
        self.steps: dict[str, Callable[[int], None]] = {
            "data": self.data,
            "eof": lambda _: self.peer(Channel.got_eof),
            "close": lambda _: self.peer(Channel.got_close),
            "adjust": lambda size: self.peer(lambda channel: channel.adjust(size)),
            "lose": lambda _: self.bench.connection.lose(),
            "abort": lambda _: self.bench.channel.abort(),
            "hold": lambda _: self.bench.connection.outbox.hold(),
            "release": lambda _: self.bench.connection.outbox.release(),
            "write": self.write,
            "fin": lambda _: self.fin(),
            "reset": lambda _: self.reset(),
            "read": self.read,
        }

    def data(self, size: int) -> None:
        """The peer sends data, where it may."""
        data = noise(size, len(self.from_peer))
        with suppress(asyncssh.ProtocolError):
            self.bench.receive(data)
            self.from_peer += data

    def peer(self, event: Callable[[Channel], None]) -> None:
        """The peer does something, where it may."""
        with suppress(asyncssh.ProtocolError):
            event(self.bench.channel)

    def write(self, size: int) -> None:
        """The far end writes what its socket takes."""
        if self.far_is_done:
            return
        data = noise(size, len(self.from_far))
        try:
            self.from_far += data[: self.bench.far.send(data)]
        except BlockingIOError:
            return
        except OSError:  # told once: reading would only show an end now
            self.far_is_done, self.far_end = True, "reset"

    def fin(self) -> None:
        """The far end ends."""
        if self.far_is_done:
            return
        try:
            self.bench.far_ends()
        except OSError:
            self.far_end = self.far_end or "reset"
        self.far_is_done = True

    def reset(self) -> None:
        if not self.far_end:
            self.far_is_done, self.far_end = True, "reset"
            self.bench.far_resets()

    def read(self, size: int) -> None:
        """The far end reads, and notes how its stream ended."""
        if self.far_end:
            return
        try:
            data = self.bench.far.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.far_end = "reset"
            return
        self.at_far += data
        if not data:
            self.far_end = "fin"

    async def tell(self, script: list[tuple[str, int, int]]) -> None:
        """Live through this, with so many turns of the loop after each step; then the far end reads everything."""
        for name, size, turns in script:
            self.steps[name](size)
            for _ in range(turns):
                await asyncio.sleep(0)
            self.check()
        self.bench.connection.outbox.release()
        if {name for name, _, _ in script} & BREAKING:
            for _ in range(100):
                await asyncio.sleep(0)
                self.read(1 << 20)
        else:
            await becomes(self.everything_passed, PATIENCE)
        self.check()

    def everything_passed(self) -> bool:
        """Whether what was said, and every end, has arrived, as far as the peer's window goes."""
        self.read(1 << 20)
        channel, said = self.bench.channel, self.bench.said
        there = not channel._send_window or len(self.bench.sent) == len(self.from_far)
        ended = len(self.bench.sent) < len(self.from_far) or ("eof" in said) == self.far_is_done
        return there and ended and self.at_far == self.from_peer and (self.far_end == "fin") == channel._got_eof

    def check(self) -> None:
        """The rules that hold at all times."""
        bench, said, heard = self.bench, self.bench.said, self.bench.owner.heard
        assert self.from_peer.startswith(self.at_far), "what is read is a prefix of what was written"
        assert self.from_far.startswith(bench.sent), "what is passed on is a prefix of what was written"
        if self.far_end == "fin":
            assert self.at_far == self.from_peer, "a clean end is shown only for a whole stream"
            assert bench.channel._got_eof
        if "eof" in said:
            assert bench.sent == self.from_far, "CHANNEL_EOF is said only for a whole stream"
            assert self.far_is_done
        assert said in [["data", "eof", "close"][start:end] for start in range(3) for end in range(start, 4)] or said == [
            "data",
            "close",
        ]
        assert heard == ["opened", "gone"][: 1 + bench.channel.is_gone]
        assert (bench.near.fileno() == -1) >= bench.channel.is_gone


OFTEN = ["data", "data", "read", "read", "write", "write"]
BREAKING = {"close", "lose", "abort", "reset"}
"""What may break a stream."""
script = st.lists(
    st.tuples(
        st.sampled_from([*OFTEN, "eof", "fin", "close", "adjust", "lose", "abort", "reset", "hold", "release"]),
        st.integers(1, 100_000),
        st.integers(0, 3),
    ),
    max_size=25,
)


@settings(max_examples=150)
@given(st.sampled_from(KINDS), script, st.sampled_from([100, 100_000, 1 << 30]))
def test_whatever_happens(kind: str, script: list[tuple[str, int, int]], window: int) -> None:
    """Whatever happens when, what one side reads is a prefix of what the other wrote, and only whole streams end cleanly."""

    async def tell(plane: DataPlane) -> None:
        with opened(plane, window=window) as bench:
            await Story(bench).tell(script)

    run_on(kind, tell)


# Owners and counters


@on_both
async def test_bytes_are_counted(plane: DataPlane) -> None:
    """Bytes count for the owner and for the connection: sent once they were sent, received once the kernel took them."""
    with opened(plane) as bench:
        await bench.sends(bytes(700))
        await becomes(lambda: len(bench.sent) == 700)
        bench.receive(MUCH)
        taken = len(MUCH) - bench.waiting()
        assert 0 < taken < len(MUCH)
        for tally in (bench.owner.tally, bench.connection.tally):
            assert (tally.sent, tally.received) == (700, taken)
        await bench.reads(len(MUCH))
        for tally in (bench.owner.tally, bench.connection.tally):
            await becomes(lambda: tally.received == len(MUCH))  # noqa: B023


@on_both
async def test_connections_are_counted(plane: DataPlane) -> None:
    """A channel counts as open from the agreement to the end of the channel."""
    with asked(plane) as bench:
        tallies = bench.owner.tally, bench.connection.tally
        assert [(tally.opened, tally.open) for tally in tallies] == [(0, 0)] * 2
        bench.opens()
        assert [(tally.opened, tally.open) for tally in tallies] == [(1, 1)] * 2
        bench.channel.got_close()
        assert [(tally.opened, tally.open) for tally in tallies] == [(1, 0)] * 2


@on_both
async def test_refused_channel_is_not_counted_as_open(plane: DataPlane) -> None:
    """A channel that never opened counts as refused, and as nothing else."""
    with asked(plane) as bench:
        bench.channel.process_open_failure(2, "no", "en")
        tally = bench.connection.tally
        assert (tally.opened, tally.closed, tally.refused, tally.last_error) == (0, 0, 1, "no")


@on_both
async def test_connection_forgets_what_is_closed(plane: DataPlane) -> None:
    """The connection is rid of a channel as soon as it is closed both ways, though its last bytes wait."""
    with opened(plane) as bench:
        bench.receive(MUCH)
        await whole(bench)
        assert bench.connection.channels == {bench.channel}
        bench.channel.got_close()
        assert (bench.connection.channels, bench.channel.connection) == (set(), None)
        assert same(await bench.reads(), MUCH)


# Helpers

MUCH_READ = 100_000
"""Some of MUCH: so much that the kernel has room again, so little that bytes wait all the same."""


def no_watching(_fd: int, _handler: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def same(one: bytes, other: bytes) -> bool:
    """Whether large data is the same; pytest would look for the differences for minutes."""
    return one == other


async def both_ended(bench: Bench, first: str) -> None:
    """Both directions come to their proper end, in this order."""
    if first == "fin":
        await whole(bench)
    else:
        bench.channel.got_eof()
        bench.far_ends()


def ends(bench: Bench, how: str) -> None:
    """The channel ends, or its connection is lost."""
    if how == "close":
        bench.channel.got_close()
    else:
        bench.connection.lose()


async def becomes_reset(bench: Bench) -> bytes:
    """What the far end reads before a reset, or before a clean end that a reset follows."""
    data = b""
    try:
        data = await bench.reads()
    except ConnectionResetError:
        return b""
    await becomes(lambda: is_reset(bench.far))
    return data


def is_reset(sock: socket.socket) -> bool:
    """Whether this socket has seen a reset, also after a clean end."""
    return tcp_state(sock) == TCP_CLOSE


def has_error(bench: Bench) -> bool:
    """Whether the kernel has seen the far end's reset."""
    return bench.tcp_state() == TCP_CLOSE


def drain(sock: socket.socket) -> None:
    """Read to a clean end."""
    while sock.recv(1 << 20):
        pass


def window_left(channel: Channel) -> int:
    """What the peer may still send."""
    assert channel._window
    return channel._window.left


def snapshot(channel: Channel) -> dict[str, object]:
    """All that a channel knows."""
    known = {name: getattr(channel, name) for name in Channel.__slots__}
    window = known["_window"]
    assert isinstance(window, ReceiveWindow)
    return known | {"left": window.left, "_pending": b"".join(known["_pending"] or ())}


class FakeOpening:
    """Remembers what was begun."""

    def __init__(self, connection: FakeConnection) -> None:
        self.connection: CarryingConnection = connection.real
        self.begun: list[Channel] = []
        self.given_up = 0
        self.sock: socket.socket | None = None

    def begin(self, channel: Channel) -> None:
        self.begun.append(channel)
        channel.sock = self.sock

    def give_up(self) -> None:
        assert self.sock
        assert self.sock.fileno() >= 0
        self.given_up += 1


@contextmanager
def requested(plane: DataPlane) -> Iterator[tuple[Channel, FakeConnection, FakeOwner]]:
    """A channel that the peer asks for, and that is begun and not opened."""
    with fake_connection(plane) as connection:
        owner, opening = FakeOwner(plane), FakeOpening(connection)
        channel = Channel(owner)
        channel.process_open(PEERS, 1 << 20, PACKET, opening)
        assert opening.begun == [channel]
        yield channel, connection, owner
        channel.abort()
    assert owner.heard.count("gone") == 1


@asynccontextmanager
async def in_state(plane: DataPlane, state: str) -> AsyncIterator[Channel]:
    """A channel in this state."""
    if state == "dialling":
        with requested(plane) as (channel, _, _):
            yield channel
    elif state in ("opening", "abandoned"):
        with asked(plane) as bench:
            if state == "abandoned":
                bench.channel.abandon()
            yield bench.channel
    else:
        with opened(plane) as bench:
            await brought_to(state, bench)
            yield bench.channel


async def brought_to(state: str, bench: Bench) -> None:
    """Have an open channel live through what leads to this state."""
    if state == "closed, and not empty":
        bench.receive(MUCH)
    if state in ("ended by us", "ended both ways"):
        bench.far_ends()
        await bench.says("eof")
    if state in ("ended by the peer", "ended both ways", "closed, and not empty"):
        bench.channel.got_eof()
    if state == "given up":
        bench.channel.abort()
    if state.startswith("closed"):
        bench.channel.got_close()
    if state == "lost":
        bench.connection.lose()
