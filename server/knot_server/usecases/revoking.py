"""Orders to revoke: a certificate, a space, a user, a key. Each is one transaction, with its line in the audit record, and
takes effect once that is committed: the hub decides by it, connected agents are told, and what was opened is cut.

A user sees their own alone; another's certificate, space or key is never told apart from none. Administrators act on
anybody's, by naming the user.

A certificate that is issued at the same moment is either in the store before the order, and void with the others, or asked for
after it, and refused: both are write transactions, which come one after the other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import asyncssh
from sqlalchemy import CursorResult, delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_server.actor import Actor
from knot_server.store.database import Database
from knot_server.store.schema import (
    ApiToken,
    BarredKey,
    Certificate,
    JoinToken,
    RevokedCertificate,
    RevokedKey,
    Space,
    User,
)
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.lookup import administrators_only, check_current, visible_space
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import BadInput, Conflict, Forbidden, NotFound
from knot_ssh.names import Owner, SpaceId

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
"""As `ssh-keygen -l` prints it: base64 of 32 bytes, without padding."""

SERIAL_MAX = 2**63 - 1
"""No certificate of ours has a larger one."""


@dataclass(frozen=True, slots=True)
class Voided:
    """What an order has made void, and how many connected agents were told."""

    certificates: int = 0
    keys: int = 0
    join_tokens: int = 0
    api_tokens: int = 0
    agents_told: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of what is revoked now. Without `until` it is for good."""

    kind: Literal["certificate", "enrolled key", "key"]
    what: str
    owner: str
    key_id: str
    reason: str
    until: int | None


