"""Between journal and store: what a transaction leaves in the journal, and what a store of yesterday is told at a start."""

from __future__ import annotations

import time
from collections.abc import Iterable

from sqlalchemy import CursorResult, event, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_server.store.journal import (
    BACKUP_AGE,
    TOKEN_AGE,
    Barred,
    Entry,
    Joined,
    VoidCertificate,
    VoidKey,
    VoidToken,
)
from knot_server.store.schema import BarredKey, JoinToken, JoinUse, RevokedCertificate, RevokedKey, Space, User

Lasting = JoinUse | JoinToken | RevokedCertificate | RevokedKey | BarredKey
"""Rows that must not be forgotten with the store."""


def watch(session: AsyncSession) -> list[Lasting]:
    """The lasting rows that this session has written so far; the list grows."""
    found: list[Lasting] = []

    @event.listens_for(session.sync_session, "after_flush")
    def _flushed(flushed: Session, _context: object) -> None:
        found.extend(row for row in (*flushed.new, *flushed.dirty) if isinstance(row, Lasting))

    return found


async def entries(session: AsyncSession, rows: Iterable[Lasting]) -> list[Entry]:
    """What the journal is to say of these rows."""
    found = [await _entry(session, row) for row in rows]
    return [entry for entry in found if entry]


async def catch_up(session: AsyncSession, journal: Iterable[Entry]) -> None:
    """Make the store know all that the journal tells; one that knows it already is not changed."""
    known = list(journal)
    for joined in (entry for entry in known if isinstance(entry, Joined)):
        await _join(session, joined)
    for void in (entry for entry in known if not isinstance(entry, Joined)):
        if isinstance(void, Barred) and await session.get(User, void.owner) is None:
            continue
        if isinstance(void, VoidToken):
            await _void_token(session, void)
        else:
            await session.merge(_row(void))
    await _unenrol(session, {entry.fingerprint for entry in known if isinstance(entry, VoidKey)})


async def use_up(session: AsyncSession, token_id: str) -> bool:
    """Take one use of the token, in one statement, so that of two who try only one succeeds; gives whether there was one."""
    taken = await session.execute(
        update(JoinToken)
        .where(JoinToken.id == token_id, JoinToken.uses_left > 0)
        .values(uses_left=JoinToken.uses_left - 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(taken, CursorResult)
    return taken.rowcount == 1


async def _entry(session: AsyncSession, row: Lasting) -> Entry | None:
    match row:
        case RevokedCertificate():
            serial, until = row.serial, row.expires_at
            return VoidCertificate(serial=serial, reason=row.reason, until=until, owner=row.owner, key_id=row.key_id)
        case RevokedKey():
            key, until = row.fingerprint, row.expires_at + BACKUP_AGE
            return VoidKey(fingerprint=key, reason=row.reason, expires_at=row.expires_at, until=until, owner=row.owner)
        case BarredKey():
            until = int(time.time()) + BACKUP_AGE
            return Barred(owner=row.owner, fingerprint=row.fingerprint, reason=row.reason, until=until)
        case JoinToken():
            is_void = row.expires_at <= time.time()
            return VoidToken(token=row.id, until=row.expires_at + TOKEN_AGE) if is_void else None
        case JoinUse():
            return await _joined(session, row)


async def _joined(session: AsyncSession, use: JoinUse) -> Joined | None:
    token = await session.get(JoinToken, use.token_id)
    space = await session.get(Space, token.space_id) if token else None
    if token is None or space is None or space.enrolled_key is None:
        return None
    return Joined(
        token=token.id,
        fingerprint=use.fingerprint,
        space=space.id,
        key=space.enrolled_key,
        agentless=space.agentless,
        host_key=space.host_key if space.agentless else None,
        until=token.expires_at,
    )


async def _join(session: AsyncSession, entry: Joined) -> None:
    """As it happened: the token is used up, and the key is the space's."""
    space = await session.get(Space, entry.space)
    known = await session.get(JoinUse, (entry.token, entry.fingerprint))
    if space is None or known or not await use_up(session, entry.token):
        return
    session.add(JoinUse(token_id=entry.token, fingerprint=entry.fingerprint))
    space.enrolled_key, space.agentless = entry.key, entry.agentless
    space.host_key = entry.host_key or space.host_key


async def _void_token(session: AsyncSession, entry: VoidToken) -> None:
    """It ended when it was revoked."""
    token = await session.get(JoinToken, entry.token)
    if token is not None:
        token.expires_at = min(token.expires_at, entry.until - TOKEN_AGE)


def _row(void: VoidKey | VoidCertificate | Barred) -> RevokedKey | RevokedCertificate | BarredKey:
    told = void.model_dump(exclude={"kind", "until"})
    match void:
        case VoidKey():
            return RevokedKey(**told)
        case VoidCertificate():
            return RevokedCertificate(**told, expires_at=void.until)
        case Barred():
            return BarredKey(**told)


async def _unenrol(session: AsyncSession, keys: set[str]) -> None:
    """No space keeps one of these; one that was enrolled again is not among them."""
    for space in await session.scalars(select(Space).where(Space.enrolled_key.is_not(None))):
        if space.enrolled_key and fingerprint(parse_public_key(space.enrolled_key)) in keys:
            space.enrolled_key = None
