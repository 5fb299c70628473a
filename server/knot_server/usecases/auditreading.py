"""Reading the audit record: administrators see all of it, everybody else what concerns them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from knot_server.actor import Actor
from knot_server.store.database import Database
from knot_server.store.schema import AuditRecord, Space
from knot_server.usecases.audit import Event
from knot_ssh.errors import NotFound
from knot_ssh.names import Owner, SpaceId, space_reference


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records: every condition that is given holds for each. `user` owns what it is about, or has done it."""

    after: int | None = None
    """Those behind this id, from there on; without it the newest."""
    events: Sequence[Event] = ()
    space: str | None = None
    user: Owner | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Page:
    """Records in their order, and the id behind which the next ones come: less than was asked for where an older copy of the
    store was put back."""

    records: list[dict[str, Any]]
    last: int


async def read_audit(database: Database, actor: Actor, wanted: Wanted) -> Page:
    """A page of the record; raises NotFound for a space that is not there, or not the actor's."""
    async with database.reading() as session:
        conditions = [*_rights(actor), *_conditions(wanted)]
        if wanted.space is not None:
            conditions.append(AuditRecord.space_id.in_(await _space_ids(session, actor, wanted)))
        last = await session.scalar(select(func.max(AuditRecord.id)).where(*_rights(actor))) or 0
        rows = (await session.execute(_question(conditions, wanted))).all()
    records = [_told(record, name) for record, name in (rows if wanted.after is not None else reversed(rows))]
    whole = len(records) < wanted.limit or wanted.after is None
    return Page(records, last if whole else records[-1]["id"])


def _question(conditions: list[ColumnElement[bool]], wanted: Wanted) -> Select[AuditRecord, str]:
    order = AuditRecord.id.desc() if wanted.after is None else AuditRecord.id
    names = select(AuditRecord, Space.name).outerjoin(Space, Space.id == AuditRecord.space_id)
    return names.where(*conditions).order_by(order).limit(wanted.limit)


def _rights(actor: Actor) -> list[ColumnElement[bool]]:
    return [] if actor.admin else [AuditRecord.owner == str(actor.owner)]


def _conditions(wanted: Wanted) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wanted.after is not None:
        found.append(AuditRecord.id > wanted.after)
    if wanted.events:
        found.append(AuditRecord.event.in_([str(event) for event in wanted.events]))
    if wanted.user is not None:
        found.append(or_(AuditRecord.owner == str(wanted.user), AuditRecord.actor == str(wanted.user)))
    if wanted.since is not None:
        found.append(AuditRecord.at >= int(wanted.since.timestamp() * 1000))
    if wanted.until is not None:
        found.append(AuditRecord.at < int(wanted.until.timestamp() * 1000))
    return found


async def _space_ids(session: AsyncSession, actor: Actor, wanted: Wanted) -> list[str]:
    """The spaces that are meant. One that was deleted has no name any more, but its id goes on meaning it."""
    assert wanted.space is not None
    found = space_reference(wanted.space)
    if isinstance(found, SpaceId):
        return [str(found)]
    question = select(Space.id).where(Space.name == str(found))
    owner = wanted.user if actor.admin else actor.owner
    ids = list(await session.scalars(question.where(Space.owner == str(owner)) if owner else question))
    if not ids:
        raise NotFound(f"there is no space {wanted.space!r} of yours; what was deleted is found by its id")
    return ids


def _told(record: AuditRecord, name: str | None) -> dict[str, Any]:
    """A record as it is shown; `space` is what the space was called then, or else what it is called now."""
    fields: dict[str, Any] = json.loads(record.fields)
    return {
        "id": record.id,
        "at": record.at,
        "event": record.event,
        "actor": record.actor,
        "owner": record.owner,
        "space": fields.pop("space", None) or name,
        "space_id": record.space_id,
        **fields,
    }
