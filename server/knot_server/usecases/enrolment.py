"""How a key becomes a space's key: redeeming join tokens, and certifying what has been enrolled."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import asyncssh
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from knot_keys.authority import Authority
from knot_keys.certificates import LIFETIME, CertificateRefused, Issued, is_acceptable
from knot_keys.identity import HostIdentity, Identity
from knot_keys.jointoken import matches
from knot_keys.keyfiles import fingerprint, parse_any_public_key, parse_public_key, public_line
from knot_keys.possession import for_host_key, is_proof
from knot_server.actor import Actor
from knot_server.store.catchingup import use_up
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, JoinToken, JoinUse, Space
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.hostkeys import change_host_key
from knot_server.usecases.lookup import check_current, is_barred
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import BadInput, Conflict, JoinRefused, KeyRefused, KnotError
from knot_ssh.names import Principal, SpaceId, SpaceName, Zone
from knot_ssh.wire import CertificateRequest, Certificates, Membership

KEY_REVOKED = "that key has been revoked: make another (for `knot ssh` by `knot ssh setup --remove`, then `knot ssh setup`)"
SSHD_LIFETIME = 30 * 24 * 3600
"""Seconds that an ordinary sshd's host certificate is good for. It is renewed each day; a machine that was off, or cut off
from the hub, for a month has to be certified before anybody trusts it again."""
SSHD_CERTIFICATES_MAX = 300
"""That one sshd may have at a time: ten a day, so that a machine gone wild cannot fill the store."""
AGENT_CERTIFICATES_MAX = 300
"""That one space's agent may have at a time, of each kind; it needs two. All of them are told to everybody when they are
revoked."""
PERSON_CERTIFICATES_MAX = 1000
"""That one user may have at a time: a script for each of many machines, and each time anew."""
_OLD_KEY = {
    False: "this agent's key was replaced or revoked; start with an empty data folder",
    True: "this machine's registration key was replaced or revoked; remove /etc/ssh/knot/key",
}


class Enrolment:
    """Tokens in, keys enrolled, certificates out."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        revocations: Revocations,
        audit: Audit,
        lifetime: int = LIFETIME,
    ) -> None:
        self._database = database
        self._authority = authority
        self._revocations = revocations
        self._audit = audit
        self._lifetime = lifetime
        self.issued = {"agent": 0, "host": 0, "person": 0}
        """Certificates that were issued since the server was started: for whom, and how many."""

    async def knows_token(self, token_id: str, secret: bytes) -> bool:
        """Whether this is the secret of a token that we made, used up or not."""
        async with self._database.reading() as session:
            token = await session.get(JoinToken, token_id)
            return token is not None and matches(secret, token.secret_hash)

    async def invited(self, token_id: str) -> SpaceId:
        """The space that a token is for; raises JoinRefused."""
        async with self._database.reading() as session:
            token = await session.get(JoinToken, token_id)
            if token is None:
                raise JoinRefused
            return SpaceId(token.space_id)

    async def redeem(
        self, token_id: str, key: asyncssh.SSHKey, sshd: asyncssh.SSHKey | None = None, *, address: str | None = None
    ) -> Membership:
        """Enrol the key for the token's space: as its agent's, or, with the host key of an `sshd`, as that of a machine
        without one. Once for a token, but the same keys always get the same answer, which is not
        recorded again.

        Raises JoinRefused with what to do.
        """
        shown = fingerprint(key)
        agentless = sshd is not None
        async with self._database.writing() as session:
            token = await session.get(JoinToken, token_id)
            space = await session.get(Space, token.space_id) if token else None
            if token is None or space is None:
                raise JoinRefused
            retry = f"make a new one with `knot space {'sshd' if agentless else 'token'} {space.name}`"
            if token.expires_at <= time.time():
                raise JoinRefused(f"that join token has expired; {retry}")
            if self._revocations.current.has_key(key) or await is_barred(session, space.owner, shown):
                raise JoinRefused(f"{_OLD_KEY[agentless]}, and {retry}")
            before, now = space.enrolled_key, public_line(key)
            if before == now and space.agentless != agentless:
                raise JoinRefused("that key is enrolled already, an agent's as an sshd's or the other way round: make another")
            if await session.get(JoinUse, (token_id, shown)):
                if before != now:
                    raise JoinRefused(f"another machine has joined as {space.name} since; {retry}")
            else:
                if not await use_up(session, token_id):
                    raise JoinRefused(f"that join token was used already; {retry}")
                session.add(JoinUse(token_id=token_id, fingerprint=shown))
                self._audit.record(
                    session,
                    Event.JOINED,
                    _agent(space),
                    owner=space.owner,
                    space_id=space.id,
                    space=space.name,
                    token=token_id,
                    key=shown,
                    agentless=agentless,
                    replaced=before is not None and before != now,
                    address=address,
                )
            replaced = before is not None and before != now
            host_replaced = sshd is not None and space.host_key not in (None, public_line(sshd))
            if replaced or host_replaced:
                reason = f"space {space.name} joined again"
                old_key = before if replaced else None
                own = Certificate.space_id == space.id
                await self._revocations.record(session, own, old_key, reason, owner=space.owner)
            space.enrolled_key, space.agentless = now, agentless
            if replaced:
                space.trusts = ""
            if sshd is not None:
                change_host_key(space, public_line(sshd))
            membership = self.membership(space)
        if replaced or host_replaced:
            reason = f"the space {space.name} has joined again from elsewhere"
            await self._revocations.publish([space.space_id], reason)
        return membership

    async def enrolled_key(self, space_id: SpaceId) -> asyncssh.SSHKey | None:
        """The key that the hub believes for this space."""
        async with self._database.reading() as session:
            space = await session.get(Space, str(space_id))
            return parse_public_key(space.enrolled_key) if space and space.enrolled_key else None

    async def is_agents_key(self, space_id: SpaceId, key: asyncssh.SSHKey) -> bool:
        """Whether this is the enrolled key of a space that has an agent."""
        space = await self.space(space_id)
        return space is not None and not space.agentless and space.enrolled_key == public_line(key)

    async def space(self, space_id: SpaceId) -> Space | None:
        """What the store knows of a space; None when it is gone."""
        async with self._database.reading() as session:
            return await session.get(Space, str(space_id))

    async def certify_sshd(self, space_id: SpaceId, key: asyncssh.SSHKey) -> Issued:
        """A host certificate for the host key that an sshd joined with, for whoever holds its registration key.

        Raises KeyRefused when that key is enrolled no more, or an agent's; Conflict when it asks without end.
        """
        async with self._database.writing() as session:
            space = await session.get(Space, str(space_id))
            if space is None or not space.agentless or space.enrolled_key != public_line(key) or space.host_key is None:
                raise KeyRefused
            host, host_key = HostIdentity(space.principal, space.space_name, space.space_id), parse_public_key(space.host_key)
            if await is_barred(session, space.owner, fingerprint(host_key)):
                raise KeyRefused
            await _refuse_too_many(session, SSHD_CERTIFICATES_MAX, "this machine", _of_key(space, host_key))
            issued = self._authority.certify_host(host_key, host, SSHD_LIFETIME)
            self._record(session, issued, _agent(space), "host", space)
        self.issued["host"] += 1
        return issued

    async def certify_agent(self, space_id: SpaceId, key: asyncssh.SSHKey, request: CertificateRequest) -> Certificates:
        """Client and host certificate for an enrolled key.

        Raises KeyRefused when it no longer is one, BadInput when the agent does not hold the host key, Conflict when it asks
        without end.
        """
        host_key = parse_public_key(request.host_key)
        if not is_proof(host_key, for_host_key(space_id), request.signature):
            raise BadInput("the signature does not prove possession of the host key")
        async with self._database.writing() as session:
            space = await session.get(Space, str(space_id))
            if space is None or space.agentless or space.enrolled_key != public_line(key):
                raise KeyRefused
            if await is_barred(session, space.owner, fingerprint(host_key)):
                raise BadInput("that host key was revoked; remove host_key from the agent's folder and start the agent again")
            await _refuse_too_many(session, AGENT_CERTIFICATES_MAX, "this agent", _of_key(space, key))
            identity = Identity.agent(space.principal, space.space_name, space.space_id)
            host = HostIdentity(space.principal, space.space_name, space.space_id)
            client_certificate = self._authority.certify_client(key, identity, self._lifetime)
            host_certificate = self._authority.certify_host(host_key, host, self._lifetime)
            change_host_key(space, public_line(host_key))
            for kind, issued in (("agent", client_certificate), ("host", host_certificate)):
                self._record(session, issued, _agent(space), kind, space)
        self.issued["agent"] += 1
        self.issued["host"] += 1
        return Certificates(client=client_certificate.line, host=host_certificate.line)

    async def certify_person(self, actor: Actor, key_line: str, lifetime: int | None) -> tuple[Issued, list[str]]:
        """A client certificate for a person's key, with one principal for each zone they own spaces in.

        Raises BadInput for what is no key, Conflict for one that was revoked, for who owns no space, or has very many already.
        """
        key = _importable(key_line)
        if self._revocations.current.has_key(key):
            raise Conflict(KEY_REVOKED)
        async with self._database.writing() as session:
            await check_current(session, actor)
            if await is_barred(session, actor.owner, fingerprint(key)):
                raise Conflict(KEY_REVOKED)
            own = (Certificate.owner == str(actor.owner)) & Certificate.space_id.is_(None)
            await _refuse_too_many(session, PERSON_CERTIFICATES_MAX, str(actor.owner), own)
            zones = await session.scalars(select(Space.zone).where(Space.owner == str(actor.owner)).distinct())
            names = [Zone(zone) for zone in zones]
            if not names:
                raise Conflict("you own no space yet, so there is nothing a certificate could open")
            identity = Identity.person(actor.owner, names)
            try:
                issued = self._authority.certify_client(key, identity, self._granted(lifetime, actor.expires_at))
            except CertificateRefused as error:
                raise BadInput(f"public_key: that key cannot be certified: {error}") from None
            self._record(session, issued, actor, "person")
        self.issued["person"] += 1
        return issued, [str(principal) for principal in identity.principals]

    async def refuse_join(self, token_id: str, key: asyncssh.SSHKey, reason: str, detail: str, address: str) -> None:
        """Note for the record that this key was not enrolled; of which space, if the store can tell."""
        space_id = None
        with contextlib.suppress(KnotError):
            space_id = await self.invited(token_id)
        self._audit.refuse(
            "join", reason, address, space_id=space_id, detail=detail, token=token_id, key=fingerprint(key), address=address
        )

    async def trusts(self, space_id: SpaceId, key: asyncssh.SSHKey, cas: Iterable[str]) -> None:
        """Whoever holds the space's enrolled key trusts these CAs by now (fingerprints); raises KeyRefused."""
        known = sorted(self._authority.names & set(cas))
        async with self._database.writing() as session:
            space = await session.get(Space, str(space_id))
            if space is None or space.enrolled_key != public_line(key):
                raise KeyRefused
            space.trusts = " ".join(known)

    async def sshd_trust(self, space_id: SpaceId, key: asyncssh.SSHKey) -> tuple[list[str], list[str]]:
        """The user CAs and the host CAs that a machine with an ordinary sshd is to trust, as OpenSSH lines.

        From then on it counts as one that does. Raises KeyRefused.
        """
        space = await self.space(space_id)
        if space is None or not space.agentless:
            raise KeyRefused
        await self.trusts(space_id, key, self._authority.names)
        return self._authority.users.keys.lines, self._authority.hosts.keys.lines

    def _granted(self, wanted: int | None, expires_at: int | None) -> int:
        """Seconds: what is wanted, at most the usual lifetime, and at most what the token that asks has left."""
        left = self._lifetime if expires_at is None else max(1, expires_at - int(time.time()))
        return min(wanted or self._lifetime, self._lifetime, left)

    def membership(self, space: Space) -> Membership:
        """What an agent of this space is told that it is."""
        return self.member(space.space_id, space.space_name, space.principal)

    def member(self, space_id: SpaceId, name: SpaceName, principal: Principal) -> Membership:
        """The same of a space that is known by other means."""
        return Membership(
            space_id=space_id,
            space=name,
            owner=principal.owner,
            zone=principal.zone,
            user_cas=self._authority.users.keys.lines,
            host_cas=self._authority.hosts.keys.lines,
            distrusted=self._authority.distrusted,
        )

    def _record(self, session: AsyncSession, issued: Issued, actor: Actor, kind: str, space: Space | None = None) -> None:
        """Take down a certificate, for as long as it is good and in the audit record."""
        space_id = space.id if space else None
        session.add(
            Certificate(
                serial=issued.serial,
                fingerprint=issued.fingerprint,
                key_id=issued.key_id,
                owner=str(actor.owner),
                space_id=space_id,
                expires_at=issued.expires_at,
                ca=issued.ca,
                issued_at=issued.issued_at,
            )
        )
        self._audit.record(
            session,
            Event.CERTIFIED,
            actor,
            owner=actor.owner,
            space_id=space_id,
            space=space.name if space else None,
            kind=kind,
            serial=str(issued.serial),
            key_id=issued.key_id,
            key=issued.fingerprint,
            seconds=issued.expires_at - int(time.time()),
        )


def _of_key(space: Space, key: asyncssh.SSHKey) -> ColumnElement[bool]:
    """Certificates of the space for this key."""
    return (Certificate.space_id == space.id) & (Certificate.fingerprint == fingerprint(key))


async def _refuse_too_many(session: AsyncSession, most: int, whose: str, which: ColumnElement[bool]) -> None:
    """Raise Conflict where so many of these certificates have not expired."""
    good = await session.scalar(select(func.count()).where(which, Certificate.expires_at > time.time())) or 0
    if good >= most:
        raise Conflict(f"{whose} has {most} certificates that are good, the most there may be")


def _importable(key_line: str) -> asyncssh.SSHKey:
    """A person's public key, of a type that the endpoints accept."""
    try:
        key = parse_any_public_key(key_line)
    except KnotError:
        raise BadInput("public_key: that is not an OpenSSH public key line") from None
    if not is_acceptable(key):
        raise BadInput(f"public_key: this {key.get_algorithm()} key is not accepted; use ed25519")
    return key


def _agent(space: Space) -> Actor:
    """Whoever holds the key that is enrolled for a space."""
    principal = space.principal
    return Actor(principal.owner, zone=principal.zone, space=space.space_id, space_name=space.name)
