"""Try again until it works, with jittered exponential backoff.

Whoever keeps something going for as long as the process lives must not end by an error that nobody foresaw. So all
errors are tried again, but for those that the caller names as final.
"""

from __future__ import annotations

import asyncio
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


def backoff(failures: int, luck: float, longest: float = LONGEST_WAIT) -> float:
    """Seconds to wait after this many failures in a row: anything up to a limit that doubles, so that a fleet spreads.

    `luck`, from 0 to 1, says which part of it.
    """
    return luck * min(longest, FIRST_WAIT * 2.0 ** min(failures - 1, DOUBLINGS))


async def until_done(
    attempt: Callable[[], Awaitable[Result]],
    on_trouble: Callable[[str], None],
    *,
    final: Final = (),
    longest: float = LONGEST_WAIT,
) -> Result:
    """Await `attempt()` again and again until it gives a result or raises a `final` error.

    It waits for `longest` seconds between two at most. `on_trouble` hears each reason that differs from the one before.
    """
    said: str | None = None

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
        wait=lambda state: backoff(state.attempt_number, random.random(), longest),
        sleep=asyncio.sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    return await retrying(attempt)
