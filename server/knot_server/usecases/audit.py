"""The audit record: who did what, when, in the order in which it was committed.

What changes something is written in the same transaction as the change (`record`), so that neither is there without the other.
What only happens, such as a refusal, is noted (`note`) and written soon, many at a time. What strangers and agents can cause
at will is bounded by source and in all (`refuse`, `observe`); what there was no room for is counted, and the record says how
many were left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import structlog
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.actor import Actor
from knot_server.store.database import Database
from knot_server.store.schema import AuditRecord, Space
from knot_ssh.buckets import Allowances, Buckets, Pace
from knot_ssh.errors import KnotError
from knot_ssh.names import Owner, SpaceId
from knot_ssh.tasks import whole

log = structlog.get_logger(__name__)

QUEUE_MAX = 10_000
"""Notes that wait to be written, some 1 KB each."""
BATCH = 1000
"""Notes written in one transaction: some 10 ms, for which others who write wait."""
PAUSE = 0.2
"""Seconds in which notes gather before they are written together."""
RETRY = 5.0
"""Seconds until the next try when the store does not answer."""
LEFT_OUT_SECONDS = 60.0
"""Seconds at least between two records of how many were left out: those are records, too."""
TEXT_MAX, LIST_MAX = 255, 64
"""Characters of a text, and entries of a list, that a record keeps."""
REFUSALS_BY_SOURCE, REFUSALS = Pace(burst=20, rate=0.2), Pace(burst=200, rate=2)
"""Refusals of one address, and of all: enough to see who tries what; an attack that lasts a day adds 173,000 rows at most."""
SIGHTS_BY_SOURCE, SIGHTS = Pace(burst=1000, rate=5), Pace(burst=10_000, rate=100)
"""Links and connections that one owner, and all, may have recorded: a fleet that comes back opens hundreds at once."""
ONCE_AN_HOUR = Pace(burst=1, rate=1 / 3600)
"""How often the use of a token from one address is recorded, and that somebody asks for a space that is not connected."""

Value = str | int | float | bool | None | list[str]


class Event(StrEnum):
    """What is recorded."""

    JOINED = "joined"
    CERTIFIED = "certificate issued"
    FORWARD_MADE = "forward made"
    FORWARD_STOPPED = "forward stopped"
    LINK_OPENED = "link opened"
    RELAYED = "connection relayed"
    REFUSED = "refused"
    REVOKED = "revoked"
    ROTATED = "rotated"
    USER_MADE = "user made"
    USER_DELETED = "user deleted"
    SPACE_MADE = "space made"
    SPACE_CHANGED = "space changed"
    SPACE_DELETED = "space deleted"
    TOKEN_MADE = "token made"
    TOKEN_USED = "token used"
    TOKEN_REVOKED = "token revoked"
    LEFT_OUT = "left out"


SERVER, STRANGER = "the server", "a stranger"
"""The actor where nobody asked, and where nobody knows who asked. No user has a name with a space in it."""

Row = dict[str, Any]


@dataclass(slots=True)
class Audit:
    """Writes the record. `run` must be running for what is noted."""

    database: Database
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    _queue: list[Row] = field(default_factory=list)
    _left_out: int = 0
    _left_out_at: float = float("-inf")
    _waiting: asyncio.Event = field(default_factory=asyncio.Event)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _refusals: Allowances = field(default_factory=lambda: Allowances(REFUSALS_BY_SOURCE, REFUSALS))
    _sights: Allowances = field(default_factory=lambda: Allowances(SIGHTS_BY_SOURCE, SIGHTS))
    _uses: Buckets = field(default_factory=lambda: Buckets(ONCE_AN_HOUR))

    def record(
        self,
        session: AsyncSession,
        event: Event,
        actor: Actor | str,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Write within the caller's transaction: it is recorded if, and only if, that is committed."""
        session.add(AuditRecord(**self._made(event, actor, owner, space_id, fields)))

    async def write(
        self,
        event: Event,
        actor: Actor | str,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Write what was changed elsewhere than in the store, before it is answered; note it when the store fails."""
        row = self._made(event, actor, owner, space_id, fields)
        try:
            async with self.database.writing() as session:
                session.add(AuditRecord(**row))
        except KnotError as error:
            log.error("audit record not written, trying again", reason=str(error), detail=error.detail)
            self._take(row)

    def note(
        self,
        event: Event,
        actor: Actor | str,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Write soon; never waits, never fails. Of a space without an owner it finds out whose it is."""
        self._take(self._made(event, actor, owner, space_id, fields))

    def refuse(
        self,
        door: str,
        reason: str,
        source: str,
        actor: Actor | str = STRANGER,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Note that `door` has turned somebody away, as far as `source`, an address or an owner, has not caused too many."""
        if self._refusals.spend(source, self.clock()):
            self.note(Event.REFUSED, actor, owner=owner, space_id=space_id, door=door, reason=reason, **fields)
        else:
            self.leave_out(1)

    def observe(
        self,
        event: Event,
        actor: Actor | str,
        *,
        owner: Owner | str,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Note what an owner's agents or people may do at will, as far as they have not done too much of it."""
        if self._sights.spend(str(owner), self.clock()):
            self.note(event, actor, owner=owner, space_id=space_id, **fields)
        else:
            self.leave_out(1)

    def used(self, actor: Actor) -> None:
        """Note that an API token is in use: once an hour for each address."""
        if self._uses.spend((actor.token, actor.address), self.clock()):
            self.observe(Event.TOKEN_USED, actor, owner=actor.owner)

    def leave_out(self, count: int) -> None:
        """So many are not recorded."""
        self._left_out += count
        self._waiting.set()

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEFT_OUT_SECONDS):
                    await self._waiting.wait()
            await asyncio.sleep(PAUSE)
            self._waiting.clear()
            try:
                await self.flush()
            except KnotError as error:
                log.error("audit record not written, trying again", reason=str(error), detail=error.detail)
                self._waiting.set()
                await asyncio.sleep(RETRY)

    async def flush(self) -> None:
        """Write what is noted by now; raises StoreUnavailable, and then keeps it."""
        self._say_left_out()
        while self._queue:
            await self._write_batch()

    async def close(self) -> None:
        """Write what is left, if the store takes it."""
        self._left_out_at = float("-inf")
        with contextlib.suppress(KnotError):
            await self.flush()

    def _take(self, row: Row) -> None:
        if len(self._queue) >= QUEUE_MAX:
            self._left_out += 1
        else:
            self._queue.append(row)
        self._waiting.set()

    def _say_left_out(self) -> None:
        """Beyond the bound of the queue: there is one such row at most."""
        if self._left_out and self.clock() - self._left_out_at >= LEFT_OUT_SECONDS:
            self._left_out_at = self.clock()
            self._queue.append(self._made(Event.LEFT_OUT, SERVER, None, None, {"count": self._left_out}))
            self._left_out = 0

    @whole
    async def _write_batch(self) -> None:
        async with self._writing:
            batch = self._queue[:BATCH]
            if not batch:
                return
            async with self.database.writing() as session:
                await _find_owners(session, batch)
                await session.execute(insert(AuditRecord), batch)
            del self._queue[: len(batch)]  # others come at the end alone

    def _made(
        self,
        event: Event,
        actor: Actor | str,
        owner: Owner | str | None,
        space_id: SpaceId | str | None,
        fields: Mapping[str, Value],
    ) -> Row:
        if isinstance(actor, Actor):
            fields = {"by_token": actor.token, "address": actor.address} | dict(fields)
        return {
            "at": int(self.now() * 1000),
            "event": str(event),
            "actor": str(actor),
            "owner": None if owner is None else str(owner),
            "space_id": None if space_id is None else str(space_id),
            "fields": _encoded(fields),
        }


def _encoded(fields: Mapping[str, Value]) -> str:
    """As one line of ASCII, without what is not known; texts that strangers sent are cut short."""
    kept = {name: _short(value) for name, value in fields.items() if value is not None}
    return json.dumps(kept, ensure_ascii=True, separators=(",", ":"), sort_keys=True).replace("\x7f", "\\u007f")


def _short(value: Value) -> Value:
    if isinstance(value, list):
        return [str(_short(entry)) for entry in value[:LIST_MAX]]
    if isinstance(value, str):
        return value[:TEXT_MAX].encode(errors="replace").decode()  # half a surrogate pair is no text elsewhere
    return value


async def _find_owners(session: AsyncSession, batch: list[Row]) -> None:
    """What was noted of a space alone concerns its owner."""
    orphans = [row for row in batch if row["owner"] is None and row["space_id"] is not None]
    if not orphans:
        return
    question = select(Space.id, Space.owner).where(Space.id.in_({row["space_id"] for row in orphans}))
    owners = {space.id: space.owner for space in await session.execute(question)}
    for row in orphans:
        row["owner"] = owners.get(row["space_id"])
