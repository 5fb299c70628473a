"""Wait for a condition with a deadline; never for luck."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

PAUSE = 0.02


def until(condition: Callable[[], Found | None], seconds: float = 20, what: str = "") -> Found:
    """The condition's first true value; fails the test when there was none in time."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        pause.wait(PAUSE)


async def becomes(condition: Callable[[], object], seconds: float = 10, what: str = "") -> None:
    """The same in a coroutine: give the loop its turns until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        await asyncio.sleep(0.001)
