"""Tasks with one owner: none is forgotten, and no failure goes unseen."""

from __future__ import annotations

import asyncio
import gc

import pytest
from structlog.testing import capture_logs

from knot_ssh.tasks import Tasks

PATIENCE = 5.0
"""Seconds after which a test gives up waiting for what should come at once."""


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ZeroDivisionError("the story")


async def done(*tasks: asyncio.Task[object]) -> None:
    """Wait until these have ended, however."""
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_result_is_the_tasks() -> None:
    """Work that was started runs, and its task gives the result."""

    async def work() -> int:
        return 7

    assert await Tasks().start(work()) == 7


async def test_ended_tasks_are_forgotten() -> None:
    """Only tasks that still run are counted, however the others ended."""
    tasks = Tasks()
    running, failing, cancelled = tasks.start(forever()), tasks.start(fail()), tasks.start(forever())
    assert len(tasks) == 3
    cancelled.cancel()
    with capture_logs():
        await done(failing, cancelled)
    assert len(tasks) == 1
    await tasks.cancel()
    assert running.cancelled()
    assert len(tasks) == 0


async def test_running_task_is_held() -> None:
    """A task that nobody else holds is not collected while it runs."""
    tasks, ended = Tasks(), asyncio.Event()

    async def wait_unseen() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    tasks.start(wait_unseen())
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.sleep(0)
    assert (len(tasks), ended.is_set()) == (1, False)
    await tasks.cancel()
    assert ended.is_set()


async def test_failure_is_logged_when_it_happens() -> None:
    """A task that fails is logged at once with its error, while its owner lives on."""
    tasks = Tasks()
    with capture_logs() as logs:
        await done(tasks.start(fail()))
    [entry] = logs
    assert (entry["event"], entry["log_level"], str(entry["exc_info"])) == ("task failed", "error", "the story")


async def test_proper_ends_are_not_logged() -> None:
    """Neither success nor being cancelled is a failure."""
    tasks = Tasks()
    with capture_logs() as logs:
        await tasks.start(asyncio.sleep(0))
        tasks.start(forever())
        await tasks.cancel()
    assert logs == []


async def test_failure_while_being_ended_is_logged() -> None:
    """A task that fails while it is being ended is logged, and does not keep the others from ending."""
    started, tasks = asyncio.Event(), Tasks()

    async def fail_late() -> None:
        try:
            started.set()
            await forever()
        finally:
            await fail()

    other = tasks.start(forever())
    tasks.start(fail_late())
    await started.wait()
    with capture_logs() as logs:
        await tasks.cancel()
    assert [entry["event"] for entry in logs] == ["task failed"]
    assert other.cancelled()


async def test_cancel_waits_for_the_end() -> None:
    """Once `cancel` returns, every task has put away what it had, however long that took."""
    tasks, order = Tasks(), list[str]()
    started = asyncio.Event()

    async def tidy() -> None:
        try:
            started.set()
            await forever()
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            order.append("tidied")

    tasks.start(tidy())
    await started.wait()
    await tasks.cancel()
    order.append("cancelled")
    assert order == ["tidied", "cancelled"]


async def test_task_may_end_the_others() -> None:
    """A task that ends all of them goes on itself."""
    tasks = Tasks()
    other = tasks.start(forever())

    async def end_all() -> str:
        await tasks.cancel()
        return "still here"

    async with asyncio.timeout(PATIENCE):
        assert await tasks.start(end_all()) == "still here"
    assert other.cancelled()


async def test_nothing_to_cancel() -> None:
    """An owner without tasks has nothing to wait for, and may start some later."""
    tasks = Tasks()
    async with asyncio.timeout(PATIENCE):
        await tasks.cancel()
        await tasks.start(asyncio.sleep(0))
        await tasks.cancel()


async def test_caller_hears_of_a_failure_too() -> None:
    """Who awaits a task gets its error besides the log."""
    with capture_logs(), pytest.raises(ZeroDivisionError):
        await Tasks().start(fail())


async def test_cancel_with_a_task_that_has_just_ended() -> None:
    """Tasks that are done, but whose owner has not heard of it yet, do not keep `cancel` busy for ever."""
    tasks = Tasks()
    loop = asyncio.get_running_loop()
    started = loop.create_future()

    async def work() -> None:
        started.set_result(None)

    async def owner() -> None:
        await started
        await tasks.cancel()

    tasks.start(work())
    async with asyncio.timeout(5):
        await owner()
    assert len(tasks) == 0
