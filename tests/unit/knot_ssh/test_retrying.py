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


class Impatient:
    """Hears of trouble, and wants the next attempt at once."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.heard: list[str] = []

    def __call__(self, reason: str) -> None:
        self.heard.append(reason)


async def finished(attempts: Attempts, listener: Impatient, final: Final = ()) -> str:
    """The result, with every wait cut short."""

    async def keep_waking() -> None:
        while True:
            listener.wake.set()
            await asyncio.sleep(0)

    waking = asyncio.ensure_future(keep_waking())
    try:
        async with asyncio.timeout(PATIENCE):
            return await until_done(attempts, listener, final=final, wake=listener.wake)
    finally:
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)


async def test_first_success_is_given() -> None:
    """What works at once is tried once, and nobody hears of trouble."""
    attempts, listener = Attempts(), Impatient()
    assert await finished(attempts, listener) == "done"
    assert (attempts.made, listener.heard) == (1, [])


async def test_tried_until_it_works() -> None:
    """What fails is tried again, however often."""
    attempts, listener = Attempts(*["no"] * 500), Impatient()
    assert await finished(attempts, listener) == "done"
    assert attempts.made == 501


async def test_same_reason_is_told_once() -> None:
    """Only a reason that differs from the one before is told."""
    listener = Impatient()
    await finished(Attempts("a", "a", "a", "b", "b", "a"), listener)
    assert listener.heard == ["a", "b", "a"]


@pytest.mark.parametrize("error", [JoinRefused("no"), KeyRefused("no"), StoreUnavailable("no"), OSError("no")])
async def test_final_errors_pass(error: Exception) -> None:
    """An error that was named as final, or is a kind of one that was, ends the trying and is raised as it is."""
    attempts, listener = Attempts(KnotError("not yet"), error, "never reached"), Impatient()
    with pytest.raises(type(error)) as caught:
        await finished(attempts, listener, (JoinRefused, KeyRefused, Unavailable, OSError))
    assert caught.value is error
    assert (attempts.made, listener.heard) == (2, ["not yet"])


async def test_final_by_exactly_these_classes() -> None:
    """An error that is only a relative of a final one is tried again."""
    attempts = Attempts(Unavailable("no"), KnotError("no"))
    assert await finished(attempts, Impatient(), (StoreUnavailable, JoinRefused)) == "done"


@pytest.mark.parametrize(
    "error", [JoinRefused("no"), ZeroDivisionError("no"), OSError("no"), AssertionError("no"), TimeoutError()]
)
async def test_every_other_error_is_tried_again(error: Exception) -> None:
    """An error that was not named as final is tried again, also one that nobody foresaw."""
    attempts = Attempts(error, "no", error)
    assert await finished(attempts, Impatient(), (KeyRefused,)) == "done"
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


async def test_tried_again_without_news() -> None:
    """The wait ends by itself when nobody has news."""
    async with asyncio.timeout(PATIENCE):
        assert await until_done(Attempts("no"), lambda _: None, wake=asyncio.Event()) == "done"


async def test_tried_again_where_there_is_no_news() -> None:
    """Nobody need be there who could have news."""
    async with asyncio.timeout(PATIENCE):
        assert await until_done(Attempts("no"), lambda _: None) == "done"


async def test_news_count_once() -> None:
    """Being woken is used up by the wait that it ends: it does not make the next waits short as well."""
    wake = asyncio.Event()
    wake.set()
    async with asyncio.timeout(PATIENCE):
        await until_done(Attempts("no"), lambda _: None, wake=wake)
    assert not wake.is_set()


@pytest.mark.parametrize("with_news", [True, False])
async def test_cancelled_while_waiting(with_news: bool) -> None:
    """Who no longer wants it can end the trying during a wait."""
    waiting = asyncio.Event()
    wake = asyncio.Event() if with_news else None
    task = asyncio.ensure_future(until_done(Attempts(*["no"] * 100), lambda _: waiting.set(), wake=wake))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@given(st.integers(1, 10**9))
def test_backoff_is_bounded(failures: int) -> None:
    """The wait is at most the first one doubled with each further failure, and never longer than the longest."""
    limit = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - 1, 20))
    assert 0 <= backoff(failures) <= limit


def test_backoff_grows() -> None:
    """The more failures, the longer the waits, up to the longest."""
    longest = [max(backoff(failures) for _ in range(500)) for failures in (1, 2, 3, 4, 5, 100)]
    assert longest == sorted(longest)
    assert longest[-1] > LONGEST_WAIT * 0.9


def test_backoffs_differ() -> None:
    """A fleet that failed together does not come back together."""
    assert len({backoff(3) for _ in range(50)}) > 40
