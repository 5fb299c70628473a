"""Forwards, for every door: the desktop over HTTP and the agent of a space over its control link ask here.

Order matters: the source agent binds the port first, then the store learns of it, and when the store fails the agent is
told to put back what was before; a stop goes the other way round. So success means bound, and an error means that
nothing changed (but for an agent that does not answer: then nobody knows; it is cut off, and its next welcome sets right
what is stored).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import structlog
from sqlalchemy import CursorResult, delete, select

from knot_server.actor import Actor
from knot_server.roster import Present, Roster
from knot_server.store.database import Database
from knot_server.store.schema import Space, StoredForward
from knot_server.usecases.audit import Audit
from knot_server.usecases.forwardrecords import Told, record_forgotten, tell_stopped
from knot_server.usecases.lookup import find_space, visible_space
from knot_ssh.errors import BadInput, Conflict, KnotError, NotFound, NotRunning, OtherZone, Unavailable
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.planning import Obstacle, absence, is_same, make_plan, stored_obstacle, target_obstacle
from knot_ssh.tasks import whole
from knot_ssh.wire import (
    FORWARDS_MAX,
    Applied,
    AppliedForward,
    ApplyAnswer,
    ApplyOrder,
    ApplyRequest,
    ForwardList,
    ForwardOrder,
    ForwardRequest,
    ForwardStarted,
    ForwardStatus,
    Nothing,
    ReplacedForward,
    StoppedForward,
    StopRequest,
    Target,
    WantedForward,
)

log = structlog.get_logger(__name__)

_IDLE = {False: "the space is not running", True: "the space has no agent"}
"""Why stored forwards are held by nobody."""


class Forwarding:
    """Make, list and stop forwards, one by one or all at once."""

    def __init__(self, database: Database, roster: Roster, audit: Audit) -> None:
        self._database = database
        self._roster = roster
        self._audit = audit

    @whole
    async def forward(self, actor: Actor, source: str | None, request: ForwardRequest) -> ForwardStatus:
        """Make a forward, or replace the one on that port.

        Raises NotFound (space), OtherZone, NotRunning, PortTaken, BadInput or Unavailable; nothing has changed then.
        """
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
            target = await visible_space(session, actor, request.space)
        wanted = self._wanted(space, target, request)
        order = wanted.order
        async with self._roster.lock(space.space_id):
            agent = self._roster.get(space.space_id)
            if error := target_obstacle(wanted) if agent else _obstacle(space)(wanted):
                raise error
            if agent is not None:
                return await self._start(actor, agent, space, order)
            before = {stored.local_port: stored for stored in await self.stored(space.space_id)}
            others = before.keys() - {order.local_port}
            if len(others) >= FORWARDS_MAX:
                raise Conflict(f"the space {space.name!r} has {FORWARDS_MAX} forwards, the most there may be")
            change = ReplacedForward(order=order, replaced=before.get(order.local_port))
            await self._change(space, [order], [], Told(actor, [change]))
            return _not_running(space, order)

    @whole
    async def apply(self, actor: Actor, source: str | None, request: ApplyRequest) -> Applied:
        """Make a space's forwards exactly these, but for those of its agent's file; or tell what that would change.

        Raises BadInput, NotFound or OtherZone for the list as a whole, and Unavailable; nothing has changed then. What
        depends on the moment is an entry in `errors`.
        """
        _refuse_twice(request.forwards)
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
            names = sorted({forward.space for forward in request.forwards})
            targets = {name: await visible_space(session, actor, name) for name in names}
        wanted = [self._wanted(space, targets[forward.space], forward) for forward in request.forwards]
        async with self._roster.lock(space.space_id):
            agent = self._roster.get(space.space_id)
            if agent is not None:
                answer = await self._apply_running(actor, agent, space, wanted, dry_run=request.dry_run)
            else:
                answer = await self._apply_stored(actor, space, wanted, dry_run=request.dry_run)
        return Applied(
            applied=[_entry(made.order) for made in answer.applied],
            stopped=[_entry(order) for order in answer.stopped],
            errors=answer.errors,
        )

    async def listing(self, actor: Actor, source: str | None) -> ForwardList:
        """The forwards of a space, by port; of one that is not running, the stored ones. Raises NotFound."""
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
        agent = self._roster.get(space.space_id)
        if agent is not None:
            return await agent.ask("forward.list", Nothing(), ForwardList)
        return ForwardList(forwards=[_not_running(space, order) for order in await self.stored(space.space_id)])

    @whole
    async def stop(self, actor: Actor, source: str | None, request: StopRequest) -> ForwardStatus:
        """Stop a forward and forget it. Raises NotFound for a space or a port that has none, HeldByFile."""
        local_port = request.local_port
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
        async with self._roster.lock(space.space_id):
            stored = next((order for order in await self.stored(space.space_id) if order.local_port == local_port), None)
            if stored:
                await self._change(space, [], [stored], Told(actor, stopped=[stored]))
            try:
                stopped = await self._stop_running(space, request)
            except KnotError:
                if stored:
                    await self._change(space, [stored], [], Told(actor, [ReplacedForward(order=stored)], put_back=True))
                raise
            if stopped and not stored:
                await tell_stopped(self._audit, actor, space, stopped)
            if stopped:
                return stopped
            if stored:
                return _not_running(space, stored)
            raise NotFound(f"there is no forward on port {local_port} in space {space.name!r}")

    async def stored(self, space_id: SpaceId) -> list[ForwardOrder]:
        """The persistent forwards of a space, by port. A target that is gone is still named, and not running."""
        rows_of_space = (
            select(StoredForward, Space)
            .outerjoin(Space, Space.id == StoredForward.target_id)
            .where(StoredForward.space_id == str(space_id))
            .order_by(StoredForward.local_port)
        )
        async with self._database.reading() as session:
            source = await session.get(Space, str(space_id))
            rows = list(await session.execute(rows_of_space)) if source else []
        return [
            ForwardOrder(
                local_port=Port(row.local_port),
                target=self._target(target) if target and target.principal == source.principal else _gone(row, source, target),
                remote_port=Port(row.remote_port),
                persistent=True,
                made=row.made,
            )
            for row, target in rows
            if source
        ]

    async def forget_stopped(self, actor: Actor, space_id: SpaceId, stopped: Sequence[StoppedForward]) -> None:
        """Forget what an agent has stopped while it could not tell; what was made anew since then stays."""
        if not stopped:
            return
        async with self._database.writing() as session:
            for gone in stopped:
                forgotten = await session.execute(
                    delete(StoredForward).where(
                        StoredForward.space_id == str(space_id),
                        StoredForward.local_port == int(gone.local_port),
                        StoredForward.target_id == str(gone.target_id),
                        StoredForward.remote_port == int(gone.remote_port),
                        StoredForward.made == gone.made,
                    )
                )
                assert isinstance(forgotten, CursorResult)
                if forgotten.rowcount:
                    record_forgotten(self._audit, session, actor, space_id, gone)

    async def target(self, actor: Actor, reference: str) -> Target:
        """How to reach a space of the agent's own owner and zone; raises NotFound, or OtherZone when that is elsewhere."""
        async with self._database.reading() as session:
            space = await visible_space(session, actor, reference)
            if actor.zone not in (None, space.zone):
                raise OtherZone(f"the space {space.name!r} is in another zone now")
            return self._target(space)

    def _wanted(self, space: Space, target: Space, request: ForwardRequest) -> WantedForward:
        """A request with its target found; raises BadInput or OtherZone, which `force` does not skip."""
        if target.id == space.id:
            raise BadInput(f"{space.name!r} cannot forward to itself: use port {request.remote_port} there directly")
        if target.zone != space.zone:
            raise OtherZone(
                f"the space {target.name!r} is in zone {target.zone!r} and {space.name!r} in {space.zone!r}; "
                "forwards stay within one zone"
            )
        order = ForwardOrder(
            local_port=request.local_port,
            target=self._target(target),
            remote_port=request.remote_port,
            persistent=request.persistent,
            made=secrets.token_hex(8) if request.persistent else "",
        )
        return WantedForward(order=order, force=request.force)

    async def _start(self, actor: Actor, agent: Present, space: Space, order: ForwardOrder) -> ForwardStatus:
        started = await agent.order("forward.start", order, ForwardStarted)
        self._roster.watch(agent, [order.target.id])
        change = ReplacedForward(order=order, replaced=started.replaced)
        try:
            await self._change(space, [order], [], Told(actor, [change]))
        except KnotError:
            await _put_back(agent, [change], [])
            raise
        return started.status

    async def _apply_running(
        self, actor: Actor, agent: Present, space: Space, wanted: Sequence[WantedForward], *, dry_run: bool
    ) -> ApplyAnswer:
        ask = agent.ask if dry_run else agent.order  # a question is no reason to cut anybody off
        answer = await ask("forward.apply", ApplyOrder(forwards=list(wanted), dry_run=dry_run), ApplyAnswer)
        orders = {entry.order.local_port: entry.order for entry in wanted}
        if not _answers(answer, orders):
            agent.line.abort()
            raise Unavailable("the agent of that space answered what it was not asked; `knot port list` tells how it stands")
        if dry_run:
            return answer
        made = [orders[change.order.local_port] for change in answer.applied]
        self._roster.watch(agent, {order.target.id for order in made})
        changes = [change.model_copy(update={"order": orders[change.order.local_port]}) for change in answer.applied]
        told = Told(actor, changes, answer.stopped[:FORWARDS_MAX], apply=True)
        try:
            gone = [row for row in await self.stored(space.space_id) if row.local_port not in orders]
            await self._change(space, made, gone, told)
        except KnotError:
            await _put_back(agent, answer.applied, answer.stopped)
            raise
        return answer

    async def _apply_stored(self, actor: Actor, space: Space, wanted: Sequence[WantedForward], *, dry_run: bool) -> ApplyAnswer:
        standing = {order.local_port: order for order in await self.stored(space.space_id)}
        plan = make_plan(standing, wanted, _obstacle(space))
        made = [ReplacedForward(order=order, replaced=standing.get(order.local_port)) for order in plan.make]
        if not dry_run:
            told = Told(actor, made, plan.stop, apply=True)
            await self._change(space, [*plan.make, *plan.unchanged], plan.stop, told)  # what is asked for anew is made anew
        return ApplyAnswer(applied=made, stopped=plan.stop, errors=plan.errors)

    async def _stop_running(self, space: Space, request: StopRequest) -> ForwardStatus | None:
        """What the agent stopped; None when it holds no such forward, or does not run."""
        agent = self._roster.get(space.space_id)
        if agent is None:
            return None
        try:
            return await agent.order("forward.stop", request, ForwardStatus)
        except NotFound:
            return None

    async def _change(self, space: Space, made: Sequence[ForwardOrder], stopped: Sequence[ForwardOrder], told: Told) -> None:
        """Forget what was stored for these ports, and store what was made, as far as it is persistent; and record it."""
        ports = [int(order.local_port) for order in (*made, *stopped)]
        if not (ports or told.stopped):
            return
        on_ports = delete(StoredForward).where(StoredForward.space_id == space.id, StoredForward.local_port.in_(ports))
        async with self._database.writing() as session:
            await session.execute(on_ports)
            session.add_all(_row(space, order) for order in made if order.persistent)
            told.record(self._audit, session, space)

    def _target(self, space: Space) -> Target:
        agent = self._roster.get(space.space_id)
        return Target(
            id=space.space_id,
            name=space.space_name,
            owner=Owner(space.owner),
            zone=Zone(space.zone),
            addresses=agent.addresses if agent else [],
            running=self._roster.runs(space.space_id),
        )


