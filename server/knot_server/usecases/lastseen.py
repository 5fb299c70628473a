"""When each space's agent was last here. Written for many at a time: a whole fleet may come or go at once."""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import update

from knot_server.store.database import Database
from knot_server.store.schema import Space
from knot_ssh.errors import Unavailable
from knot_ssh.names import SpaceId
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

DELAY = 1.0
"""Seconds that a note waits for others at most. One that a crash takes away is no loss: the agent is back soon."""


class LastSeen:
    """Notes that are still to be written, and what writes them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[SpaceId, int] = {}
        self._tasks = Tasks()

    def note(self, space_id: SpaceId) -> None:
        """The space's agent is here, or was just now."""
        if not self._noted:
            self._tasks.start(self._write_soon())
        self._noted[space_id] = int(time.time())

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
                for space_id, moment in noted.items():
                    await session.execute(update(Space).where(Space.id == str(space_id)).values(last_seen=moment))
        except Unavailable as error:
            log.error("last seen not recorded", reason=str(error), detail=error.detail)
