"""The subsystems for machines that have an ordinary sshd and stock ssh, and no agent.

Each is one question: perhaps a request on stdin, the answer on stdout with exit status 0, or nothing on stdout, one line
on stderr and exit status 1 (RFC 4254 section 6.10), so that `ssh -s hub SUBSYSTEM > file` is all a script needs.

knot-join-sshd         for `join`: two public key lines, of the registration key and of the host key, then a signature by
                       each over the space's id (`ssh-keygen -Y sign`, in a namespace of its own). Enrols the one, and gives
                       a host certificate for the other
knot-host-certificate  for an enrolled registration key: another certificate for that same host key
knot-krl               for the same: what is revoked, in OpenSSH's format
knot-trust             for the same: the CAs to trust, one a line, as `user` or `host` and a public key. Who asks counts as one
                       that trusts them from then on
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import asyncssh
import structlog

from knot_keys.certificates import Issued
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.possession import HOST_NAMESPACE, REGISTRATION_NAMESPACE, for_sshd
from knot_keys.sshsig import is_signature, split_signatures
from knot_server.hub.doorkeeper import TOKEN_REFUSED, Joiner, Member, Reader, Session, Subsystem
from knot_server.refusals import Refusals
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import BadInput, JoinRefused, KeyRefused, KnotError
from knot_ssh.names import SpaceId
from knot_ssh.words import printable

log = structlog.get_logger(__name__)

REQUEST_LIMIT = 8 * 1024
"""Bytes; two keys with their comments and two signatures take about 1 KiB."""
REQUEST_SECONDS = 10
"""For a request to come whole: it lies in a file when it is sent."""
CLOSE_SECONDS = 5
"""For the client to take the answer and close the channel."""

Answer = Callable[[Any, Reader], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class JoinSshdRequest:
    """What a machine hands in to join as a space, read but not yet believed."""

    key: asyncssh.SSHKey
    host_key: asyncssh.SSHKey
    signatures: tuple[str, str]

    @classmethod
    def parse(cls, data: bytes) -> JoinSshdRequest:
        """Raises KnotError for what is not two different ed25519 keys and two signatures, in this order."""
        if len(data) > REQUEST_LIMIT:
            raise BadInput(f"the request is longer than {REQUEST_LIMIT} bytes")
        lines = data.decode("utf-8", "replace").split("\n", 2)
        signatures = split_signatures(lines[-1])
        if len(signatures) != 2:  # noqa: PLR2004 - one for each key
            raise BadInput("the request must be two public key lines and a signature by each key")
        key, host_key = map(parse_public_key, lines[:2])
        if key == host_key:
            raise BadInput("the registration key and the host key must be two keys")
        return cls(key, host_key, (signatures[0], signatures[1]))

    def is_proved(self, space_id: SpaceId) -> bool:
        """Whether whoever made it holds both private keys, and meant this space."""
        keys = (self.key, REGISTRATION_NAMESPACE), (self.host_key, HOST_NAMESPACE)
        pairs = zip(keys, self.signatures, strict=True)
        return all(is_signature(key, namespace, for_sshd(space_id), made) for (key, namespace), made in pairs)


@dataclass(frozen=True, slots=True)
class Plain:
    """What the subsystems need."""

    enrolment: Enrolment
    revocations: Revocations
    refusals: Refusals

    async def join(self, joiner: Joiner, stdin: Reader) -> bytes:
        """Redeem a token; gives the host certificate."""
        request = JoinSshdRequest.parse(await _read(stdin))
        shown = fingerprint(request.key)
        try:
            space_id = await self.enrolment.invited(joiner.token_id)
            if not request.is_proved(space_id):
                raise JoinRefused("the signatures do not prove possession of both keys for this space")
            membership = await self.enrolment.redeem(joiner.token_id, request.key, request.host_key, address=joiner.address)
        except JoinRefused as error:
            log.warning("join refused", reason=str(error), token=joiner.token_id, key=shown)
            self.refusals.count(TOKEN_REFUSED)
            await self.enrolment.refuse_join(joiner.token_id, request.key, TOKEN_REFUSED, str(error), joiner.address)
            raise
        log.info("sshd joined", space=membership.space, owner=membership.owner, zone=membership.zone, key=shown)
        return _line(await self.enrolment.certify_sshd(space_id, request.key))

    async def certify(self, member: Member, _stdin: Reader) -> bytes:
        """Another certificate for the host key that was enrolled."""
        return _line(await self.enrolment.certify_sshd(member.space_id, member.key))

    async def krl(self, member: Member, _stdin: Reader) -> bytes:
        """What is revoked, for `RevokedKeys`."""
        space = await self.enrolment.space(member.space_id)
        if space is None or not space.agentless:
            raise KeyRefused
        return await self.revocations.krl()

    async def trust(self, member: Member, _stdin: Reader) -> bytes:
        """The CAs of users and agents, for `TrustedUserCAKeys`; and those of hosts, by which the hub shows who it is."""
        users, hosts = await self.enrolment.sshd_trust(member.space_id, member.key)
        lines = [*(f"user {ca}\n" for ca in users), *(f"host {ca}\n" for ca in hosts)]
        return "".join(lines).encode()


def plain(answer: Answer) -> Subsystem:
    """A subsystem that gives this answer, or says why not."""

    async def serve(visitor: Any, session: Session) -> None:
        try:
            await _answer(answer, visitor, session)
        except (asyncssh.Error, OSError):  # the client is gone
            return

    return serve


async def _answer(answer: Answer, visitor: Any, session: Session) -> None:
    """Raises asyncssh.Error or OSError where the client is gone before it has heard."""
    try:
        session.stdout.write(await answer(visitor, session.stdin))
        status = 0
    except KnotError as error:
        log.warning("not answered", reason=str(error), detail=error.detail)
        session.stderr.write(f"knot: {printable(str(error), REQUEST_LIMIT)}\n".encode())
        status = 1
    await _finish(session, status)


async def _finish(session: Session, status: int) -> None:
    """Send the exit status, and wait until the client has it all: what is queued is lost with the connection."""
    channel = cast("asyncssh.SSHServerChannel[bytes]", session.stdout.channel)
    channel.exit(status)
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await channel.wait_closed()
    except TimeoutError:
        session.line.abort()


async def _read(stdin: Reader) -> bytes:
    """The request, to its end or a little more than may be; raises BadInput when that does not come."""
    data = b""
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            while len(data) <= REQUEST_LIMIT and (more := await stdin.read(REQUEST_LIMIT)):
                data += more
    except TimeoutError:
        raise BadInput(f"the request did not come whole within {REQUEST_SECONDS} s") from None
    return data


def _line(issued: Issued) -> bytes:
    return f"{issued.line}\n".encode()