class Revoking:
    """The use cases."""

    def __init__(self, database: Database, revocations: Revocations, audit: Audit) -> None:
        self._database = database
        self._revocations = revocations
        self._audit = audit

    async def certificate(self, actor: Actor, serial: int, reason: str, *, user: Owner | None = None) -> Voided:
        """One certificate, of an agent, a host or a person, perhaps one that has expired while what it opened goes on.

        Raises Forbidden, or NotFound unless it is known, not void yet and theirs.
        """
        owner = _owner(actor, user)
        if serial > SERIAL_MAX:
            raise _no_certificate(actor, owner, serial)
        async with self._database.writing() as session:
            await check_current(session, actor)
            which = (Certificate.serial == serial) & (Certificate.owner == str(owner))
            voided = Voided(await self._revocations.record(session, which, None, reason, owner=owner))
            if not voided.certificates:
                raise _no_certificate(actor, owner, serial)
            self._note(session, actor, owner, "certificate", str(serial), reason, voided)
        return await self._published(voided, [], reason)

    async def space(self, actor: Actor, reference: str, reason: str, *, user: Owner | None = None) -> Voided:
        """A space's enrolled key, its certificates, and the join tokens that nobody has used. Raises Forbidden or NotFound.

        The space, its name and its stored forwards stay; with a new join token it comes back.
        """
        owner = _owner(actor, user)
        async with self._database.writing() as session:
            await check_current(session, actor)
            space = await _space(session, actor, owner, reference)
            voided = await self._void_space(session, space, reason, tokens=True)
            self._note(session, actor, owner, "space", space.name, reason, voided, space.id)
        return await self._published(voided, [space.space_id], f"the space {space.name} was revoked{_because(reason)}")

    async def user(self, actor: Actor, name: Owner, reason: str) -> Voided:
        """All that a user can show: certificates, enrolled keys, join tokens, API tokens. They stay, with their spaces; an
        administrator makes them a new API token when they may come back. Raises Forbidden, NotFound or Conflict."""
        administrators_only(actor)
        if name == actor.owner:
            raise Conflict("you cannot revoke yourself: nobody would be left to let you in again; ask another administrator")
        async with self._database.writing() as session:
            await check_current(session, actor)
            if await session.get(User, str(name)) is None:
                raise NotFound(f"there is no user {name!r}")
            voided = Voided(await self._revocations.record(session, Certificate.owner == str(name), None, reason, owner=name))
            spaces = list(await session.scalars(select(Space).where(Space.owner == str(name))))
            for space in spaces:
                voided = _sum(voided, await self._void_space(session, space, reason, tokens=True))
            tokens = await _count(session, delete(ApiToken).where(ApiToken.user_name == str(name)))
            voided = _sum(voided, Voided(api_tokens=tokens))
            self._note(session, actor, name, "user", str(name), reason, voided)
        return await self._published(voided, [space.space_id for space in spaces], f"{name} was revoked{_because(reason)}")

    async def key(self, actor: Actor, key: str, reason: str, *, user: Owner | None = None) -> Voided:
        """A public key, by its fingerprint or as an OpenSSH line: every certificate for it is void, and there will be no other;
        of a space whose enrolled key it is, all is void but its join tokens.

        Of the actor's own, or for an administrator of anybody's. Raises BadInput, Forbidden or NotFound.
        """
        shown = parse_fingerprint(key)
        owners = None if actor.admin and user is None else {str(_owner(actor, user))}
        async with self._database.writing() as session:
            await check_current(session, actor)
            certified = select(Certificate.owner).where(Certificate.fingerprint == shown)
            spaces = [space for space in await _enrolled(session, shown) if owners is None or space.owner in owners]
            holders = {owner for owner in await session.scalars(certified) if owners is None or owner in owners}
            holders |= {space.owner for space in spaces}
            if not holders:
                raise NotFound(f"the key {shown} is not enrolled, and no certificate was made for it lately")
            voided = Voided()
            for owner in sorted(holders):
                voided = _sum(voided, await self._bar(session, Owner(owner), shown, reason))
            for space in spaces:
                voided = _sum(voided, await self._void_space(session, space, reason, tokens=False))
            self._note(session, actor, min(holders), "key", shown, reason, voided)
        gone = [space.space_id for space in spaces]
        return await self._published(voided, gone, f"the key of this space was revoked{_because(reason)}")

    async def listing(self, actor: Actor) -> list[Entry]:
        """What is revoked now and not yet run out, of the actor's own; for an administrator, everybody's."""
        now = int(time.time())
        certificates = select(RevokedCertificate).where(RevokedCertificate.expires_at > now)
        keys = select(RevokedKey).where(RevokedKey.expires_at > now)
        barred = select(BarredKey)
        if not actor.admin:
            certificates = certificates.where(RevokedCertificate.owner == str(actor.owner))
            keys = keys.where(RevokedKey.owner == str(actor.owner))
            barred = barred.where(BarredKey.owner == str(actor.owner))
        async with self._database.reading() as session:
            found = [_certificate(row) for row in await session.scalars(certificates)]
            found += [_key("enrolled key", row, row.expires_at) for row in await session.scalars(keys)]
            found += [_key("key", row, None) for row in await session.scalars(barred)]
        return sorted(found, key=lambda entry: (entry.owner, entry.kind, entry.key_id, entry.what))

    async def _void_space(self, session: AsyncSession, space: Space, reason: str, *, tokens: bool) -> Voided:
        own = Certificate.space_id == space.id
        certificates = await self._revocations.record(session, own, space.enrolled_key, reason, owner=space.owner)
        keys, space.enrolled_key = int(space.enrolled_key is not None), None
        return Voided(certificates, keys, await _void_tokens(session, space) if tokens else 0)

    async def _bar(self, session: AsyncSession, owner: Owner, key: str, reason: str) -> Voided:
        """Void this owner's certificates for a key, and certify it no more for them."""
        which = (Certificate.fingerprint == key) & (Certificate.owner == str(owner))
        await session.merge(BarredKey(owner=str(owner), fingerprint=key, reason=reason))
        return Voided(await self._revocations.record(session, which, None, reason, owner=owner))

    async def _published(self, voided: Voided, spaces: Sequence[SpaceId], farewell: str) -> Voided:
        return _sum(voided, Voided(agents_told=await self._revocations.publish(spaces, farewell)))

    def _note(
        self,
        session: AsyncSession,
        actor: Actor,
        owner: Owner | str,
        kind: str,
        what: str,
        reason: str,
        voided: Voided,
        space_id: str | None = None,
    ) -> None:
        self._audit.record(
            session,
            Event.REVOKED,
            actor,
            owner=owner,
            space_id=space_id,
            space=what if space_id else None,
            kind=kind,
            what=what,
            reason=reason,
            certificates=voided.certificates,
            keys=voided.keys,
            join_tokens=voided.join_tokens,
            api_tokens=voided.api_tokens,
        )


