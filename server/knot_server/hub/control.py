"""The `knot-control` subsystem: the long conversation with each connected agent."""

from __future__ import annotations

import contextlib
import time

import asyncssh
import structlog

from knot_keys.connections import ServerConnection
from knot_server.actor import Actor
from knot_server.hub.doorkeeper import Member, Reader, Writer
from knot_server.roster import Present, Roster
from knot_server.store.database import Database
from knot_server.store.schema import Space
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.lookup import enrolled_space
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import Conflict, KeyRefused, Unavailable
from knot_ssh.rpc import Method, Peer
from knot_ssh.wire import (
    CertificateRequest,
    Certificates,
    ForwardCall,
    ForwardList,
    ForwardStatus,
    Hello,
    OnSpace,
    StopCall,
    Target,
    TargetQuestion,
    Welcome,
)

log = structlog.get_logger(__name__)


class Control:
    """Serves the control links of all agents."""

    def __init__(
        self,
        database: Database,
        roster: Roster,
        enrolment: Enrolment,
        forwarding: Forwarding,
        revocations: Revocations,
    ) -> None:
        self._database = database
        self._roster = roster
        self._enrolment = enrolment
        self._forwarding = forwarding
        self._revocations = revocations

    async def serve_member(self, member: Member, line: ServerConnection, reader: Reader, writer: Writer) -> None:
        """Talk to one agent until it goes; while it has said hello its space is running."""
        async with self._database.reading() as session:
            space = await enrolled_space(session, member.space_id)
        if space is None:
            return
        conversation = _Conversation(self, member.key, space)
        peer = Peer(reader, writer, conversation.methods())
        agent = Present(space.space_id, space.principal, peer, line)
        conversation.agent = agent
        try:
            await peer.run()
        finally:
            self._roster.leave(agent)
            log.info("agent left", space=space.name, owner=space.owner)
            with contextlib.suppress(Unavailable):
                await self._seen(space)

    async def hello(self, agent: Present, key: asyncssh.SSHKey, space: Space, hello: Hello) -> Welcome:
        """Enter the agent in the roster and tell it all that may have changed."""
        if await self._enrolment.enrolled_key(agent.space_id) != key:
            raise KeyRefused
        agent.addresses = hello.addresses
        async with self._roster.lock(agent.space_id):
            before = self._roster.arrive(agent)
            forwards = await self._forwarding.stored(agent.space_id)
        if self._revocations.current.has_key(key):  # revoked while we looked
            raise KeyRefused
        if before is not None and before is not agent:
            log.warning("agent superseded", space=space.name, owner=space.owner)
            await self._roster.supersede(before)
        log.info("agent arrived", space=space.name, owner=space.owner, zone=space.zone, version=hello.version)
        await self._seen(space)
        actor = _actor(space)
        await self._roster.tell("target.changed", await self._forwarding.target(actor, agent.space_id), agent.principal)
        return Welcome(
            membership=self._enrolment.membership(space),
            forwards=forwards,
            revoked=self._revocations.message(),
        )

    async def certify(self, key: asyncssh.SSHKey, space: Space, request: CertificateRequest) -> Certificates:
        """New certificates for an agent."""
        log.info("certificates issued", space=space.name, owner=space.owner)
        return await self._enrolment.certify_agent(space.space_id, key, request)

    @property
    def forwarding(self) -> Forwarding:
        return self._forwarding

    async def _seen(self, space: Space) -> None:
        async with self._database.writing() as session:
            row = await session.get(Space, space.id)
            if row is not None:
                row.last_seen = int(time.time())


class _Conversation:
    """What one agent may ask."""

    agent: Present

    def __init__(self, control: Control, key: asyncssh.SSHKey, space: Space) -> None:
        self._control = control
        self._key = key
        self._space = space
        self._actor = _actor(space)
        self._welcomed = False

    def methods(self) -> dict[str, Method]:
        return {
            "agent.hello": (Hello, self.hello),
            "agent.certify": (CertificateRequest, self.certify),
            "target.locate": (TargetQuestion, self.locate),
            "port.forward": (ForwardCall, self.forward),
            "port.list": (OnSpace, self.list),
            "port.stop": (StopCall, self.stop),
        }

    async def hello(self, hello: Hello) -> Welcome:
        welcome = await self._control.hello(self.agent, self._key, self._space, hello)
        self._welcomed = True
        return welcome

    async def certify(self, request: CertificateRequest) -> Certificates:
        self._after_hello()
        return await self._control.certify(self._key, self._space, request)

    async def locate(self, question: TargetQuestion) -> Target:
        self._after_hello()
        return await self._control.forwarding.target(self._actor, question.id)

    async def forward(self, call: ForwardCall) -> ForwardStatus:
        self._after_hello()
        return await self._control.forwarding.forward(self._actor, call.source, call.forward)

    async def list(self, call: OnSpace) -> ForwardList:
        self._after_hello()
        return await self._control.forwarding.listing(self._actor, call.source)

    async def stop(self, call: StopCall) -> ForwardStatus:
        self._after_hello()
        return await self._control.forwarding.stop(self._actor, call.source, call.local_port)

    def _after_hello(self) -> None:
        """Nothing is answered before hello: only then the hub knows this agent, and can cut it off."""
        if not self._welcomed:
            raise Conflict("say hello first")


def _actor(space: Space) -> Actor:
    return Actor(space.principal.owner, zone=space.principal.zone, space=space.space_id)
