"""Try again until it works: jittered exponential backoff that somebody with news can cut short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from knot_ssh.errors import Unavailable

FIRST_WAIT = 0.5
"""Seconds of the first wait at most; each further one may be twice as long."""
LONGEST_WAIT = 15.0

Result = TypeVar("Result")


async def until_available(
    attempt: Callable[[], Awaitable[Result]], wake: asyncio.Event, on_trouble: Callable[[str], None]
) -> Result:
    """Await `attempt()` again and again while it raises Unavailable; any other error passes.

    `wake` ends a wait early. `on_trouble` hears each reason that differs from the one before.
    """
    said = ""

    async def sleep(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await wake.wait()
        wake.clear()

    def before_sleep(state: RetryCallState) -> None:
        nonlocal said
        reason = str(state.outcome.exception()) if state.outcome else ""
        if reason != said:
            on_trouble(reason)
            said = reason

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(Unavailable),
        wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
        sleep=sleep,
        before_sleep=before_sleep,
        reraise=True,
    )
    return await retrying(attempt)
