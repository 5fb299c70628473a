"""A set of tasks with one owner, for work that comes and goes while the owner lives.

`asyncio.TaskGroup` waits for its children; the owners here outlive theirs and end them. What they share with it: no
task is forgotten, and no failure goes unseen.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import structlog

log = structlog.get_logger(__name__)

Given = ParamSpec("Given")
Result = TypeVar("Result")
Change = Callable[Given, Coroutine[Any, Any, Result]]


def whole(change: Change[Given, Result]) -> Change[Given, Result]:
    """Have a change made to its end, though whoever asked for it is cancelled: half of one is worse than either.

    It must not wait for whoever may cancel it.
    """

    @functools.wraps(change)
    async def to_the_end(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        task = asyncio.ensure_future(change(*args, **kwargs))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # perhaps nobody asks any more
        return await asyncio.shield(task)

    return to_the_end


class Tasks:
    """Started with `start`, ended and awaited with `cancel`."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run this until it ends or the owner cancels; a failure is logged when it happens."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def cancel(self) -> None:
        """End every task and wait until each has ended, but for the one that calls."""
        while ending := [task for task in self._tasks if task is not asyncio.current_task()]:
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            self._tasks.difference_update(ending)  # their callbacks may not have run yet

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("task failed", exc_info=error)
