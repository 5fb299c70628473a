"""Several ways to the same end, of which the first that works is taken ("happy eyeballs", RFC 8305 section 5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")
Runner = Callable[[], Coroutine[Any, Any, Result]]
Discard = Callable[[Result], Coroutine[Any, Any, None]]


async def race(runners: Sequence[tuple[float, Runner[Result]]], discard: Discard[Result]) -> Result:
    """The result of the first runner to succeed; the others are cancelled, and what they have reached is discarded.

    Each starts so many seconds after the one before it, or as soon as all before it have failed. When every one has
    failed, raises an ExceptionGroup with the errors in their order.
    """
    running: list[asyncio.Task[Result]] = []
    winner: asyncio.Task[Result] | None = None
    try:
        for delay, runner in runners:
            winner = await _first_of(running, delay)
            if winner:
                break
            running.append(asyncio.get_running_loop().create_task(runner()))
        winner = winner or await _first_of(running, None)
        if winner is None:
            raise ExceptionGroup("nothing worked", [_error_of(task) for task in running])
        return winner.result()
    finally:
        losers = [task for task in running if task is not winner]
        for task in losers:
            task.cancel()
        for result in await asyncio.gather(*losers, return_exceptions=True):
            if not isinstance(result, BaseException):
                await discard(result)


async def _first_of(tasks: Sequence[asyncio.Task[Result]], seconds: float | None) -> asyncio.Task[Result] | None:
    """The first to succeed within so many seconds; None when time is up, or all have failed."""
    pending = set(tasks)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.exception():
                        return task
    return None


def _error_of(task: asyncio.Task[Any]) -> Exception:
    error = task.exception()
    return error if isinstance(error, Exception) else RuntimeError(str(error))
