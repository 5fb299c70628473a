"""Several ways to the same end, of which the first that works is taken ("happy eyeballs", RFC 8305 section 5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from knot_ssh.tasks import Tasks

Result = TypeVar("Result")
Runner = Callable[[], Coroutine[Any, Any, Result]]


@dataclass(frozen=True, slots=True)
class _Success(Generic[Result]):
    result: Result


async def race(tasks: Tasks, runners: Sequence[tuple[float, Runner[Result]]], discard: Callable[[Result], None]) -> Result:
    """The result of the first runner to succeed; the others are cancelled, and what they have reached is discarded.

    Each starts so many seconds after the one before it, or as soon as all before it have failed. When every one has
    failed, raises an ExceptionGroup with the errors in their order; there must be at least one. Runners are tasks among
    `tasks`, whose owner may still have to wait for the ends of some.
    """
    running: list[asyncio.Task[_Success[Result] | Exception]] = []
    winner: asyncio.Task[_Success[Result] | Exception] | None = None
    try:
        for delay, runner in runners:
            winner = await _first_of(running, delay)
            if winner:
                break
            running.append(tasks.start(_outcome(runner)))
        winner = winner or await _first_of(running, None)
    finally:
        for task in running:
            if task is not winner:
                task.cancel()
                task.add_done_callback(partial(_drop, discard))
    outcome = winner.result() if winner else None
    if isinstance(outcome, _Success):
        return outcome.result
    raise ExceptionGroup("nothing worked", [error for error in map(_result, running) if isinstance(error, Exception)])


async def _outcome(runner: Runner[Result]) -> _Success[Result] | Exception:
    try:
        return _Success(await runner())
    except Exception as error:
        return error


async def _first_of(
    tasks: Sequence[asyncio.Task[_Success[Result] | Exception]], seconds: float | None
) -> asyncio.Task[_Success[Result] | Exception] | None:
    """The first to succeed within so many seconds; None when time is up, or all have failed."""
    pending = set(tasks)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if isinstance(_result(task), _Success):
                        return task
    return None


def _drop(discard: Callable[[Result], None], task: asyncio.Task[_Success[Result] | Exception]) -> None:
    """It has come too late."""
    outcome = _result(task)
    if isinstance(outcome, _Success):
        discard(outcome.result)


def _result(task: asyncio.Task[_Success[Result] | Exception]) -> _Success[Result] | Exception | None:
    return None if task.cancelled() else task.result()
