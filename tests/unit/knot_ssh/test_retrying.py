"""Trying again until it works."""

from __future__ import annotations

import asyncio

import pytest

from knot_ssh.errors import JoinRefused, Unavailable
from knot_ssh.retrying import until_available

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


async def finished(attempts: Attempts, listener: Impatient) -> str:
    """The result, with every wait cut short."""

    async def keep_waking() -> None:
        while True:
            listener.wake.set()
            await asyncio.sleep(0)

    waking = asyncio.ensure_future(keep_waking())
    try:
        async with asyncio.timeout(PATIENCE):
            return await until_available(attempts, listener.wake, listener)
    finally:
        waking.cancel()
        await asyncio.gather(waking, return_exceptions=True)


async def test_first_success_is_given() -> None:
    """What works at once is tried once, and nobody hears of trouble."""
    attempts, listener = Attempts(), Impatient()
    assert await finished(attempts, listener) == "done"
    assert (attempts.made, listener.heard) == (1, [])


async def test_tried_until_it_works() -> None:
    """What is unavailable is tried again, however often."""
    attempts, listener = Attempts(*["no"] * 500), Impatient()
    assert await finished(attempts, listener) == "done"
    assert attempts.made == 501


async def test_same_reason_is_told_once() -> None:
    """Only a reason that differs from the one before is told."""
    listener = Impatient()
    await finished(Attempts("a", "a", "a", "b", "b", "a"), listener)
    assert listener.heard == ["a", "b", "a"]


@pytest.mark.parametrize("error", [JoinRefused("no"), ZeroDivisionError(), OSError()])
async def test_other_errors_pass(error: Exception) -> None:
    """Any other error ends the trying, and is raised as it is."""
    attempts = Attempts("no", error, "never reached")
    with pytest.raises(type(error)) as caught:
        await finished(attempts, Impatient())
    assert caught.value is error
    assert attempts.made == 2


async def test_tried_again_without_news() -> None:
    """The wait ends by itself when nobody has news."""
    async with asyncio.timeout(PATIENCE):
        assert await until_available(Attempts("no"), asyncio.Event(), lambda _: None) == "done"


async def test_news_count_once() -> None:
    """Being woken is used up by the wait that it ends: it does not make the next waits short as well."""
    wake = asyncio.Event()
    wake.set()
    async with asyncio.timeout(PATIENCE):
        await until_available(Attempts("no"), wake, lambda _: None)
    assert not wake.is_set()


async def test_cancelled_while_waiting() -> None:
    """Who no longer wants it can end the trying during a wait."""
    waiting = asyncio.Event()
    task = asyncio.ensure_future(until_available(Attempts(*["no"] * 100), asyncio.Event(), lambda _: waiting.set()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
