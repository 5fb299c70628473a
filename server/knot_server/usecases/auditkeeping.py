"""The audit record ends somewhere: what is too old, or too much, is dropped in small steps, the oldest first.

What others can cause at will has a share of the record that it cannot exceed, so that no flood of it pushes out what changed
something. And where there is too much, the owners with most records give up theirs: whoever makes and stops forwards without
end pushes out nobody's records but their own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import InstrumentedAttribute
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
KEEP_SECONDS = 300.0
"""Seconds between two looks at what is too old or too much."""
STEP = 500
"""Records dropped in one transaction, some milliseconds, for which others who write wait."""
DAY = 24 * 3600
LOOK = 50_000
"""Records that one look drops at most of each group; the next goes on, soon."""
SOON = 1.0
"""Seconds until then: records come more slowly than so many a second."""

Group = tuple[str | None, bool]
"""An owner's records, of the daily work or not."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Drops what is older than `days`, and the oldest of what is more than `most` records."""

    database: Database
    days: int
    most: int
    now: Callable[[], float] = time.time

    async def run(self) -> None:
        """Do so again and again, until cancelled."""
        wait = KEEP_SECONDS
        while True:
            await asyncio.sleep(wait)
            wait = KEEP_SECONDS
            try:
                if await self.keep():
                    wait = SOON
            except KnotError as error:
                log.error("audit record not pruned", reason=str(error), detail=error.detail)

    async def keep(self) -> bool:
        """Drop what is to be dropped by now, or as much of it as a look allows: gives whether there is more. Raises
        StoreUnavailable."""
        too_old = AuditRecord.at < int((self.now() - self.days * DAY) * 1000)
        is_more = await self._drop(too_old, AuditRecord.at, LOOK) == LOOK
        counts = await self._counts()
        gone = 0  # each share is a part of the next one
        for events, share in SHARES:
            too_many = sum(counts.get(event, 0) for event in events) - gone - int(self.most * share)
            if too_many > 0:
                dropped = await self._thin(events, too_many)
                gone += sum(dropped)
                is_more |= LOOK in dropped
        return is_more

    async def _thin(self, events: Sequence[Event], too_many: int) -> list[int]:
        """Drop so many records of these kinds, of those who have most; gives how many of each of them."""
        groups = await self._groups(events)
        dropped = []
        for (owner, is_routine), surplus in surpluses(groups, too_many).items():
            kinds = [str(event) for event in events if (event in ROUTINE) == is_routine]
            theirs = AuditRecord.event.in_(kinds) & (AuditRecord.owner == owner)
            dropped.append(await self._drop(theirs, AuditRecord.id, surplus))
        return dropped

    async def _groups(self, events: Sequence[Event]) -> Counter[Group]:
        """How many records of these kinds each owner has: some 1.2 s for a million, in which others may read and write."""
        columns = AuditRecord.event, AuditRecord.owner
        question = select(*columns, func.count()).where(AuditRecord.event.in_([str(event) for event in events]))
        found: Counter[Group] = Counter()
        async with self.database.reading() as session:
            for event, owner, count in await session.execute(question.group_by(*columns)):
                found[owner, event in ROUTINE] += count
        return found

    async def _counts(self) -> dict[str, int]:
        """How many there are of each kind, by the index alone: some 0.2 s for a million."""
        question = select(AuditRecord.event, func.count()).group_by(AuditRecord.event)
        async with self.database.reading() as session:
            return {row[0]: row[1] for row in await session.execute(question)}

    async def _drop(self, unwanted: ColumnElement[bool], age: InstrumentedAttribute[int], most: int) -> int:
        """Drop the oldest of these, by an index that tells; gives how many. They are looked for while others may write."""
        if most <= 0:
            return 0
        async with self.database.reading() as session:
            question = select(AuditRecord.id).where(unwanted).order_by(age).limit(min(most, LOOK))
            oldest = list(await session.scalars(question))
        for start in range(0, len(oldest), STEP):
            async with self.database.writing() as session:
                await session.execute(delete(AuditRecord).where(AuditRecord.id.in_(oldest[start : start + STEP])))
        return len(oldest)


def surpluses(groups: Mapping[Group, int], too_many: int) -> dict[Group, int]:
    """What the largest groups have above a level, chosen so that together it is at least so much, and hardly more."""
    ordered = sorted(groups.items(), key=lambda group: group[1], reverse=True)
    together, level = 0, 0
    for number, (_, size) in enumerate(ordered, 1):
        together += size
        level = max(0, (together - too_many) // number)
        if number == len(ordered) or level >= ordered[number][1]:
            break
    return {group: size - level for group, size in ordered if size > level}