def _answers(answer: ApplyAnswer, orders: Mapping[Port, ForwardOrder]) -> bool:
    """Whether an agent speaks of what it was told to do. What it says is not ours to store, and leads nowhere else."""
    made = {
        change.order.local_port: is_same(change.order, orders[change.order.local_port])
        for change in answer.applied
        if change.order.local_port in orders
    }
    return (
        len(made) == len(answer.applied)
        and all(made.values())
        and all(error.local_port in orders for error in answer.errors)
        and not any(order.local_port in orders for order in answer.stopped)
    )


async def _put_back(agent: Present, made: Sequence[ReplacedForward], stopped: Sequence[ForwardOrder]) -> None:
    """Have an agent undo what the store does not know of. Where that fails it is cut off: a welcome sets it right."""
    try:
        for change in made:
            if change.replaced:
                await agent.order("forward.start", change.replaced, ForwardStarted)
            else:
                await agent.order("forward.stop", StopRequest(local_port=change.order.local_port), ForwardStatus)
        for order in stopped:
            await agent.order("forward.start", order, ForwardStarted)
    except KnotError as error:
        log.warning("forwards not put back", space=agent.name, reason=str(error))
        agent.line.abort()


def _refuse_twice(forwards: Sequence[ForwardRequest]) -> None:
    places: dict[Port, int] = {}
    for place, forward in enumerate(forwards):
        if forward.local_port in places:
            raise BadInput(
                f"forwards.{place}.local_port: {forward.local_port} stands in the list twice, "
                f"first as forwards.{places[forward.local_port]}"
            )
        places[forward.local_port] = place


