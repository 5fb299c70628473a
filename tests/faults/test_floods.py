"""Floods: a peer with a good certificate that asks for more than anybody needs, or does not listen to the answers."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_REQUEST,
    MSG_DEBUG,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
)
from asyncssh.packet import Boolean, String, UInt32

from knot_ssh.dataplane.limits import KIB, MIB
from tests.faults.beds import FULL
from tests.faults.victims import GREEDY, SOON, Victim, steadily
from tests.support.figures import Figure
from tests.support.load import Load
from tests.support.rawssh import PACKET, Opened, RawSSH, Refused
from tests.support.services import connect, free_port, reset
from tests.support.stuck import push, service
from tests.support.waiting import until

OPENS = 10_000 if FULL else 3_000
"""Requests for channels."""
REQUESTS = 60_000 if FULL else 15_000
"""Requests of which each costs the victim an answer."""
UNREAD = 400_000
"""Requests whose answers, 36 bytes each, are more than the kernel's buffers and BACKLOG (4 MiB) together."""
UNFINISHED = 400_000
"""Requests within a key exchange that never ends."""
AT_A_TIME = 20_000
REKEYS = 200 if FULL else 30
CHURN = 5_000 if FULL else 500
MANY = 100
"""SSH connections of one peer."""
MANY_GREEDY = 200 if FULL else 60
"""More than the agent has large buffers for (PLENTY, 32)."""
SMALL_CHANGE = 128 * KIB
"""What an SSH connection may cost that has sent next to nothing."""
SPARE = 8 * MIB
"""What the agent may keep of buffers that were used before."""
MANY_HOLD = 64 * MIB
"""What all peers together may have an agent hold."""
SILLY = 20_000
"""Window adjustments by one byte."""
SMALLEST_PACKET = 256
GONE = 600 if FULL else 120
CONSEQUENCE = 5
"""Seconds until something must have happened."""
MAX_CHANNELS = 10_000
"""Channels of one connection: the default of the setting."""
EXTRA = 10
LOG_BYTES = 64 * KIB
"""What one peer may have written to the log in a second or two."""
BATCH = 20
BATCHES = 500 if FULL else 100
STREAMS = 8
STREAM = 4 * MIB

Flood = Callable[[RawSSH, Opened, int], bytes]
"""Makes so many packets."""


def repeated(peer: RawSSH, count: int, kind: int, *parts: bytes) -> bytes:
    payload = b"".join(parts)
    return b"".join(peer.seal(kind, payload) for _ in range(count))


def global_requests(peer: RawSSH, _channel: Opened, count: int, *, reply: bool = True) -> bytes:
    return repeated(peer, count, MSG_GLOBAL_REQUEST, String("x"), Boolean(reply))


def listen_requests(peer: RawSSH, _channel: Opened, count: int) -> bytes:
    """These take asyncssh a task each."""
    return repeated(peer, count, MSG_GLOBAL_REQUEST, String("tcpip-forward"), Boolean(True), String("0.0.0.0"), UInt32(0))


def channel_requests(peer: RawSSH, channel: Opened, count: int, *, reply: bool = True) -> bytes:
    return repeated(peer, count, MSG_CHANNEL_REQUEST, UInt32(channel.theirs), String("x"), Boolean(reply))


def unknown_packets(peer: RawSSH, _channel: Opened, count: int) -> bytes:
    return repeated(peer, count, 200)


def forbidden_opens(peer: RawSSH, _channel: Opened, count: int) -> bytes:
    return b"".join(peer.opening(22, host="192.0.2.1") for _ in range(count))


def unanswered(peer: RawSSH, channel: Opened, count: int) -> bytes:
    """Packets of all kinds that are not answered."""
    count //= 5
    return (
        repeated(peer, count, MSG_IGNORE, String(""))
        + repeated(peer, count, MSG_DEBUG, Boolean(True), String("x"), String(""))
        + global_requests(peer, channel, count, reply=False)
        + channel_requests(peer, channel, count, reply=False)
        + b"".join(peer.adjust(channel, 0) for _ in range(count))
    )


ANSWERED = [listen_requests, channel_requests, global_requests, unknown_packets]
"""The first is cut off soon: no more than 64 such requests may wait."""


