"""How a key becomes a space's key: redeeming join tokens, and certifying what has been enrolled."""

from __future__ import annotations

import time

import asyncssh
from sqlalchemy import CursorResult, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.authority import Authority
from knot_keys.certificates import LIFETIME, CertificateRefused, Issued, is_acceptable
from knot_keys.identity import HostIdentity, Identity
from knot_keys.jointoken import matches
from knot_keys.keyfiles import fingerprint, parse_any_public_key, parse_public_key, public_line
from knot_keys.possession import for_host_key, is_proof
from knot_server.actor import Actor
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, JoinToken, JoinUse, Space
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import BadInput, Conflict, JoinRefused, KeyRefused, KnotError
from knot_ssh.names import Owner, SpaceId, Zone
from knot_ssh.wire import CertificateRequest, Certificates, Membership

SSHD_LIFETIME = 30 * 24 * 3600
"""Seconds that an ordinary sshd's host certificate is good for. It is renewed each day; a machine that was off, or cut off
from the hub, for a month has to be certified before anybody trusts it again."""
SSHD_CERTIFICATES_MAX = 300
"""That one sshd may have at a time: ten a day, so that a machine gone wild cannot fill the store."""
_OLD_KEY = {
    False: "this agent's key was replaced or revoked; start with an empty data folder",
    True: "this machine's registration key was replaced or revoked; remove /etc/ssh/knot/key",
}


class Enrolment:
    """Tokens in, keys enrolled, certificates out."""

    def __init__(self, database: Database, authority: Authority, revocations: Revocations, lifetime: int = LIFETIME) -> None:
        self._database = database
        self._authority = authority
        self._revocations = revocations
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

    async def redeem(self, token_id: str, key: asyncssh.SSHKey, sshd: asyncssh.SSHKey | None = None) -> Membership:
        """Enrol the key for the token's space: as its agent's, or, with the host key of an `sshd`, as that of a machine
        without one. Once for a token, but the same keys always get the same answer.

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
            if self._revocations.current.has_key(key):
                raise JoinRefused(f"{_OLD_KEY[agentless]}, and {retry}")
            before, now = space.enrolled_key, public_line(key)
            if before == now and space.agentless != agentless:
                raise JoinRefused("that key is enrolled already, an agent's as an sshd's or the other way round: make another")
            if await session.get(JoinUse, (token_id, shown)):
                if before != now:
                    raise JoinRefused(f"another machine has joined as {space.name} since; {retry}")
            else:
                await _consume(session, token_id, retry)
                session.add(JoinUse(token_id=token_id, fingerprint=shown))
            replaced = before is not None and before != now
            host_replaced = sshd is not None and space.host_key not in (None, public_line(sshd))
            if replaced or host_replaced:
                reason = f"space {space.name} joined again"
                old_key = before if replaced else None
                await self._revocations.record(session, Certificate.space_id == space.id, old_key, reason)
            space.enrolled_key, space.agentless = now, agentless
            if sshd is not None:
                space.host_key = public_line(sshd)
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
            if await _good_certificates(session, space, host_key) >= SSHD_CERTIFICATES_MAX:
                raise Conflict(f"this machine has {SSHD_CERTIFICATES_MAX} certificates that are good, the most there may be")
            issued = self._authority.certify_host(host_key, host, SSHD_LIFETIME)
            _record(session, issued, Owner(space.owner), space.space_id)
        self.issued["host"] += 1
        return issued

    async def certify_agent(self, space_id: SpaceId, key: asyncssh.SSHKey, request: CertificateRequest) -> Certificates:
        """Client and host certificate for an enrolled key.

        Raises KeyRefused when it no longer is one, BadInput when the agent does not hold the host key.
        """
        host_key = parse_public_key(request.host_key)
        if not is_proof(host_key, for_host_key(space_id), request.signature):
            raise BadInput("the signature does not prove possession of the host key")
        async with self._database.writing() as session:
            space = await session.get(Space, str(space_id))
            if space is None or space.agentless or space.enrolled_key != public_line(key):
                raise KeyRefused
            identity = Identity.agent(space.principal, space.space_name, space.space_id)
            host = HostIdentity(space.principal, space.space_name, space.space_id)
            client_certificate = self._authority.certify_client(key, identity, self._lifetime)
            host_certificate = self._authority.certify_host(host_key, host, self._lifetime)
            space.host_key = public_line(host_key)
            for issued in (client_certificate, host_certificate):
                _record(session, issued, Owner(space.owner), space.space_id)
        self.issued["agent"] += 1
        self.issued["host"] += 1
        return Certificates(client=client_certificate.line, host=host_certificate.line)

    async def certify_person(self, actor: Actor, key_line: str, lifetime: int | None) -> tuple[Issued, list[str]]:
        """A client certificate for a person's key, with one principal for each zone they own spaces in.

        Raises BadInput for a key that cannot be certified, Conflict for who owns no space.
        """
        key = _importable(key_line)
        if self._revocations.current.has_key(key):
            raise BadInput("public_key: that key has been revoked; make another")
        async with self._database.writing() as session:
            zones = await session.scalars(select(Space.zone).where(Space.owner == str(actor.owner)).distinct())
            names = [Zone(zone) for zone in zones]
            if not names:
                raise Conflict("you own no space yet, so there is nothing a certificate could open")
            identity = Identity.person(actor.owner, names)
            try:
                issued = self._authority.certify_client(key, identity, min(lifetime or self._lifetime, self._lifetime))
            except CertificateRefused as error:
                raise BadInput(f"public_key: that key cannot be certified: {error}") from None
            _record(session, issued, actor.owner, None)
        self.issued["person"] += 1
        return issued, [str(principal) for principal in identity.principals]

    def membership(self, space: Space) -> Membership:
        """What an agent of this space is told that it is."""
        principal = space.principal
        return Membership(
            space_id=space.space_id,
            space=space.space_name,
            owner=principal.owner,
            zone=principal.zone,
            user_ca=self._authority.user_ca,
            host_ca=self._authority.host_ca,
        )


async def _good_certificates(session: AsyncSession, space: Space, key: asyncssh.SSHKey) -> int:
    """How many certificates of the space for this key have not expired."""
    theirs = select(func.count()).where(Certificate.space_id == space.id, Certificate.fingerprint == fingerprint(key))
    return await session.scalar(theirs.where(Certificate.expires_at > time.time())) or 0


def _importable(key_line: str) -> asyncssh.SSHKey:
    """A person's public key, of a type that the endpoints accept."""
    try:
        key = parse_any_public_key(key_line)
    except KnotError:
        raise BadInput("public_key: that is not an OpenSSH public key line") from None
    if not is_acceptable(key):
        raise BadInput(f"public_key: this {key.get_algorithm()} key is not accepted; use ed25519")
    return key


async def _consume(session: AsyncSession, token_id: str, retry: str) -> None:
    """Take one use of the token, in one statement, so that of two who try only one succeeds."""
    taken = await session.execute(
        update(JoinToken)
        .where(JoinToken.id == token_id, JoinToken.uses_left > 0)
        .values(uses_left=JoinToken.uses_left - 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(taken, CursorResult)
    if taken.rowcount != 1:
        raise JoinRefused(f"that join token was used already; {retry}")


def _record(session: AsyncSession, issued: Issued, owner: Owner, space_id: SpaceId | None) -> None:
    session.add(
        Certificate(
            serial=issued.serial,
            fingerprint=issued.fingerprint,
            key_id=issued.key_id,
            owner=str(owner),
            space_id=space_id and str(space_id),
            expires_at=issued.expires_at,
        )
    )
