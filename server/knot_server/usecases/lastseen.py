"""When a space's agent was last here, or a token was used. Written for many at a time: a whole fleet may come at once."""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import update
from sqlalchemy.orm import InstrumentedAttribute

from knot_server.store.database import Database
from knot_server.store.schema import Space
from knot_ssh.errors import Unavailable
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

DELAY = 1.0
"""Seconds that a note waits for others at most. One that a crash takes away is no loss: the agent is back soon."""


class LastSeen:
    """Notes that are still to be written, into a column of a table whose rows have an `id`, and what writes them."""

    def __init__(self, database: Database, column: InstrumentedAttribute[int | None] = Space.last_seen) -> None:
        self._database = database
        self._column = column
        self._noted: dict[str, int] = {}
        self._tasks = Tasks()

    def note(self, row_id: str) -> None:
        """It is here, or was just now."""
        if not self._noted:
            self._tasks.start(self._write_soon())
        self._noted[row_id] = int(time.time())

    async def close(self) -> None:
        """Write what was noted."""
        await self._tasks.cancel()
        await self._write()

    async def _write_soon(self) -> None:
        await asyncio.sleep(DELAY)
        await self._write()

    async def _write(self) -> None:
        noted, self._noted = self._noted, {}
        if not noted:
            return
        try:
            async with self._database.writing() as session:
                table = self._column.class_
                for row_id, moment in noted.items():
                    await session.execute(update(table).where(table.id == str(row_id)).values({self._column: moment}))
        except Unavailable as error:
            log.error(f"{self._column.key.replace('_', ' ')} not recorded", reason=str(error), detail=error.detail)
