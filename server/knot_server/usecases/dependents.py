"""Who still depends on a key that is to be retired, or does not know the one that is to be activated: counted by kind, and
the first few of them by name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.identity import HOST_KEY_ID
from knot_server.store.schema import Certificate, JoinToken, RevokedCertificate, Space

NAMED_MAX = 5
"""Names that a refusal gives; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Dependents:
    """Some of one kind, and what the first few of them are called."""

    kind: str
    text: str
    """What they are, before their number."""
    count: int
    names: list[str]

    @classmethod
    def of(cls, kind: str, text: str, names: Sequence[str]) -> Dependents:
        return cls(kind, text, len(names), sorted(set(names))[:NAMED_MAX])

    def __str__(self) -> str:
        more = ", …" if self.count > len(self.names) else ""
        return f"{self.text}: {self.count} ({', '.join(self.names)}{more})"


async def spaces_without(session: AsyncSession, key: str) -> Dependents:
    """Enrolled spaces whose agent or sshd has not said, by now, that it trusts this key."""
    ignorant = select(Space).where(Space.enrolled_key.is_not(None), Space.trusts.not_like(f"%{key}%"))
    names = [f"{space.owner}/{space.name}" for space in await session.scalars(ignorant)]
    return Dependents.of("spaces", "spaces that do not know the new key yet", names)


async def certificates_by(session: AsyncSession, ca: str, *, hosts: bool) -> Dependents:
    """Certificates by this CA, of hosts or of clients, that are good still.

    An sshd's is good for a month; it does not count once the machine has fetched another one by another CA.
    """
    revoked = select(RevokedCertificate.serial)
    good = select(Certificate).where(Certificate.expires_at > time.time(), Certificate.serial.not_in(revoked))
    theirs = good.where(Certificate.ca.in_([ca, ""]), _is_host if hosts else ~_is_host)
    replaced = good.where(Certificate.ca.not_in([ca, ""]), _is_host)
    agentless = set(await session.scalars(select(Space.id).where(Space.agentless)))
    fresh = {found.fingerprint for found in await session.scalars(replaced) if found.space_id in agentless}
    left = [found for found in await session.scalars(theirs) if found.fingerprint not in fresh]
    return Dependents.of("certificates", "certificates by the old CA that are good still", [_holder(found) for found in left])


async def tokens_without(session: AsyncSession, ca: str) -> Dependents:
    """Join tokens that may still be used and do not name this host CA."""
    usable = select(JoinToken).where(JoinToken.expires_at > time.time(), JoinToken.uses_left > 0)
    tokens = await session.scalars(usable.where(JoinToken.host_cas.not_like(f"%{ca}%")))
    return Dependents.of("tokens", "unused join tokens that name the old CA alone", [token.id for token in tokens])


async def people_who_have_not_asked(session: AsyncSession, since: float) -> Dependents:
    """Whose stock ssh has a certificate from before that moment, and so has not heard of what came with it."""
    last = (
        select(Certificate.owner, func.max(func.coalesce(Certificate.issued_at, 0)).label("at"))
        .where(Certificate.expires_at > time.time(), Certificate.space_id.is_(None))
        .group_by(Certificate.owner, Certificate.fingerprint)
        .subquery()
    )
    owners = await session.scalars(select(last.c.owner).where(last.c.at <= int(since)))
    return Dependents.of("people", "keys of people whose `knot ssh refresh` is due", list(owners))


def _holder(certificate: Certificate) -> str:
    """Whose it is, as people name them: `alice`, `alice/backend`."""
    _role, owner, _zones, space, _id = certificate.key_id.split("/")
    return owner if certificate.space_id is None else f"{owner}/{space}"


_is_host = Certificate.key_id.startswith(HOST_KEY_ID)
