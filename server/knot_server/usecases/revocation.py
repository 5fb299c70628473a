"""Make keys void: recorded, told to every connected agent, and remembered until their last certificate has expired."""

from __future__ import annotations

import time
from collections.abc import Collection

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, RevokedKey
from knot_ssh.wire import RevokedKeys

GRACE = 120
"""Seconds that a revocation outlives the last certificate, for clocks that are behind ours."""


class Revocations:
    """The list of revoked keys. `current` is the copy that hub and agents decide by."""

    def __init__(self, database: Database, roster: Roster) -> None:
        self._database = database
        self._roster = roster
        self.current: frozenset[str] = frozenset()

    async def load(self) -> None:
        """Read the list at start, dropping what has run out."""
        async with self._database.writing() as session:
            await session.execute(delete(RevokedKey).where(RevokedKey.expires_at < _now()))
            await session.execute(delete(Certificate).where(Certificate.expires_at < _now()))
            self.current = frozenset(await session.scalars(select(RevokedKey.fingerprint)))

    async def record(self, session: AsyncSession, fingerprints: Collection[str], reason: str) -> None:
        """Make these keys void as part of a transaction; call `publish` once it is committed."""
        for fingerprint in fingerprints:
            last = await session.scalar(select(func.max(Certificate.expires_at)).where(Certificate.fingerprint == fingerprint))
            row = RevokedKey(fingerprint=fingerprint, reason=reason, expires_at=(last or _now()) + GRACE)
            await session.merge(row)

    async def publish(self) -> None:
        """Decide by the committed list from now on, and tell every agent."""
        async with self._database.reading() as session:
            self.current = frozenset(await session.scalars(select(RevokedKey.fingerprint)))
        await self._roster.tell("keys.revoked", self.message())

    def message(self) -> RevokedKeys:
        return RevokedKeys(revoked_keys=sorted(self.current))


def _now() -> int:
    return int(time.time())
