"""What is sent arrives, all of it and unchanged, and ends as it ended: for every size, pace and order of events."""

from __future__ import annotations

import random

import pytest

from tests.contract.conftest import Forward
from tests.contract.variants import VARIANTS
from tests.support.peers import Peer, arrived, converse, ended, moved, settle, whole
from tests.support.services import noise

MB = 1_000_000
SMALL_SIZES = [0, 1, 2, 35, 255, 256, 32767, 32768, 32769, 65536, 262143, 262144, 262145]
"""Around the limits of packets, buffers and powers of two."""
TELLING_CIPHERS = [variant for variant in VARIANTS if variant.tells_ciphers]
DIRECTIONS = ["up", "down", "both"]


def exchange(forward: Forward, up: bytes, down: bytes, *, step: int | None = None, door: str = "ipv4") -> None:
    """Client and service each send theirs and end; both must have got all of the other's. `step`: bytes in one write."""
    with forward.line(door) as (near, far):
        client, service = Peer(near, up), Peer(far, down)
        client.send_step = service.send_step = step or client.send_step
        converse(client, service)
    assert (service.seen, client.seen) == (whole(up), whole(down))


def streams(direction: str, size: int) -> tuple[bytes, bytes]:
    """What goes up and what comes down."""
    return (noise(size, 1) if direction != "down" else b"", noise(size, 2) if direction != "up" else b"")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_small_streams(forward: Forward, direction: str) -> None:
    """Streams of every critical size arrive whole."""
    for size in SMALL_SIZES:
        exchange(forward, *streams(direction, size))


@pytest.mark.parametrize("size", [MB, 9 * MB], ids=["1MB", "9MB"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_large_streams(forward: Forward, direction: str, size: int) -> None:
    """Streams larger than every window, and than what may go between two key exchanges, arrive whole."""
    exchange(forward, *streams(direction, size))


@pytest.mark.parametrize(("step", "writes"), [(1, 2000), (7, 2000), (1000, 500), (65537, 30)])
def test_odd_pieces(forward: Forward, step: int, writes: int) -> None:
    """However a stream is cut into writes, it arrives whole."""
    exchange(forward, *streams("both", step * writes), step=step)


def test_pieces_arrive_without_more_coming_after_them(forward: Forward) -> None:
    """Nothing waits for company: each side writes its next piece only when the last has arrived, both ways at once."""
    sizes = random.Random(3)
    up, down = streams("both", 100_000)
    with forward.line() as (near, far):
        client, service = Peer(near, up), Peer(far, down)
        client.may_send, service.may_send = arrived(client, service), arrived(service, client)
        while client.sent < len(up) or service.sent < len(down):
            client.send_step, service.send_step = sizes.randint(1, 3000), sizes.randint(1, 3000)
            converse(client, service, until=moved(client, client.sent + client.received + 1))
        converse(client, service)
    assert (service.seen, client.seen) == (whole(up), whole(down))


@pytest.mark.parametrize("direction", ["up", "down"])
def test_slow_reader(forward: Forward, direction: str) -> None:
    """A reader that takes nothing holds the writer up; whenever it reads on, the writer goes on, and all of it arrives."""
    data = noise(16 * MB, 4)
    with forward.line() as (near, far):
        reader, writer = Peer(near, read_step=5000), Peer(far, data)
        if direction == "up":
            reader.sock, writer.sock = far, near
        for part in range(3):
            reader.reads_up_to = part * MB
            settle(reader, writer)
            assert writer.sent < len(data), "all of it was swallowed on the way"
        reader.reads_up_to = None
        converse(reader, writer)
    assert (reader.seen, writer.seen) == (whole(data), whole(b""))


def test_answer_after_the_end_of_the_request(forward: Forward) -> None:
    """The service answers once it has seen the request's end: the answer comes whole."""
    request, answer = noise(MB, 5), noise(3 * MB, 6)
    with forward.line() as (near, far):
        client, service = Peer(near, request), Peer(far, answer)
        service.may_send = ended(service)
        converse(client, service)
    assert (service.seen, client.seen) == (whole(request), whole(answer))


def test_service_that_ends_first(forward: Forward) -> None:
    """A client that has seen the service's end goes on sending, and all of it arrives."""
    greeting, data = noise(1000, 7), noise(3 * MB, 8)
    with forward.line() as (near, far):
        client, service = Peer(near, data), Peer(far, greeting)
        client.may_send = ended(client)
        converse(client, service)
    assert (service.seen, client.seen) == (whole(data), whole(greeting))


def test_end_towards_a_reader_that_waits(forward: Forward) -> None:
    """Both sides end while nobody reads: whatever is on the way still arrives, both ways."""
    up, down = streams("both", 300_000)
    with forward.line() as (near, far):
        client, service = Peer(near, up, reads_up_to=0), Peer(far, down, reads_up_to=0)
        settle(client, service)
        client.reads_up_to = service.reads_up_to = None
        converse(client, service)
    assert (service.seen, client.seen) == (whole(up), whole(down))


def test_service_on_ipv6_alone(forward: Forward) -> None:
    """A service that listens on ::1 alone is reached as one on 127.0.0.1 is."""
    exchange(forward, *streams("both", 300_000), door="ipv6")


def test_forty_connections_at_once(forward: Forward) -> None:
    """Forty streams up and forty down, all at once: each end gets its own."""
    ups, downs = ([noise(131_072, seed + number) for number in range(40)] for seed in (100, 200))
    with forward.lines(40) as lines:
        clients = [Peer(near, up) for (near, _), up in zip(lines, ups, strict=True)]
        services = [Peer(far, down) for (_, far), down in zip(lines, downs, strict=True)]
        converse(*clients, *services)
    assert [service.seen for service in services] == [whole(up) for up in ups]
    assert [client.seen for client in clients] == [whole(down) for down in downs]


@pytest.mark.parametrize("forward", TELLING_CIPHERS, indirect=True, ids=str)
def test_keys_change_on_the_way(forward: Forward) -> None:
    """So that the tests above mean it: the cipher is the one asked for, and keys are exchanged again within 9 MB."""
    assert forward.ciphers_agreed is not None
    before = len(forward.ciphers_agreed())
    exchange(forward, *streams("up", 9_000_000))
    after = forward.ciphers_agreed()
    assert len(after) > before
    assert set(after) == {forward.cipher}