def parse_fingerprint(text: str) -> str:
    """The fingerprint that this is, or that of the public key line that this is; raises BadInput."""
    if FINGERPRINT.fullmatch(text):
        return text
    try:
        return fingerprint(asyncssh.import_public_key(text))
    except (asyncssh.KeyImportError, ValueError, ArithmeticError):  # the last for numbers that no key has
        raise BadInput("key: must be a fingerprint like SHA256:…, as `ssh-keygen -l` prints it, or a public key line") from None


def _certificate(row: RevokedCertificate) -> Entry:
    return Entry("certificate", str(row.serial), row.owner, row.key_id, row.reason, row.expires_at)


def _key(kind: Literal["enrolled key", "key"], row: RevokedKey | BarredKey, until: int | None) -> Entry:
    return Entry(kind, row.fingerprint, row.owner, "", row.reason, until)


def _owner(actor: Actor, user: Owner | None) -> Owner:
    """Whose things are meant; raises Forbidden."""
    if user is not None and user != actor.owner and not actor.admin:
        raise Forbidden
    return user or actor.owner


async def _space(session: AsyncSession, actor: Actor, owner: Owner, reference: str) -> Space:
    """Somebody's space; raises NotFound."""
    try:
        return await visible_space(session, Actor(owner), reference)
    except NotFound:
        if owner == actor.owner:
            raise
        raise NotFound(f"there is no space {reference!r} of {owner}'s") from None


def _no_certificate(actor: Actor, owner: Owner, serial: int) -> NotFound:
    return NotFound(f"no certificate with serial {serial} is good and {_whose(actor, owner)}")


def _whose(actor: Actor, owner: Owner) -> str:
    if owner != actor.owner:
        return f"{owner}'s"
    return "yours (for another's, name the user)" if actor.admin else "yours"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _sum(one: Voided, other: Voided) -> Voided:
    return Voided(
        one.certificates + other.certificates,
        one.keys + other.keys,
        one.join_tokens + other.join_tokens,
        one.api_tokens + other.api_tokens,
        one.agents_told + other.agents_told,
    )


async def _enrolled(session: AsyncSession, shown: str) -> list[Space]:
    """The spaces whose enrolled key this is."""
    spaces = await session.scalars(select(Space).where(Space.enrolled_key.is_not(None)))
    return [space for space in spaces if space.enrolled_key and fingerprint(parse_public_key(space.enrolled_key)) == shown]


async def _void_tokens(session: AsyncSession, space: Space) -> int:
    """End a space's join tokens that may still be used, row by row, so that the journal hears of each; gives how many."""
    now = _now()
    usable = select(JoinToken).where(JoinToken.space_id == space.id, JoinToken.uses_left > 0, JoinToken.expires_at > now)
    tokens = list(await session.scalars(usable))
    for token in tokens:
        token.expires_at = now
    return len(tokens)


async def _count(session: AsyncSession, statement: object) -> int:
    """Carry out a change; gives how many rows it was about."""
    done = await session.execute(statement)  # type: ignore[call-overload]
    assert isinstance(done, CursorResult)
    return done.rowcount


def _now() -> int:
    return int(time.time())
