"""Bounds of the data path: what slow, greedy and many peers may take of an agent, and of others."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from knot_ssh.dataplane.limits import MIB
from tests.faults.beds import FULL, Bed
from tests.faults.victims import GREEDY, SOON, Disturbed, steadily
from tests.support.figures import Figure
from tests.support.load import DESCRIPTORS_BESIDES, Load, Pinging, raise_descriptor_limit
from tests.support.measures import KIB, Growth
from tests.support.services import connect, is_reset, serving
from tests.support.stuck import connections, push, service
from tests.support.waiting import until

IN_FLIGHT = 64 * MIB
"""What the peers of one agent may have it hold, all together: the default of `max_in_flight`."""
FLOOR = 32 * KIB
"""What each channel may hold even when that is used up: one packet."""
LEFT_BEHIND = IN_FLIGHT // 4
"""What may stay after all is over: pooled buffers (4 MiB), and what is freed after the allocator was told to give memory back,
which is when three quarters of what may be in flight are free again."""
ASKED = 200 * MIB
"""What each stuck reader has asked for."""
AFTERWARDS = 5
"""Seconds until memory must be free again."""
TRANSFER = 256 * MIB if FULL else 64 * MIB
TRIES = 3
"""Transfers of which the fastest counts: the machine is shared with others."""
PATIENCE = 10
"""Seconds in which one transfer must have been fast enough; what is slow for good never is."""
FEW = 20
"""Stuck connections that leave room for windows of the full size."""
GREEDY_WINDOW = 2**30
FLOOD = 200_000
"""Packets of one byte; twice what the default of `max_small_packets` allows a second."""
CROWD = 5_000 if FULL else 2_000
CROWD_BYTES = 64 * KIB
CROWD_SECONDS = 20
PER_CONNECTION = 4 * KIB
"""What an idle connection may cost an agent, kernel apart."""


@contextlib.contextmanager
def giving(size: int) -> Iterator[int]:
    """A service that sends so many bytes to everybody; gives its port."""
    piece = bytes(MIB)

    def give(sock: socket.socket) -> None:
        for _ in range(size // MIB):
            sock.sendall(piece)

    with serving(give) as port:
        yield port


def download(local: int, size: int) -> float:
    """Bytes a second."""
    buffer = memoryview(bytearray(MIB))
    with connect(local) as sock:
        began, left = time.perf_counter(), size
        while count := sock.recv_into(buffer):
            left -= count
        assert left == 0
        return size / (time.perf_counter() - began)


def fastest(local: int, size: int, enough: float = float("inf")) -> float:
    """Bytes a second of the fastest of some downloads; tries on for a while when that is not enough."""
    best = max(download(local, size) for _ in range(TRIES))
    deadline = time.monotonic() + PATIENCE
    while best < enough < float("inf") and time.monotonic() < deadline:
        best = max(best, download(local, size))
    return best


def settled(growths: list[Growth]) -> int:
    """What the memory of the worse of these has grown by, as soon as it is little, or after a while."""
    with contextlib.suppress(AssertionError):
        until(lambda: max(growth.memory for growth in growths) < LEFT_BEHIND, AFTERWARDS)
    return max(growth.memory for growth in growths)


@pytest.mark.fault(
    "stuck readers and writers", "each agent < 64 MiB and a packet each; a transfer beside 20 of them keeps half its speed"
)
@pytest.mark.parametrize(
    ("direction", "count"),
    [("readers", FEW), ("writers", FEW), ("readers", 5 * FEW), *([("writers", 5 * FEW)] if FULL else [])],
)
def test_stuck_connections_hold_little(bed: Bed, direction: str, count: int, figure: Figure) -> None:
    """Connections on which one end writes 200 MB and the other reads nothing cost each agent less than 64 MiB (and a packet
    each); a transfer beside twenty of them keeps half its speed; when they go, so does the memory, and new ones work."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(service())
        stuck_port = bed.forward(listener.getsockname()[1])
        transfer_port = bed.forward(stack.enter_context(giving(TRANSFER)))
        alone = fastest(transfer_port, TRANSFER)
        growths = [Growth(meter) for meter in bed.meters]
        descriptors = [meter.descriptors() for meter in bed.meters]
        with connections(listener, stuck_port, count) as stuck:
            taken = stuck.push_down(ASKED) if direction == "readers" else stuck.push_up(ASKED)
            assert taken < count * ASKED / 2, "they are not stuck"
            held = [growth.peak for growth in growths]
            report = ", ".join(map(str, growths))
            beside = fastest(transfer_port, TRANSFER, alone / 2 if count <= FEW else 0)
        until(lambda: [meter.descriptors() for meter in bed.meters] <= descriptors, what="descriptors are free again")
        left = settled(growths)
        figure(f"{count} stuck {direction} took {taken / MIB:.0f} MiB, most of it in the kernel: {report}; a transfer "
              f"{beside / MIB:.0f} MiB/s, before {alone / MIB:.0f}; after: {', '.join(map(str, growths))}")  # fmt: skip
        with connections(listener, stuck_port, 1):
            pass
    assert max(held) < IN_FLIGHT + count * FLOOR
    assert left < LEFT_BEHIND
    assert beside > alone / 2 or count > FEW


