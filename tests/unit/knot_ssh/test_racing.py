"""Races: the first runner that succeeds is taken, and nothing that was reached is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from knot_ssh.racing import race
from knot_ssh.tasks import Tasks
from tests.support.waiting import becomes

AT_ONCE = 0.0
NEVER = 3600.0
"""Seconds of a head start that no test waits for."""


class Trouble(Exception):
    """Why a runner does not make it."""


class Course:
    """Runners that arrive, fail or linger as told; `events` is what has happened, in its order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.tasks = Tasks()

    async def race(self, *ways: tuple[float, Callable[[], Coroutine[Any, Any, str]]]) -> str:
        """Who wins."""
        return await race(self.tasks, ways, lambda name: self.events.append(f"{name} discarded"))

    async def over(self) -> None:
        """Wait for the ends of those who did not win."""
        await becomes(lambda: not len(self.tasks))
        await turns()

    def succeeds(self, name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            self.events.append(f"{name} starts")
            return name

        return run

    def fails(self, name: str, error: BaseException | None = None) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            self.events.append(f"{name} starts")
            await asyncio.sleep(0)
            raise error or Trouble(name)

        return run

    def waits(self, name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        """Arrives when its gate is opened."""
        gate = self.gates[name] = asyncio.Event()

        async def run() -> str:
            self.events.append(f"{name} starts")
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.events.append(f"{name} cancelled")
                raise
            return name

        return run

    def stubborn(self, name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        """Arrives when it is cancelled."""

        async def run() -> str:
            self.events.append(f"{name} starts")
            try:
                await asyncio.sleep(NEVER)
            except asyncio.CancelledError:
                return name
            raise AssertionError(name)

        return run

    def tidies_up(self, name: str) -> Callable[[], Coroutine[Any, Any, str]]:
        """When cancelled it has something to do until its gate is opened."""
        gate = self.gates[name] = asyncio.Event()

        async def run() -> str:
            self.events.append(f"{name} starts")
            try:
                await asyncio.sleep(NEVER)
            finally:
                self.events.append(f"{name} tidies up")
                await gate.wait()
            return name

        return run


@pytest.fixture
def course() -> Course:
    return Course()


async def turns(count: int = 10) -> None:
    """Let everybody get as far as they get."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_first_that_works(course: Course) -> None:
    """The first that succeeds is taken, and who would have started later never does."""
    assert await course.race((NEVER, course.succeeds("a")), (NEVER, course.succeeds("b"))) == "a"
    assert course.events == ["a starts"]


async def test_one_alone(course: Course) -> None:
    """A single runner has all the time it wants."""
    runner = asyncio.ensure_future(course.race((AT_ONCE, course.waits("a"))))
    await turns()
    assert not runner.done()
    course.gates["a"].set()
    assert await runner == "a"


async def test_next_starts_when_all_before_have_failed(course: Course) -> None:
    """A head start is over when who has it has failed."""
    async with asyncio.timeout(5):
        assert await course.race((NEVER, course.fails("a")), (NEVER, course.succeeds("b"))) == "b"
    assert course.events == ["a starts", "b starts"]


async def test_next_waits_while_one_before_is_running(course: Course) -> None:
    """One failure does not shorten the head start while another still runs."""
    ways = [(AT_ONCE, course.waits("a")), (AT_ONCE, course.fails("b")), (NEVER, course.succeeds("c"))]
    running = asyncio.ensure_future(course.race(*ways))
    await turns(20)
    assert course.events == ["a starts", "b starts"]
    course.gates["a"].set()
    assert await running == "a"
    assert course.events == ["a starts", "b starts"]


async def test_slow_one_is_overtaken(course: Course) -> None:
    """After its head start a slow runner may be overtaken, and is cancelled."""
    assert await course.race((AT_ONCE, course.waits("a")), (AT_ONCE, course.succeeds("b"))) == "b"
    await course.over()
    assert course.events == ["a starts", "b starts", "a cancelled"]


async def test_slow_one_may_still_win(course: Course) -> None:
    """Who started first wins when it arrives first, however many have started since."""
    running = asyncio.ensure_future(course.race((AT_ONCE, course.waits("a")), (AT_ONCE, course.waits("b"))))
    await turns()
    course.gates["a"].set()
    assert await running == "a"
    await course.over()
    assert course.events[-1] == "b cancelled"


async def test_winner_does_not_wait_for_losers(course: Course) -> None:
    """The winner is there at once, though a loser has something to tidy up; its owner can wait for that."""
    async with asyncio.timeout(5):
        assert await course.race((AT_ONCE, course.tidies_up("a")), (AT_ONCE, course.succeeds("b"))) == "b"
    await turns()
    assert len(course.tasks) == 1
    course.gates["a"].set()
    await course.over()


async def test_what_a_loser_reaches_is_discarded(course: Course) -> None:
    """A loser that cannot be stopped any more has its result discarded; the winner's is not."""
    assert await course.race((AT_ONCE, course.stubborn("a")), (AT_ONCE, course.succeeds("b"))) == "b"
    await course.over()
    assert course.events == ["a starts", "b starts", "a discarded"]


async def test_dead_heat(course: Course) -> None:
    """Of two that arrive in the same moment one is taken and the other discarded."""
    running = asyncio.ensure_future(course.race((AT_ONCE, course.waits("a")), (AT_ONCE, course.waits("b"))))
    await turns()
    for gate in course.gates.values():
        gate.set()
    winner = await running
    await course.over()
    (loser,) = {"a", "b"} - {winner}
    assert course.events[2:] == [f"{loser} discarded"]


async def test_nobody_makes_it(course: Course) -> None:
    """When all have failed there is a group of their errors, in the order of the runners; the log has none of them."""
    with pytest.raises(ExceptionGroup) as caught:
        await course.race(*[(AT_ONCE, course.fails(name)) for name in "abc"])
    assert [str(error) for error in caught.value.exceptions] == ["a", "b", "c"]
    assert all(isinstance(error, Trouble) for error in caught.value.exceptions)


async def test_no_runner(course: Course) -> None:
    """A race without runners is an error, not an end without a word."""
    with pytest.raises(ValueError, match="non-empty"):
        await course.race()


async def test_cancelled(course: Course) -> None:
    """A race that is cancelled cancels its runners, and discards what they have reached nevertheless."""
    running = asyncio.ensure_future(course.race((AT_ONCE, course.waits("a")), (AT_ONCE, course.stubborn("b"))))
    await turns()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await course.over()
    assert course.events[2:] == ["a cancelled", "b discarded"]


@pytest.mark.parametrize("late", range(8))
async def test_cancelled_at_the_finish(course: Course, late: int) -> None:
    """Wherever a cancellation meets a runner that arrives, its result is taken or discarded: never lost."""
    running = asyncio.ensure_future(course.race((AT_ONCE, course.tidies_up("a")), (AT_ONCE, course.waits("b"))))
    await turns()
    course.gates["b"].set()
    await turns(late)
    running.cancel()
    course.gates["a"].set()
    try:
        won = await running == "b"
    except asyncio.CancelledError:
        won = False
    await course.over()
    assert won + ("b discarded" in course.events) + ("b cancelled" in course.events) == 1


async def test_cancelled_twice(course: Course) -> None:
    """Cancelling the race, and then its owner's tasks, loses nothing that a runner has reached."""
    ways = [(AT_ONCE, course.tidies_up("a")), (AT_ONCE, course.stubborn("b")), (NEVER, course.succeeds("c"))]
    running = asyncio.ensure_future(course.race(*ways))
    await turns()
    running.cancel()
    course.gates["a"].set()
    await course.tasks.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await turns()
    assert "b discarded" in course.events
    assert len(course.tasks) == 0


async def test_only_errors_are_caught(course: Course) -> None:
    """Failures of runners are the race's to tell: no task of it fails."""
    assert await course.race((AT_ONCE, course.fails("a")), (NEVER, course.succeeds("b"))) == "b"
    assert len(course.tasks) == 0
