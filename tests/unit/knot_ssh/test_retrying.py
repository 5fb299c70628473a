"""Trying again until it works: only what was named as final ends it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.errors import JoinRefused, KeyRefused, KnotError, StoreUnavailable, Unavailable
from knot_ssh.retrying import FIRST_WAIT, LONGEST_WAIT, Final, backoff, until_done

PATIENCE = 5.0


class Attempts:
    """Fails with these reasons, one after the other, then works."""

    def __init__(self, *errors: Exception | str) -> None:
        self._errors = list(errors)
        self.made = 0

    async def __call__(self) -> str:
        self.made += 1
        if not self._errors:
            return "done"
        error = self._errors.pop(0)
        raise Unavailable(error) if isinstance(error, str) else error


class Listener:
    """Hears of trouble."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __call__(self, reason: str) -> None:
        self.heard.append(reason)


async def finished(attempts: Attempts, listener: Listener, final: Final = ()) -> str:
    """The result, with hardly any wait."""
    async with asyncio.timeout(PATIENCE):
        return await until_done(attempts, listener, final=final, longest=0.0001)


async def test_first_success_is_given() -> None:
    """What works at once is tried once, and nobody hears of trouble."""
    attempts, listener = Attempts(), Listener()
    assert await finished(attempts, listener) == "done"
    assert (attempts.made, listener.heard) == (1, [])


async def test_tried_until_it_works() -> None:
    """What fails is tried again, however often."""
    attempts, listener = Attempts(*["no"] * 500), Listener()
    assert await finished(attempts, listener) == "done"
    assert attempts.made == 501


async def test_same_reason_is_told_once() -> None:
    """Only a reason that differs from the one before is told."""
    listener = Listener()
    await finished(Attempts("a", "a", "a", "b", "b", "a"), listener)
    assert listener.heard == ["a", "b", "a"]


@pytest.mark.parametrize("error", [JoinRefused("no"), KeyRefused("no"), StoreUnavailable("no"), OSError("no")])
async def test_final_errors_pass(error: Exception) -> None:
    """An error that was named as final, or is a kind of one that was, ends the trying and is raised as it is."""
    attempts, listener = Attempts(KnotError("not yet"), error, "never reached"), Listener()
    with pytest.raises(type(error)) as caught:
        await finished(attempts, listener, (JoinRefused, KeyRefused, Unavailable, OSError))
    assert caught.value is error
    assert (attempts.made, listener.heard) == (2, ["not yet"])


async def test_final_by_exactly_these_classes() -> None:
    """An error that is only a relative of a final one is tried again."""
    attempts = Attempts(Unavailable("no"), KnotError("no"))
    assert await finished(attempts, Listener(), (StoreUnavailable, JoinRefused)) == "done"


@pytest.mark.parametrize(
    "error", [JoinRefused("no"), ZeroDivisionError("no"), OSError("no"), AssertionError("no"), TimeoutError()]
)
async def test_every_other_error_is_tried_again(error: Exception) -> None:
    """An error that was not named as final is tried again, also one that nobody foresaw."""
    attempts = Attempts(error, "no", error)
    assert await finished(attempts, Listener(), (KeyRefused,)) == "done"
    assert attempts.made == 4


async def test_ending_the_process_is_no_trouble() -> None:
    """What is no error but an order to stop is not tried again."""
    made = 0

    async def interrupted() -> None:
        nonlocal made
        made += 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await until_done(interrupted, lambda _: None)
    assert made == 1


async def test_tried_again_after_a_wait() -> None:
    """Without a bound of one's own the usual one holds."""
    async with asyncio.timeout(PATIENCE):
        assert await until_done(Attempts("no"), lambda _: None) == "done"


async def test_cancelled_while_waiting() -> None:
    """Who no longer wants it can end the trying during a wait."""
    waiting = asyncio.Event()
    task = asyncio.ensure_future(until_done(Attempts(*["no"] * 100), lambda _: waiting.set()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.integers(1, 10**9), st.floats(0, 1), st.floats(0, 100))
def test_backoff_is_bounded(failures: int, luck: float, longest: float) -> None:
    """The wait is at most the first one doubled with each further failure, and never longer than the longest."""
    limit = min(longest, FIRST_WAIT * 2 ** min(failures - 1, 20))
    assert 0 <= backoff(failures, luck, longest) <= limit


def test_backoff_grows() -> None:
    """The more failures, the longer the waits, up to the longest."""
    longest = [backoff(failures, 1) for failures in (1, 2, 3, 4, 5, 100)]
    assert longest == sorted(longest)
    assert longest[0] == FIRST_WAIT
    assert longest[-1] == LONGEST_WAIT


@given(st.integers(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_luck_spreads(failures: int, one: float, other: float) -> None:
    """A fleet that failed together does not come back together: each waits by its own luck."""
    assert backoff(failures, one) == pytest.approx(one * backoff(failures, 1))
    assert backoff(failures, other) == pytest.approx(other * backoff(failures, 1))
