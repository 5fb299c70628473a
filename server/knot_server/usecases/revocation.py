"""Make keys and certificates void: recorded, told to every connected agent, and remembered until they have expired.

In two steps: `record` within the transaction that takes the right away, and `publish` once it is committed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from knot_keys.authority import Authority
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.krl import make_krl
from knot_keys.revocation import RevocationList
from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, RevokedCertificate, RevokedKey
from knot_server.usecases.audit import Audit
from knot_ssh.names import SpaceId
from knot_ssh.wire import Revoked

GRACE = 120
"""Seconds that a revocation outlives what it revokes, for clocks that are behind ours."""


class Revocations:
    """The list of what is revoked. `current` is the copy that the hub decides by."""

    def __init__(self, database: Database, authority: Authority, roster: Roster, audit: Audit, lifetime: int) -> None:
        self._database = database
        self._authority = authority
        self._roster = roster
        self._audit = audit
        self._lifetime = lifetime
        self.current = RevocationList()
        self._refreshing = asyncio.Lock()  # an older reading must not overtake a newer one
        self._krl: tuple[RevocationList, frozenset[str], bytes] | None = None
        self._making = asyncio.Lock()
        self.on_change: list[Callable[[], None]] = []

    async def load(self) -> None:
        """Read the list at start, dropping what has run out."""
        now = int(time.time())
        async with self._database.writing() as session:
            for table in (Certificate, RevokedCertificate, RevokedKey):
                await session.execute(delete(table).where(table.expires_at < now))
        await self.refresh()

    async def record(self, session: AsyncSession, which: ColumnElement[bool], enrolled_key: str | None, reason: str) -> None:
        """Make the certificates that `which` selects void, and the enrolled key (an OpenSSH line) if one is given."""
        for certificate in list(await session.scalars(select(Certificate).where(which))):
            expires_at = certificate.expires_at + GRACE
            await session.merge(RevokedCertificate(serial=certificate.serial, reason=reason, expires_at=expires_at))
        if enrolled_key:
            key = fingerprint(parse_public_key(enrolled_key))
            expires_at = int(time.time()) + self._lifetime + GRACE
            await session.merge(RevokedKey(fingerprint=key, reason=reason, expires_at=expires_at))

    async def refresh(self) -> None:
        """Decide by what is committed from now on."""
        async with self._refreshing, self._database.reading() as session:
            serials: Iterable[int] = await session.scalars(select(RevokedCertificate.serial))
            keys: Iterable[str] = await session.scalars(select(RevokedKey.fingerprint))
            self.current = RevocationList.of(serials, keys)

    async def publish(self, space_ids: Sequence[SpaceId], reason: str) -> None:
        """Make what was recorded take effect: decide by it, tell every agent, and dismiss those of these spaces.

        All are told at once and nobody is waited for long: an agent that does not read must not delay its own end.
        """
        await self.refresh()
        leaving = [agent for agent in map(self._roster.get, space_ids) if agent]
        farewells = [self._roster.dismiss(agent, reason) for agent in leaving]
        await asyncio.gather(*farewells, self._roster.tell("keys.revoked", self.message()))
        for listener in self.on_change:
            listener()

    async def krl(self) -> bytes:
        """The list as OpenSSH reads it, made when it is first asked for; raises KrlUnavailable."""
        async with self._making:
            current, cas = self.current, self._authority.names
            if self._krl is None or self._krl[0] is not current or self._krl[1] != cas:
                self._krl = current, cas, await make_krl(current, self._authority.ca_keys)
            return self._krl[2]

    def message(self) -> Revoked:
        return Revoked(serials=sorted(self.current.serials), keys=sorted(self.current.keys))
