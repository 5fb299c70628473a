"""Says when a file may have changed, however it is changed.

The folder is watched and not the file, so that a file that is renamed into place, or reached by a link that is swapped
(as Kubernetes does for a ConfigMap), is seen like one that is written. What the system does not tell of (a link that leads
elsewhere, some network file systems, a folder that was made anew) is found by looking once in a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import structlog
from watchfiles import awatch

log = structlog.get_logger(__name__)

QUIET = 0.1
"""Seconds without a further change after which the file is taken for written; some editors write in pieces."""
LONGEST = 0.5
"""Seconds after which it is looked at all the same."""
LOOK_AGAIN = 1.0
"""Seconds between two looks at most."""


async def looks(path: Path) -> AsyncGenerator[None]:
    """Yields whenever it is time to look at the file: soon after a change in its folder, and every LOOK_AGAIN seconds.

    Leaves nothing behind when it is closed or cancelled.
    """
    said = ""
    while True:
        before = _identity(path.parent)
        try:
            async with contextlib.aclosing(
                awatch(
                    path.parent,
                    watch_filter=None,
                    recursive=False,
                    debounce=_milliseconds(LONGEST),
                    step=_milliseconds(QUIET),
                    rust_timeout=_milliseconds(LOOK_AGAIN),
                    yield_on_timeout=True,
                )
            ) as changes:
                async for _ in changes:
                    yield
                    if _identity(path.parent) != before:
                        break  # that folder is not there any more, or is another one
        except Exception as error:  # what the library raises depends on the system
            if str(error) != said and path.parent.is_dir():
                log.warning("folder not watched, looking at it each second", folder=str(path.parent), reason=str(error))
                said = str(error)
            await asyncio.sleep(LOOK_AGAIN)
            yield


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another of the same name."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
