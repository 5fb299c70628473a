"""The audit record ends somewhere: what is too old, or too much, is dropped in small steps, the oldest first.

What others can cause at will has a share of the record that it cannot exceed, so that no flood of it pushes out what changed
something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy import CursorResult, delete, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from knot_server.store.database import Database
from knot_server.store.schema import AuditRecord
from knot_server.usecases.audit import Event
from knot_ssh.errors import KnotError

log = structlog.get_logger(__name__)

STRANGERS = (Event.REFUSED, Event.LEFT_OUT)
"""What anybody can cause."""
ROUTINE = (*STRANGERS, Event.CERTIFIED, Event.LINK_OPENED, Event.RELAYED, Event.TOKEN_USED)
"""What agents and people cause as long as they work, or as often as they like."""
SHARES = ((STRANGERS, 0.25), (ROUTINE, 0.75), (tuple(Event), 1.0))
"""Of all records there may be, the part that these may take up."""
KEEP_SECONDS = 60.0
"""Seconds between two looks at what is too old or too much."""
STEP = 500
"""Records dropped in one transaction, some milliseconds, for which others who write wait."""
DAY = 24 * 3600


@dataclass(frozen=True, slots=True)
class Keeping:
    """Drops what is older than `days`, and the oldest of what is more than `most` records."""

    database: Database
    days: int
    most: int
    now: Callable[[], float] = time.time

    async def run(self) -> None:
        """Do so once a minute, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            try:
                await self.keep()
            except KnotError as error:
                log.error("audit record not pruned", reason=str(error), detail=error.detail)

    async def keep(self) -> None:
        """Drop all that is to be dropped by now; raises StoreUnavailable."""
        for unwanted in await self._unwanted():
            while await self._drop(unwanted) == STEP:
                pass

    async def _unwanted(self) -> list[ColumnElement[bool]]:
        found = [AuditRecord.at < int((self.now() - self.days * DAY) * 1000)]
        async with self.database.reading() as session:
            for events, share in SHARES:
                floor = await _floor(session, events, int(self.most * share))
                found += [] if floor is None else [_of(events) & (AuditRecord.id <= floor)]
        return found

    async def _drop(self, unwanted: ColumnElement[bool]) -> int:
        """Drop some of these; gives how many."""
        oldest = select(AuditRecord.id).where(unwanted).order_by(AuditRecord.id).limit(STEP)
        async with self.database.writing() as session:
            dropped = await session.execute(
                delete(AuditRecord).where(AuditRecord.id.in_(oldest)).execution_options(synchronize_session=False)
            )
        assert isinstance(dropped, CursorResult)
        return dropped.rowcount


async def _floor(session: AsyncSession, events: tuple[Event, ...], most: int) -> int | None:
    """The id of the newest of these that is one too many."""
    question = select(AuditRecord.id).where(_of(events)).order_by(AuditRecord.id.desc()).offset(most).limit(1)
    return await session.scalar(question)


def _of(events: tuple[Event, ...]) -> ColumnElement[bool]:
    return or_(*(AuditRecord.event == str(event) for event in events))