@pytest.mark.threat(9, "a window of 1 GiB, then stop reading", "memory < 16 MiB")
@pytest.mark.fault("window of 1 GiB that nobody reads", "memory < 16 MiB")
def test_greedy_window_costs_little(bed: Bed, figure: Figure) -> None:
    """A peer that grants a window of 1 GiB and stops reading makes the agent hold less than 16 MiB, and is not cut off."""
    with service() as listener, bed.peer() as peer:
        growth = Growth(bed.meters[1])
        peer.open(listener.getsockname()[1], window=GREEDY_WINDOW)
        sock, _ = listener.accept()
        with sock:
            taken = push([sock], GREEDY_WINDOW)
            held, report = growth.peak, str(growth)
            figure(f"a window of 1 GiB, unread: the service got rid of {taken / MIB:.1f} MiB; {report}")
            assert not is_reset(sock)
    assert taken < GREEDY_WINDOW / 2
    assert held < GREEDY


@pytest.mark.threat(10, "200,000 packets of one byte", f"others' p99 < {SOON * 1000:.0f} ms, memory < 16 MiB")
@pytest.mark.fault("flood of one-byte packets", f"others' p99 < {SOON * 1000:.0f} ms, memory < 16 MiB")
@steadily
def test_one_byte_flood_disturbs_nobody(bed: Bed, echo: int, figure: Figure) -> None:
    """200,000 packets of one byte, to a service that does not read, as fast as they can be written: memory stays where it
    is, and of the round trips of others 99 in 100 take less than 50 ms."""
    local = bed.forward(echo)
    with service() as listener, bed.peer() as peer:
        channel = peer.open(listener.getsockname()[1])
        sock, _ = listener.accept()
        with sock:
            peer.fill(channel, FLOOD)
            packets = b"".join(peer.data(channel, b"x") for _ in range(FLOOD))
            growth = Growth(bed.meters[1])
            with Pinging(local) as trips:
                began = time.perf_counter()
                sent = peer.flood(packets)
                peer.ask_something()
                seconds = time.perf_counter() - began
            figure(f"{FLOOD} packets of one byte in {seconds:.2f} s: {growth}; others meanwhile: {trips}")
            assert sent == len(packets)
    assert growth.peak < GREEDY
    if trips.p99 >= SOON:
        raise Disturbed(str(trips))


@pytest.mark.fault(
    f"{CROWD} connections through one forward, {CROWD_BYTES // KIB} KiB on each",
    f"no error, < {PER_CONNECTION // KIB} KiB for an idle one, < {CROWD_SECONDS} s",
)
def test_crowd_at_once(bed: Bed, echo: int, figure: Figure) -> None:
    """5,000 connections through one forward, 64 KiB on each at once and back: no error, every byte right; an idle one costs
    an agent less than 4 KiB."""
    if raise_descriptor_limit() < CROWD + DESCRIPTORS_BESIDES:
        pytest.skip(f"the hard limit of open files is below {CROWD + DESCRIPTORS_BESIDES}")
    local = bed.forward(echo)
    before = [meter.descriptors() for meter in bed.meters]
    growths = [Growth(meter) for meter in bed.meters]
    with Load("swarm", str(local), str(CROWD), str(CROWD_BYTES)) as swarm:
        opened = json.loads(swarm.line())
        until(lambda: [meter.descriptors() - CROWD for meter in bed.meters] == before, what="every connection is carried")
        idle = [growth.memory / CROWD for growth in growths]
        swarm.tell()
        done = json.loads(swarm.line())
        report = ", ".join(map(str, growths))
    until(lambda: [meter.descriptors() for meter in bed.meters] == before, what="every connection has gone")
    figure(f"{CROWD} connections in {opened['seconds']:.2f} s, {CROWD_BYTES // KIB} KiB on each and back in "
          f"{done['seconds']:.2f} s; idle {idle[0]:.0f} and {idle[1]:.0f} bytes a connection; {report}")  # fmt: skip
    assert done["problems"] == {}
    assert done["wrong"] == 0
    assert max(idle) < PER_CONNECTION
    assert max(growth.peak for growth in growths) < IN_FLIGHT + CROWD * PER_CONNECTION
    assert opened["seconds"] + done["seconds"] < CROWD_SECONDS