@contextlib.contextmanager
def unresponsive() -> Iterator[int]:
    """A port that is bound and never answers: the queue of its listener is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = int(listener.getsockname()[1])
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield port


def flood_until_cut_off(peer: RawSSH, most: int, make: Callable[[int], bytes]) -> int:
    """Send up to so many packets; gives how many bytes that were when the peer was given up."""
    sent = 0
    while most > 0 and not peer.is_cut_off():
        sent += peer.flood(make(AT_A_TIME))
        most -= AT_A_TIME
    return sent


@pytest.mark.threat(10, "flood of requests, global and for channels", f"others' p99 < {SOON * 1000:.0f} ms, memory < 16 MiB")
@pytest.mark.fault("flood of requests on one connection", "others' round trips undisturbed, memory < 16 MiB")
@pytest.mark.parametrize("flood", [*ANSWERED[1:], forbidden_opens, unanswered], ids=lambda flood: flood.__name__)
@steadily
def test_requests(victim: Victim, flood: Flood, figure: Figure) -> None:
    """A flood of packets that have to be judged one by one, with the answers read: others do not notice."""
    count = REQUESTS // 10 if flood is forbidden_opens else REQUESTS
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        channel = peer.open(victim.echo)
        packets = flood(peer, channel, count)
        watch.trips.mark()
        began = time.perf_counter()
        sent = peer.flood_and_read(packets)
        seconds = time.perf_counter() - began
    figure(f"{flood.__name__} x {count} in {seconds:.2f} s: {watch}")
    assert sent == len(packets)
    assert watch.growth.peak < GREEDY


@pytest.mark.parametrize("flood", ANSWERED if FULL else ANSWERED[:2], ids=lambda flood: flood.__name__)
@steadily
def test_requests_with_answers_unread(victim: Victim, flood: Flood) -> None:
    """A peer that never reads the answers is given up, and held little for."""
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        channel = peer.open(victim.echo)
        watch.trips.mark()
        sent = flood_until_cut_off(peer, UNREAD, lambda count: flood(peer, channel, count))
        given_up = peer.is_cut_off()
    print(f"\n{flood.__name__}, unread, {sent / MIB:.1f} MiB: {watch}")
    assert watch.growth.peak < GREEDY
    assert given_up


@pytest.mark.parametrize("flood", ANSWERED if FULL else ANSWERED[:2], ids=lambda flood: flood.__name__)
@steadily
def test_requests_within_an_endless_key_exchange(victim: Victim, flood: Flood) -> None:
    """Answers have to wait for the end of a key exchange; a peer that never ends it cannot pile them up."""
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        channel = peer.open(victim.echo)
        peer.begin_keys()
        sent = flood_until_cut_off(peer, UNFINISHED, lambda count: flood(peer, channel, count))
        print(f"\n{flood.__name__} in a key exchange, {sent / MIB:.1f} MiB: {watch.growth}")
    assert watch.growth.peak < GREEDY


@pytest.mark.threat(10, "flood of channels to a closed port", f"others' p99 < {SOON * 1000:.0f} ms, memory < 16 MiB")
@pytest.mark.fault("flood of channels to a closed port", "others' round trips undisturbed, memory < 16 MiB")
@steadily
def test_opens_to_a_closed_port(victim: Victim, figure: Figure) -> None:
    """10,000 requests for channels to a port on which nobody listens are refused one by one, and others do not notice."""
    closed = free_port()
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        packets = b"".join(peer.opening(closed) for _ in range(OPENS))
        watch.trips.mark()
        sent = peer.flood_and_read(packets)
    figure(f"{OPENS} channels to a closed port: {watch}")
    assert sent == len(packets)
    assert watch.growth.peak < GREEDY


@pytest.mark.threat(10, "flood of channels to a silent port", f"others' p99 < {SOON * 1000:.0f} ms, < 1 KiB each and 16 MiB")
@pytest.mark.fault("flood of channels to a silent port", "others' round trips undisturbed, memory < 16 MiB")
@steadily
def test_opens_to_a_silent_port(victim: Victim, figure: Figure) -> None:
    """10,000 requests for channels to a port that never answers: others do not notice, and when the peer hangs up every
    descriptor is free again and works for the next one."""
    with unresponsive() as silent, victim.unharmed() as watch:
        with victim.bed.peer() as peer:
            packets = b"".join(peer.opening(silent) for _ in range(OPENS))
            before = victim.bed.meters[1].descriptors()
            watch.trips.mark()
            peer.flood(packets)
            until(lambda: victim.bed.meters[1].descriptors() >= before + OPENS - 1, what="every channel is being dialled")
        for _ in range(3):
            assert victim.works()
    figure(f"{OPENS} channels to a silent port: {watch}")
    assert watch.growth.peak < GREEDY + OPENS * KIB


@steadily
def test_channels_beyond_the_limit(victim: Victim) -> None:
    """One connection has no more than `max_channels` channels at a time, however they are opened; others get theirs."""
    with unresponsive() as silent, victim.unharmed() as watch, victim.bed.peer() as peer:
        before = victim.bed.meters[1].descriptors()
        packets = b"".join(peer.opening(silent) for _ in range(MAX_CHANNELS + EXTRA))
        watch.trips.mark()
        peer.flood(packets)
        refused = [peer.answer() for _ in range(EXTRA)]
        held = victim.bed.meters[1].descriptors() - before
        print(f"\n{MAX_CHANNELS} channels of one connection: {watch.growth}")
        assert all(isinstance(answer, Refused) for answer in refused), refused[:1]
        assert held <= MAX_CHANNELS + 1
        assert victim.works()


@steadily
def test_channels_that_come_and_go(victim: Victim) -> None:
    """Channels that are opened, used and closed in every way leave nothing behind."""
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        for number in range(CHURN):
            channel = peer.open(victim.echo)
            hello = peer.data(channel, b"hello") if number % 2 else b""
            end = peer.eof(channel) if number % 3 else b""
            peer.sock.sendall(hello + end + peer.closing(channel))
        peer.ask_something()
    print(f"\n{CHURN} channels, one after the other: {watch}")
    assert watch.growth.memory < GREEDY


@steadily
def test_channels_that_are_opened_and_closed_at_once(victim: Victim) -> None:
    """A flood of channels that open and close without waiting, twenty at a time, which takes and gives back most of what may
    be in flight each time: others do not notice."""
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        packets = []
        for batch in range(BATCHES):
            packets += [peer.opening(victim.echo) for _ in range(BATCH)]
            packets += [peer.seal(MSG_CHANNEL_CLOSE, UInt32(batch * BATCH + number)) for number in range(BATCH)]
        flood = b"".join(packets)
        watch.trips.mark()
        began = time.perf_counter()
        sent = peer.flood_and_read(flood)
        seconds = time.perf_counter() - began
    print(f"\n{BATCHES * BATCH} channels opened and closed in {seconds:.2f} s: {watch}")
    assert sent == len(flood)
    assert watch.growth.peak < GREEDY


@pytest.mark.threat(10, "storm of key exchanges after the login", f"others' p99 < {SOON * 1000:.0f} ms")
@pytest.mark.fault("storm of key exchanges", "others' round trips undisturbed")
@steadily
def test_rekey_storm(victim: Victim, figure: Figure) -> None:
    """A peer that exchanges keys all the time, its channel in use, takes processor time and no more."""
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        channel = peer.open(victim.echo)
        watch.trips.mark()
        began = time.perf_counter()
        for _ in range(REKEYS):
            peer.exchange_keys()
            peer.sock.sendall(peer.data(channel, b"x" * 100))
            peer.expect(MSG_CHANNEL_DATA)
        seconds = time.perf_counter() - began
    figure(f"{REKEYS} key exchanges in {seconds:.2f} s: {watch}")


@pytest.mark.parametrize(("size", "before_login"), [(5, False), (5, True), (200 * KIB, False), (30 * KIB, True)])
@steadily
def test_halves_of_packets(victim: Victim, size: int, before_login: bool) -> None:
    """Connections that send the first part of a packet and then nothing cost what they sent, and little more."""
    with victim.unharmed() as watch, contextlib.ExitStack() as stack:
        half = UInt32((32 if before_login else 256) * KIB) + bytes(size - 4)
        watch.trips.mark()
        for _ in range(MANY):
            peer = RawSSH.dial(victim.bed.endpoint) if before_login else victim.bed.peer()
            stack.enter_context(peer).flood(half)  # stock cuts off who begins a large packet before there is a channel
        with victim.bed.peer() as last:
            last.ask_something()
        print(f"\n{MANY} halves of packets, {size} bytes each: {watch.growth}")
    assert watch.growth.peak < MANY * (size + SMALL_CHANGE) + SPARE


@steadily
def test_packets_of_strangers_are_small(victim: Victim) -> None:
    """Who has not logged in cannot have the agent wait for a large packet."""
    with victim.unharmed(), RawSSH.dial(victim.bed.endpoint) as peer:
        peer.sock.sendall(UInt32(256 * KIB) + bytes(KIB))
        assert peer.has_ended(CONSEQUENCE)


@pytest.mark.threat(9, f"{MANY_GREEDY} connections, each with a window of 1 GiB that nobody reads", "together < 64 MiB")
@steadily
def test_many_greedy_connections(victim: Victim, figure: Figure) -> None:
    """Many connections that each grant 1 GiB and do not read cost the agent no more than all peers together may,
    and streams of others beside them arrive whole."""
    with service() as listener, victim.unharmed() as watch, contextlib.ExitStack() as stack:
        socks = []
        for _ in range(MANY_GREEDY):
            stack.enter_context(victim.bed.peer()).open(listener.getsockname()[1], window=2**30)
            sock, _ = listener.accept()
            socks.append(stack.enter_context(sock))
        taken = push(socks, 2**30)
        peak = watch.growth.peak
        figure(f"{taken / MIB:.0f} MiB sent by services, most of it in the kernel; {watch.growth}")
        watch.trips.look_away()
        with Load("swarm", str(victim.local), str(STREAMS), str(STREAM)) as swarm:
            swarm.line()
            swarm.tell()
            done = json.loads(swarm.line())
    assert peak < MANY_HOLD
    assert done["problems"] == {}
    assert done["wrong"] == 0


@pytest.mark.parametrize(("packet", "window"), [(SMALLEST_PACKET, 2**31), (PACKET, 0)], ids=["packet", "window"])
@steadily
def test_silly_terms(victim: Victim, packet: int, window: int) -> None:
    """A peer that takes bulk data in the smallest packets, or grants a window of a byte at a time, slows nobody but itself."""
    with service() as listener, victim.unharmed() as watch, victim.bed.peer() as peer:
        channel = peer.open(listener.getsockname()[1], packet=packet, window=window)
        sock, _ = listener.accept()
        with sock:
            sock.setblocking(False)
            sent = sock.send(bytes(4 * MIB))
            grants = b"".join(peer.adjust(channel, 1) for _ in range(SILLY))
            watch.trips.mark()
            peer.flood(grants)
            got = 0
            while got < (min(sent, SILLY) if not window else sent):
                _, data = peer.expect(MSG_CHANNEL_DATA)
                data.get_uint32()
                got += len(data.get_string())
    print(f"\n{got} bytes in packets of {packet} and windows of {window or 1}: {watch}")


@steadily
def test_connections_that_go_at_every_stage(victim: Victim) -> None:
    """Peers that vanish, politely or with a reset, at any point from the first byte to a full channel leave nothing behind."""
    address, key = victim.bed.endpoint, victim.bed.key
    with victim.unharmed() as watch:
        for number in range(GONE):
            stage, rude = divmod(number, 2)
            sock = socket.create_connection(address, timeout=CONSEQUENCE)
            with RawSSH(sock) as peer:
                if stage % 6 > 0:
                    peer.greet()
                if stage % 6 > 1:
                    peer.begin_keys()
                if stage % 6 > 2:
                    peer.exchange_keys()
                if stage % 6 > 3:
                    peer.log_in(key)
                if stage % 6 > 4:
                    channel = peer.open(victim.echo, window=10)
                    peer.sock.sendall(peer.data(channel, bytes(PACKET)))
                if rude:
                    reset(sock)
    print(f"\n{GONE} connections gone: {watch}")
    assert watch.growth.memory < GREEDY


@steadily
def test_local_clients_that_vanish(victim: Victim) -> None:
    """Clients of a forward that connect and reset at once leave nothing behind at either end."""
    with victim.unharmed() as watch:
        for _ in range(GONE):
            reset(connect(victim.local))
    print(f"\n{GONE} clients gone: {watch}")


@steadily
def test_refusals_do_not_fill_the_disk(victim: Victim) -> None:
    """What a peer is refused is logged, but not without limit."""
    running = victim.bed.target.running
    assert running
    with victim.unharmed() as watch, victim.bed.peer() as peer:
        before = running.log.stat().st_size
        peer.flood_and_read(b"".join(peer.opening(22, host="x" * 200) for _ in range(OPENS)))
        written = running.log.stat().st_size - before
    print(f"\n{OPENS} refusals, {written / KIB:.0f} KiB of log: {watch}")
    assert written < LOG_BYTES
