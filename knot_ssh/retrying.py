"""Try again until it works: jittered exponential backoff that somebody with news can cut short.

Whoever keeps something going for as long as the process lives must not end by an error that nobody foresaw. So all
errors are tried again, but for those that the caller names as final.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from knot_ssh.errors import KnotError

log = structlog.get_logger(__name__)

FIRST_WAIT = 0.5
"""Seconds of the first wait at most; each further one may be twice as long."""
LONGEST_WAIT = 15.0
DOUBLINGS = 6
"""After so many the longest wait is reached, and larger powers need not be computed."""

Result = TypeVar("Result")
Final = tuple[type[Exception], ...]


def backoff(failures: int) -> float:
    """Seconds to wait after this many failures in a row: anything up to a limit that doubles, so that a fleet spreads."""
    return random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(failures - 1, DOUBLINGS)))


async def until_done(
    attempt: Callable[[], Awaitable[Result]],
    on_trouble: Callable[[str], None],
    *,
    final: Final = (),
    wake: asyncio.Event | None = None,
) -> Result:
    """Await `attempt()` again and again until it gives a result or raises a `final` error.

    `wake` ends a wait early. `on_trouble` hears each reason that differs from the one before.
    """
    said: str | None = None

    async def sleep(seconds: float) -> None:
        if wake is None:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wake.wait()
        wake.clear()

    def before_sleep(state: RetryCallState) -> None:
        nonlocal said
        error = state.outcome.exception() if state.outcome else None
        if not isinstance(error, KnotError):
            log.error("unforeseen error, trying again", exc_info=error)
        reason = str(error)
        if reason != said:
            on_trouble(reason)
            said = reason

    retrying = AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, Exception) and not isinstance(error, final)),
        wait=lambda state: backoff(state.attempt_number),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    return await retrying(attempt)
