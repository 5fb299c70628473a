"""Whose key exchange is next: one at a time, who has used least first, and nobody for ever."""

from __future__ import annotations

import asyncio

import pytest

from knot_keys import turns
from knot_keys.turns import BURST_SECONDS, Turns, Turnstile

GOOD, FLOOD = "192.0.2.9", "198.51.100.1"
BURST = int(10 * BURST_SECONDS)


def used_up(now: float = 0.0) -> Turns[int]:
    """Turns of which one source has used all it may at once, and has more that wait."""
    made: Turns[int] = Turns(10)
    for number in range(BURST + 5):
        made.ask(number, FLOOD, now)
    assert [made.next(now) for _ in range(BURST)].count(None) == 0
    return made


def test_all_at_once() -> None:
    """As long as it is within its burst a source need not wait."""
    made: Turns[int] = Turns(10)
    for number in range(BURST):
        made.ask(number, GOOD, 0.0)
    assert {made.next(0.0) for _ in range(BURST)} == set(range(BURST))
    assert len(made) == 0
    assert made.next(0.0) is None


def test_who_is_over_the_rate_waits() -> None:
    """Beyond the burst a source has its rate, and others hear how long that takes."""
    made = used_up()
    assert made.next(0.0) is None
    assert made.pause(0.0) == pytest.approx(0.1)
    assert made.next(0.1) is not None
    assert made.next(0.1) is None


def test_other_sources_pass() -> None:
    """Whoever comes from elsewhere goes first, however many wait."""
    made = used_up()
    made.ask(1000, GOOD, 0.0)
    assert made.next(0.0) == 1000
    made.ask(1001, GOOD, 10.0)  # both have some again, the quiet source more
    assert made.next(2.0) == 1001


def test_newest_of_a_source_first() -> None:
    """A newcomer from the very source that floods has the next turn of that source."""
    made = used_up()
    made.ask(1000, FLOOD, 0.0)
    assert made.next(0.1) == 1000


def test_who_leaves_has_no_turn() -> None:
    """Who has gone is passed over; to leave twice, or unasked, does no harm."""
    made: Turns[int] = Turns(10)
    made.ask(1, GOOD, 0.0)
    made.ask(2, GOOD, 0.0)
    for _ in range(2):
        made.leave(2)
        made.leave(3)
    assert made.next(0.0) == 1
    made.leave(1)
    assert len(made) == 0


def test_networks_are_one_source() -> None:
    """Addresses of one IPv6 network share their turns."""
    made: Turns[int] = Turns(10)
    for number in range(BURST + 1):
        made.ask(number, f"2001:db8::{number:x}", 0.0)
    assert [made.next(0.0) for _ in range(BURST + 1)].count(None) == 1


def test_sources_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sources there are, only so many are remembered; who waits has a turn all the same."""
    monkeypatch.setattr(turns, "SOURCES_MAX", 3)
    made: Turns[int] = Turns(10)
    for number in range(20):
        made.ask(number, f"192.0.2.{number}", 0.0)
    assert len(made._buckets) == 3
    assert {made.next(0.0) for _ in range(20)} == set(range(20))


async def test_one_at_a_time() -> None:
    """Between two turns the event loop does all else that it has to do."""
    gate, order = Turnstile(), []

    async def exchange(number: int) -> None:
        await gate.turn(GOOD)
        order.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(exchange(number))
        while len(order) < 3:
            before = len(order)
            await asyncio.sleep(0)
            assert len(order) <= before + 1
    assert order == [2, 1, 0]


async def test_waits_and_goes() -> None:
    """Who is over the rate goes when it is time, who gave up before has no turn, and who comes from elsewhere goes at once."""
    gate = Turnstile(20)
    for _ in range(int(20 * BURST_SECONDS)):
        await gate.turn(FLOOD)
    loop = asyncio.get_running_loop()
    began = loop.time()
    gone = asyncio.ensure_future(gate.turn(FLOOD))
    late = asyncio.ensure_future(gate.turn(FLOOD))
    await gate.turn(GOOD)
    assert loop.time() - began < 0.04
    gone.cancel()
    await late
    assert loop.time() - began >= 0.04
    assert gone.cancelled()
    assert len(gate._turns) == 0
