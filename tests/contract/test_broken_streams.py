"""A stream that breaks off is never taken for a whole one: its reader gets an exact prefix and a reset.

Some other programs cannot tell a reset from an end (see `Tells`); through them too, what arrives is an exact prefix.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from tests.contract.conftest import Forward
from tests.support.doors import Line
from tests.support.peers import Finish, Peer, Stream, converse, cut, ended, moved, settle, whole
from tests.support.services import connect, noise, reset

SIZE = 2_000_000
STEP = 10_000
"""Bytes in one call, so that a break may come at many places."""
MOMENTS = 4
"""Breaks in one test, each at a random place of its own part of the stream."""
FLOWS = {"to it": (False, True), "from it": (True, False), "both ways": (True, True)}
"""Whether the side that will reset sends, and whether the other does."""


def moments(name: str) -> Iterator[int]:
    """Numbers of bytes, spread over a stream; the same ones each time."""
    part = SIZE // MOMENTS
    for number in range(MOMENTS):
        yield number * part + random.Random(f"{name} {number}").randrange(part)


def rude_and_other(line: Line, who: str, rude_sends: bytes, other_sends: bytes) -> tuple[Peer, Peer]:
    """The side that will reset, and the one that must hear of it. Neither ends before the other."""
    near, far = line if who == "client" else reversed(line)
    return Peer(near, rude_sends, STEP, STEP, Finish.LAST), Peer(far, other_sends, STEP, STEP, Finish.LAST)


def is_told(forward: Forward, who: str) -> bool:
    return forward.tells.client_reset if who == "client" else forward.tells.service_reset


def check_broken(peer: Peer, sent: bytes, told: bool) -> None:
    """What this peer saw of a stream that broke: a prefix, and a reset where that can be told."""
    seen = peer.seen
    assert seen.end == "reset" or not told
    assert Stream(seen.length, seen.sha256, "reset") == cut(sent, seen.length)


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("who", ["client", "service"])
def test_reset_in_mid_stream(forward: Forward, who: str, flow: str) -> None:
    """When one side resets while bytes flow to it, from it, or both ways, the other sees a reset."""
    rude_sends, other_sends = (noise(SIZE, 1 + number) if flows else b"" for number, flows in enumerate(FLOWS[flow]))
    for moment in moments(who + flow):
        with forward.line() as line:
            rude, other = rude_and_other(line, who, rude_sends, other_sends)
            rude.leaves = moved(rude, moment)
            converse(rude, other)
        check_broken(other, rude_sends, is_told(forward, who))


@pytest.mark.parametrize("who", ["client", "service"])
def test_reset_of_an_answer(forward: Forward, who: str) -> None:
    """One side has ended, the other resets in the middle of its answer: the first sees a reset."""
    request, answer = noise(100_000, 3), noise(SIZE, 4)
    for moment in moments(who):
        with forward.line() as line:
            rude, other = rude_and_other(line, who, answer, request)
            other.finish = Finish.AT_ONCE
            rude.may_send = ended(rude)
            rude.leaves = moved(rude, len(request) + moment)
            converse(rude, other)
        assert rude.seen == whole(request)
        check_broken(other, answer, is_told(forward, who))


@pytest.mark.parametrize("who", ["client", "service"])
def test_reset_while_the_reader_waits(forward: Forward, who: str) -> None:
    """One side resets when what it has sent is stuck on the way: the other, reading at last, gets a prefix and a reset."""
    data = noise(4 * SIZE, 8)
    with forward.line() as line:
        rude, other = rude_and_other(line, who, data, b"")
        other.reads_up_to = 0
        settle(rude, other)
        rude.leaves = moved(rude, 0)
        settle(rude, other)
        other.reads_up_to = None
        converse(rude, other)
    check_broken(other, data, is_told(forward, who))


def test_resets_among_others(forward: Forward) -> None:
    """Of twelve connections, four are reset at different moments: the other eight lose nothing."""
    up, down = noise(300_000, 5), noise(300_000, 6)
    with forward.lines(12) as lines:
        pairs = [(Peer(near, up, STEP), Peer(far, down, STEP)) for near, far in lines]
        for number, (client, service) in enumerate(pairs[:4]):
            rude = (client, service)[number % 2]
            rude.finish, rude.leaves = Finish.NEVER, moved(rude, 70_000 * (number + 1))
        converse(*(peer for pair in pairs for peer in pair))
    for number, (client, service) in enumerate(pairs[:4]):
        rude, other = (client, service) if number % 2 == 0 else (service, client)
        check_broken(other, rude.sends, is_told(forward, "client" if rude is client else "service"))
    assert [service.seen for _, service in pairs[4:]] == [whole(up)] * 8
    assert [client.seen for client, _ in pairs[4:]] == [whole(down)] * 8


def test_clients_that_leave_at_once(forward: Forward) -> None:
    """A client that resets as soon as it is connected never looks like one that ended, and the next are served."""
    ends: list[str] = []
    data = noise(100_000, 7)
    forward.doors.forget("brief")
    for _ in range(8):
        reset(connect(forward.ports.brief))
    with forward.doors.lines(forward.ports, 2, "brief", ends) as lines:
        pairs = [(Peer(near, data), Peer(far, data)) for near, far in lines]
        converse(*(peer for pair in pairs for peer in pair))
    assert [(client.seen, service.seen) for client, service in pairs] == [(whole(data), whole(data))] * 2
    assert "fin" not in ends or not forward.tells.client_reset


@pytest.mark.parametrize("request_size", [0, 50_000])
def test_refused_port(forward: Forward, request_size: int) -> None:
    """Where nobody listens the client gets nothing, and a reset where that can be told; also when it has sent and ended."""
    request = noise(request_size)
    with contextlib.suppress(ConnectionResetError), connect(forward.ports.nobody) as sock:
        client = Peer(sock, request, finish=Finish.AT_ONCE if request else Finish.LAST)
        converse(client)
        assert client.received == 0
        assert client.end == "reset" or not forward.tells.refusal