def _row(space: Space, order: ForwardOrder) -> StoredForward:
    return StoredForward(
        space_id=space.id,
        local_port=int(order.local_port),
        target_id=str(order.target.id),
        target_name=str(order.target.name),
        remote_port=int(order.remote_port),
        made=order.made,
    )


def _entry(order: ForwardOrder) -> AppliedForward:
    return AppliedForward(
        local_port=order.local_port, space=order.target.name, remote_port=order.remote_port, persistent=order.persistent
    )


def _gone(row: StoredForward, source: Space, target: Space | None) -> Target:
    """A stored target that has been deleted, or is in another zone than the source."""
    return Target(
        id=SpaceId(row.target_id),
        name=SpaceName(row.target_name),
        owner=Owner(source.owner),
        zone=Zone(source.zone),
        addresses=[],
        running=False,
        gone=True,
        moved=target is not None,
    )


def _obstacle(space: Space) -> Obstacle:
    """What may be in the way of a forward on a source without a connected agent."""

    def obstacle(wanted: WantedForward) -> KnotError | None:
        return _no_source(space) or stored_obstacle(wanted, space.name)

    return obstacle


def _no_source(space: Space) -> NotRunning | None:
    """Whether nobody would ever hold a forward of this space."""
    if not space.agentless:
        return None
    return NotRunning(f"the space {space.name!r} has an ordinary sshd and no agent: forwards can lead to it, not start from it")


def _not_running(space: Space, order: ForwardOrder) -> ForwardStatus:
    """A stored forward of a space that is not running, or has no agent."""
    return ForwardStatus(
        local_port=order.local_port,
        space=order.target.name,
        space_id=order.target.id,
        remote_port=order.remote_port,
        persistent=True,
        state="stopped",
        reason=absence(order.target) or _IDLE[space.agentless],
    )
