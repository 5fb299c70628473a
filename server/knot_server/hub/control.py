"""The `knot-control` subsystem: the long conversation with each connected agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import structlog
from pydantic import BaseModel

from knot_server.actor import Actor
from knot_server.hub.doorkeeper import Member, Session
from knot_server.hub.sightings import Sightings
from knot_server.refusals import CODES, Refusals
from knot_server.roster import Present, Roster
from knot_server.store.database import Database
from knot_server.store.schema import Space
from knot_server.usecases.audit import Audit
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.lastseen import LastSeen
from knot_server.usecases.lookup import names_now
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import Conflict, KeyRefused, KnotError
from knot_ssh.names import SpaceId, SpaceName
from knot_ssh.rpc import Function, Method, Peer
from knot_ssh.wire import (
    AgentReport,
    Applied,
    ApplyCall,
    AuditReport,
    CertificateRequest,
    Certificates,
    ForwardCall,
    ForwardList,
    ForwardStatus,
    Hello,
    OnSpace,
    StopCall,
    StopRequest,
    Target,
    TargetQuestion,
    Trust,
    Welcome,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Control:
    """Serves the control links of all agents."""

    database: Database
    last_seen: LastSeen
    roster: Roster
    enrolment: Enrolment
    forwarding: Forwarding
    revocations: Revocations
    audit: Audit
    refusals: Refusals = field(default_factory=lambda: Refusals(CODES))
    """Why requests of agents were refused."""

    async def serve_member(self, member: Member, opened: Session) -> None:
        """Talk to one agent until it goes; from its hello on its space is running."""
        async with self.database.reading() as session:
            space = await session.get(Space, str(member.space_id))
        if space is None:
            return
        conversation = _Conversation(self, member.key, space, opened.address)
        peer = Peer(opened.stdin, opened.stdout, conversation.methods())
        agent = Present(space.space_id, space.principal, peer, opened.line, name=space.name)
        conversation.agent = agent
        try:
            await peer.run()
        finally:
            self.roster.leave(agent)
            log.info("agent left", space=agent.name, owner=space.owner)
            self.last_seen.note(space.space_id)


class _Conversation:
    """What one agent may ask."""

    agent: Present

    def __init__(self, control: Control, key: asyncssh.SSHKey, space: Space, address: str | None) -> None:
        self._control = control
        self._key = key
        self._space = space
        """As it was at login; its name and zone may change."""
        self._address = address
        self._sightings = Sightings(control.database, control.audit, space.space_id)
        self._trusts = set(space.trusts.split())
        self._trusting = asyncio.Lock()
        self._greeted = False
        self._welcomed = False

    @property
    def _actor(self) -> Actor:
        """On whose behalf it asks."""
        principal = self.agent.principal
        agent, address = self.agent, self._address
        return Actor(principal.owner, zone=principal.zone, space=agent.space_id, space_name=agent.name, address=address)

    def methods(self) -> dict[str, Method]:
        """Nothing but hello is answered before hello: only then the hub knows this agent, and can cut it off."""
        later: dict[str, Method] = {
            "agent.certify": (CertificateRequest, self.certify),
            "agent.report": (AgentReport, self.report),
            "agent.audit": (AuditReport, self.witness),
            "agent.trust": (Trust, self.trust),
            "target.locate": (TargetQuestion, self.locate),
            "port.forward": (ForwardCall, self.forward),
            "port.list": (OnSpace, self.list),
            "port.stop": (StopCall, self.stop),
            "port.apply": (ApplyCall, self.apply),
        }
        guarded = {name: (model, self._after_hello(function)) for name, (model, function) in later.items()}
        methods: dict[str, Method] = {"agent.hello": (Hello, self.hello), **guarded}
        return {name: (model, self._counted(function)) for name, (model, function) in methods.items()}

    async def hello(self, hello: Hello) -> Welcome:
        """Enter the agent in the roster and tell it all that may have changed."""
        control, agent, space = self._control, self.agent, self._space
        if self._greeted:
            raise Conflict("say hello once")
        self._greeted = True
        if not await control.enrolment.is_agents_key(agent.space_id, self._key):
            raise KeyRefused
        agent.addresses = hello.addresses
        async with control.roster.lock(agent.space_id):
            before = control.roster.arrive(agent)
            try:
                await control.forwarding.forget_stopped(self._actor, agent.space_id, hello.stopped)
                forwards = await control.forwarding.stored(agent.space_id)
                now = await control.enrolment.space(agent.space_id)
                if now is None:
                    raise KeyRefused
                agent.name, agent.principal = now.name, now.principal  # from now on a change of either is told
                target = await control.forwarding.target(self._actor, agent.space_id)
                names = await self._names(hello.targets)
            except BaseException:
                control.roster.leave(agent)
                if before is not None and before is not agent:
                    control.roster.arrive(before)  # it has not been told that it was to give way
                raise
        if control.revocations.current.has_key(self._key):  # revoked while we looked
            raise KeyRefused
        if before is not None and before is not agent:
            log.warning("agent superseded", space=agent.name, owner=space.owner)
            await control.roster.supersede(before)
        log.info("agent arrived", space=agent.name, owner=space.owner, zone=space.zone, version=hello.version)
        control.last_seen.note(agent.space_id)
        control.roster.watch(agent, [*hello.targets, *(order.target.id for order in forwards)])
        await control.roster.tell_watchers(target)
        self._welcomed = True
        await control.roster.tell_when_grown()
        *revoked, last = control.revocations.parts()
        for part in revoked:
            await agent.peer.notify("keys.listed", part)
        return Welcome(
            membership=control.enrolment.membership(now),
            forwards=forwards,
            revoked=last,
            names=names,
            spread=control.roster.spread,
        )

    async def certify(self, request: CertificateRequest) -> Certificates:
        certificates = await self._control.enrolment.certify_agent(self.agent.space_id, self._key, request)
        log.info("certificates issued", space=self.agent.name, owner=self._actor.owner)
        return certificates

    async def report(self, report: AgentReport) -> None:
        self._control.roster.report(self.agent, report)

    async def witness(self, report: AuditReport) -> None:
        await self._sightings.take(self._actor, report)

    async def trust(self, trust: Trust) -> None:
        """Take down whom the agent trusts, where that is news; what it says last counts."""
        async with self._trusting:
            if set(trust.cas) != self._trusts:
                await self._control.enrolment.trusts(self.agent.space_id, self._key, trust.cas)
                self._trusts = set(trust.cas)

    async def locate(self, question: TargetQuestion) -> Target:
        target = await self._control.forwarding.target(self._actor, question.space)
        self._control.roster.watch(self.agent, [target.id])
        return target

    async def forward(self, call: ForwardCall) -> ForwardStatus:
        return await self._control.forwarding.forward(self._actor, call.source, call.forward)

    async def list(self, call: OnSpace) -> ForwardList:
        return await self._control.forwarding.listing(self._actor, call.source)

    async def stop(self, call: StopCall) -> ForwardStatus:
        request = StopRequest(local_port=call.local_port, drain=call.drain)
        return await self._control.forwarding.stop(self._actor, call.source, request)

    async def apply(self, call: ApplyCall) -> Applied:
        return await self._control.forwarding.apply(self._actor, call.source, call.request)

    async def _names(self, targets: Sequence[SpaceId]) -> dict[SpaceId, SpaceName]:
        """What these are called now."""
        if not targets:
            return {}
        async with self._control.database.reading() as session:
            return await names_now(session, self._actor, targets)

    def _after_hello(self, function: Function) -> Function:
        async def guarded(request: Any) -> BaseModel | None:
            if not self._welcomed:
                raise Conflict("say hello first")
            return await function(request)

        return guarded

    def _counted(self, function: Function) -> Function:
        async def counted(request: Any) -> BaseModel | None:
            try:
                return await function(request)
            except KnotError as error:
                self._control.refusals.count(error.code)
                raise

        return counted
