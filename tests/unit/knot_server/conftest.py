"""The server's use cases on a real store, with agents that are connected over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest

from knot_keys.authority import Authority
from knot_keys.certificates import LIFETIME
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import public_line
from knot_keys.possession import for_host_key, prove
from knot_server.actor import Actor
from knot_server.roster import Present, Roster
from knot_server.store.database import STORE_FILE, Database
from knot_server.store.schema import Space
from knot_server.usecases.audit import Audit
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.renaming import Renaming
from knot_server.usecases.revocation import Revocations
from knot_server.usecases.revoking import Revoking
from knot_server.usecases.spaces import Spaces
from knot_server.usecases.tokens import Tokens
from knot_server.usecases.users import Users, add_user
from knot_ssh.errors import KnotError, NotFound, PortTaken, Unavailable
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.planning import make_plan, target_obstacle
from knot_ssh.rpc import Method
from knot_ssh.wire import (
    ApplyAnswer,
    ApplyOrder,
    CertificateRequest,
    Certificates,
    Farewell,
    ForwardList,
    ForwardOrder,
    ForwardStarted,
    ForwardStatus,
    Nothing,
    ReplacedForward,
    Revoked,
    StopRequest,
    Target,
    WantedForward,
)
from tests.unit.conversations import conversation

ROOT = Actor(Owner("root"), admin=True)
ALICE = Actor(Owner("alice"))
BOB = Actor(Owner("bob"))
EU, US = Zone("eu"), Zone("us")


@dataclass
class Line:
    """A connection that knows whether it was aborted."""

    aborted: bool = False

    def abort(self) -> None:
        self.aborted = True


@dataclass
class FakeAgent:
    """Holds forwards in a dictionary, and remembers what it was told: serials, then keys, farewells, and targets' names.

    `taken` are ports of other processes, `mute` makes it fail where it is to stop a forward.
    """

    forwards: dict[Port, ForwardOrder] = field(default_factory=dict)
    taken: set[int] = field(default_factory=set)
    mute: bool = False
    line: Line = field(default_factory=Line)
    lie: ApplyAnswer | None = None
    """Its answer to any list."""
    told: list[str] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def methods(self) -> dict[str, Method]:
        return {
            "forward.start": (ForwardOrder, self.start),
            "forward.stop": (StopRequest, self.stop),
            "forward.apply": (ApplyOrder, self.apply),
            "forward.list": (Nothing, self.listing),
            "keys.revoked": (Revoked, self.revoked),
            "target.changed": (Target, self.changed),
            "agent.farewell": (Farewell, self.farewell),
        }

    async def start(self, order: ForwardOrder) -> ForwardStarted:
        if int(order.local_port) in self.taken:
            raise PortTaken(f"port {order.local_port} is taken by another process on this space")
        before = self.forwards.get(order.local_port)
        self.forwards[order.local_port] = order
        return ForwardStarted(status=status(order), replaced=before)

    async def stop(self, request: StopRequest) -> ForwardStatus:
        if self.mute:
            raise Unavailable
        order = self.forwards.pop(request.local_port, None)
        if order is None:
            raise NotFound
        return status(order).model_copy(update={"state": "stopped"})

    async def apply(self, request: ApplyOrder) -> ApplyAnswer:
        """As a real agent does, but for connections."""
        if self.lie:
            return self.lie
        before = dict(self.forwards)

        def obstacle(wanted: WantedForward) -> KnotError | None:
            return target_obstacle(wanted) or (PortTaken() if int(wanted.order.local_port) in self.taken else None)

        plan = make_plan(before, request.forwards, obstacle)
        if not request.dry_run:
            self.forwards.update({order.local_port: order for order in plan.make})
            for order in plan.stop:
                del self.forwards[order.local_port]
        applied = [ReplacedForward(order=order, replaced=before.get(order.local_port)) for order in plan.make]
        return ApplyAnswer(applied=applied, stopped=plan.stop, errors=plan.errors)

    async def listing(self, _request: Nothing) -> ForwardList:
        return ForwardList(forwards=[status(self.forwards[port]) for port in sorted(self.forwards)])

    async def revoked(self, message: Revoked) -> None:
        self.told.extend([*map(str, message.serials), *message.keys])
        self.news.set()

    async def changed(self, target: Target) -> None:
        self.told.append(str(target.name))
        self.targets.append(target)
        self.news.set()

    async def farewell(self, message: Farewell) -> None:
        self.told.append(message.reason)
        self.news.set()

    async def hears(self, count: int) -> list[str]:
        """What it was told, once that is so much."""
        async with asyncio.timeout(5):
            while len(self.told) < count:
                self.news.clear()
                await self.news.wait()
        return self.told


def status(order: ForwardOrder) -> ForwardStatus:
    """A forward that listens."""
    return ForwardStatus(
        local_port=order.local_port,
        space=order.target.name,
        space_id=order.target.id,
        remote_port=order.remote_port,
        persistent=order.persistent,
        state="listening",
    )


def host_key_request(host_key: asyncssh.SSHKey, space_id: SpaceId) -> CertificateRequest:
    """What the agent of this space sends to have its host key certified."""
    return CertificateRequest(host_key=public_line(host_key), signature=prove(host_key, for_host_key(space_id)))


class NoLine:
    """A connection that nobody aborts."""

    def abort(self) -> None:
        raise AssertionError("the connection was aborted")


@dataclass
class World:
    """All use cases of one server."""

    folder: Path
    database: Database
    audit: Audit
    authority: Authority
    roster: Roster
    revocations: Revocations
    spaces: Spaces
    users: Users
    tokens: Tokens
    enrolment: Enrolment
    forwarding: Forwarding
    renaming: Renaming
    revoking: Revoking

    async def space(self, actor: Actor, name: str, zone: Zone = EU) -> Space:
        """A new space."""
        space, _ = await self.spaces.create(actor, SpaceName(name), zone)
        return space

    async def invited(self, actor: Actor, name: str, *, reusable: bool = False) -> tuple[Space, JoinToken]:
        """A new space, and a token to join it."""
        space = await self.space(actor, name)
        return space, await self.token(actor, space, reusable=reusable)

    async def token(self, actor: Actor, space: Space, *, reusable: bool = False) -> JoinToken:
        """Another token."""
        _, text = await self.spaces.new_token(actor, space.id, reusable=reusable)
        return JoinToken.parse(text)

    async def certified(self, space: Space, key: asyncssh.SSHKey, host_key: asyncssh.SSHKey) -> Certificates:
        """Certificates for the agent that holds these keys."""
        return await self.enrolment.certify_agent(space.space_id, key, host_key_request(host_key, space.space_id))

    def serials(self, owner: Actor) -> set[int]:
        """The serials of all certificates that were made for this owner."""
        rows = self.sql("SELECT serial FROM certificates WHERE owner = ?", str(owner.owner))
        return {serial for (serial,) in rows if isinstance(serial, int)}

    @contextlib.asynccontextmanager
    async def running(self, space: Space, agent: FakeAgent | None = None) -> AsyncIterator[FakeAgent]:
        """The space's agent is connected meanwhile."""
        fake = agent or FakeAgent()
        async with conversation({}, fake.methods()) as (peer, _):
            present = Present(space.space_id, space.principal, peer, fake.line, ["10.0.0.7:2022"])
            self.roster.arrive(present)
            yield fake
            self.roster.leave(present)

    def sql(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Do something to the store behind the server's back."""
        with contextlib.closing(sqlite3.connect(self.folder / STORE_FILE)) as connection, connection:
            return list(connection.execute(statement, values))

    def break_store(self, *events: str, table: str = "forwards") -> None:
        """From now on the database fails when this table is changed."""
        for event in events:
            self.sql(f"CREATE TRIGGER no_{event} BEFORE {event} ON {table} BEGIN SELECT RAISE(FAIL, 'disk I/O error'); END")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A server with the users root, alice and bob."""
    folder = tmp_path / "server"
    folder.mkdir()
    database = await Database.create(folder)
    authority = Authority.create(folder)
    roster = Roster()
    audit = Audit(database)
    revocations = Revocations(database, authority, roster, audit, LIFETIME)
    spaces = Spaces(database, authority, revocations, roster, audit)
    enrolment = Enrolment(database, authority, revocations, audit)
    forwarding = Forwarding(database, roster, audit)
    async with database.writing() as session:
        for actor in (ROOT, ALICE, BOB):
            await add_user(session, actor.owner, admin=actor.admin)
    tokens = Tokens(database, audit)
    yield World(
        folder=folder,
        database=database,
        audit=audit,
        authority=authority,
        roster=roster,
        revocations=revocations,
        spaces=spaces,
        users=Users(database, spaces, audit),
        tokens=tokens,
        enrolment=enrolment,
        forwarding=forwarding,
        renaming=Renaming(database, roster, enrolment, forwarding, revocations, audit),
        revoking=Revoking(database, revocations, audit),
    )
    await tokens.close()
    await database.close()
