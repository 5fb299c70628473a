"""The audit record: who did what, when, in the order in which it was committed.

What changes something is written in the same transaction as the change (`record`), so that neither is there without the other.
What only happens, such as a refusal, is noted (`note`) and written soon, many at a time; when more comes than can be written,
the rest is counted, and the record says how many were left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.store.database import Database
from knot_server.store.schema import AuditRecord
from knot_ssh.errors import KnotError
from knot_ssh.names import Owner, SpaceId

log = structlog.get_logger(__name__)

QUEUE_MAX = 10_000
"""Notes that wait to be written, some 1 KB each."""
PAUSE = 0.2
"""Seconds in which notes gather before they are written together."""
RETRY = 5.0
"""Seconds until the next try when the store does not answer."""

Value = str | int | float | bool | None | list[str]


class Event(StrEnum):
    """What is recorded."""

    JOINED = "joined"
    CERTIFIED = "certificate issued"
    FORWARD_MADE = "forward made"
    FORWARD_STOPPED = "forward stopped"
    LINK_OPENED = "link opened"
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


SERVER = "server"
"""The actor where nobody asked."""


@dataclass(slots=True)
class Audit:
    """Writes the record. `run` must be running for what is noted."""

    database: Database
    now: Callable[[], float] = time.time
    _queue: list[AuditRecord] = field(default_factory=list)
    _left_out: int = 0
    _waiting: asyncio.Event = field(default_factory=asyncio.Event)

    def record(
        self,
        session: AsyncSession,
        event: Event,
        actor: str,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Write within the caller's transaction: it is recorded if, and only if, that is committed."""
        session.add(self._made(event, actor, owner, space_id, fields))

    def note(
        self,
        event: Event,
        actor: str,
        *,
        owner: Owner | str | None = None,
        space_id: SpaceId | str | None = None,
        **fields: Value,
    ) -> None:
        """Write soon; never waits, never fails."""
        if len(self._queue) >= QUEUE_MAX:
            self._left_out += 1
        else:
            self._queue.append(self._made(event, actor, owner, space_id, fields))
        self._waiting.set()

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
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
        batch, self._queue = self._queue, []
        left_out, self._left_out = self._left_out, 0
        if left_out:
            batch.append(self._made(Event.LEFT_OUT, SERVER, None, None, {"count": left_out}))
        if not batch:
            return
        try:
            async with self.database.writing() as session:
                session.add_all(batch)
        except BaseException:
            kept = [_copy(record) for record in batch[: len(batch) - bool(left_out)]]
            self._queue = (kept + self._queue)[:QUEUE_MAX]
            self._left_out += left_out
            raise

    async def close(self) -> None:
        """Write what is left, if the store takes it."""
        with contextlib.suppress(KnotError):
            await self.flush()

    def _made(
        self, event: Event, actor: str, owner: Owner | str | None, space_id: SpaceId | str | None, fields: dict[str, Value]
    ) -> AuditRecord:
        return AuditRecord(
            at=int(self.now() * 1000),
            event=str(event),
            actor=actor,
            owner=None if owner is None else str(owner),
            space_id=None if space_id is None else str(space_id),
            fields=json.dumps(fields, ensure_ascii=True, separators=(",", ":"), sort_keys=True),
        )


def _copy(record: AuditRecord) -> AuditRecord:
    """A record that no session has seen."""
    return AuditRecord(
        at=record.at,
        event=record.event,
        actor=record.actor,
        owner=record.owner,
        space_id=record.space_id,
        fields=record.fields,
    )
