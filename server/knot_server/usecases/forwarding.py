"""Forwards, for every door: the desktop over HTTP and the agent of a space over its control link ask here.

Order matters: the source agent binds the port first, then the store learns of it, and when the store fails the agent is
told to put back what was before; a stop goes the other way round. So success means bound, and an error means that
nothing changed (but for an agent that does not answer: then nobody knows, and `list` tells once it does).
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from knot_server.actor import Actor
from knot_server.roster import Present, Roster
from knot_server.store.database import Database
from knot_server.store.schema import Space, StoredForward
from knot_server.usecases.lookup import find_space, visible_space
from knot_ssh.errors import BadInput, KnotError, NotFound, NotRunning, OtherZone
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import (
    ForwardList,
    ForwardOrder,
    ForwardRequest,
    ForwardStarted,
    ForwardStatus,
    Nothing,
    StoppedForward,
    StopRequest,
    Target,
)


class Forwarding:
    """Make, list and stop forwards."""

    def __init__(self, database: Database, roster: Roster) -> None:
        self._database = database
        self._roster = roster

    async def forward(self, actor: Actor, source: str | None, request: ForwardRequest) -> ForwardStatus:
        """Make a forward, or replace the one on that port.

        Raises NotFound (space), OtherZone, NotRunning, PortTaken, BadInput or Unavailable; nothing has changed then.
        """
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
            target = await visible_space(session, actor, request.space)
        self._check(space, target, request)
        order = ForwardOrder(
            local_port=request.local_port,
            target=self._target(target),
            remote_port=request.remote_port,
            persistent=request.persistent,
        )
        async with self._roster.lock(space.space_id):
            agent = self._roster.get(space.space_id)
            if agent is not None:
                return await self._start(agent, space, order)
            if not request.persistent:
                raise NotRunning(f"the space {space.name!r} is not running; --persistent keeps the forward for when it starts")
            await self._store(space, order)
            return _not_running(order)

    async def listing(self, actor: Actor, source: str | None) -> ForwardList:
        """The forwards of a space, by port; of one that is not running, the stored ones. Raises NotFound."""
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
        agent = self._roster.get(space.space_id)
        if agent is not None:
            return await agent.ask("forward.list", Nothing(), ForwardList)
        return ForwardList(forwards=[_not_running(order) for order in await self.stored(space.space_id)])

    async def stop(self, actor: Actor, source: str | None, local_port: Port) -> ForwardStatus:
        """Stop a forward and forget it; raises NotFound for a space or a port that has none."""
        async with self._database.reading() as session:
            space = await find_space(session, actor, source)
        async with self._roster.lock(space.space_id):
            stored = next((order for order in await self.stored(space.space_id) if order.local_port == local_port), None)
            if stored:
                await self._forget(space, local_port)
            try:
                stopped = await self._stop_running(space, local_port)
            except KnotError:
                if stored:
                    await self._store(space, stored)
                raise
            if stopped:
                return stopped
            if stored:
                return _not_running(stored)
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
                target=self._target(target) if target else _gone(row, source),
                remote_port=Port(row.remote_port),
                persistent=True,
            )
            for row, target in rows
            if source
        ]

    async def forget_stopped(self, space_id: SpaceId, stopped: Sequence[StoppedForward]) -> None:
        """Forget what an agent has stopped while it could not tell; what was made anew since then stays."""
        if not stopped:
            return
        async with self._database.writing() as session:
            for gone in stopped:
                await session.execute(
                    delete(StoredForward).where(
                        StoredForward.space_id == str(space_id),
                        StoredForward.local_port == int(gone.local_port),
                        StoredForward.target_id == str(gone.target_id),
                        StoredForward.remote_port == int(gone.remote_port),
                    )
                )

    async def target(self, actor: Actor, reference: str) -> Target:
        """How to reach a space of the agent's own owner and zone; raises NotFound."""
        async with self._database.reading() as session:
            return self._target(await find_space(session, actor, reference))

    def _check(self, space: Space, target: Space, request: ForwardRequest) -> None:
        """What is refused before anything is asked of an agent."""
        if target.id == space.id:
            raise BadInput(f"{space.name!r} cannot forward to itself: use port {request.remote_port} there directly")
        if target.zone != space.zone:
            raise OtherZone(
                f"the space {target.name!r} is in zone {target.zone!r} and {space.name!r} in {space.zone!r}; "
                "forwards stay within one zone"
            )
        if not request.force and self._roster.get(target.space_id) is None:
            raise NotRunning(f"the target space {target.name!r} is not running; --force makes the forward all the same")

    async def _start(self, agent: Present, space: Space, order: ForwardOrder) -> ForwardStatus:
        started = await agent.ask("forward.start", order, ForwardStarted)
        try:
            if order.persistent:
                await self._store(space, order)
            else:
                await self._forget(space, order.local_port)
        except KnotError:
            if started.replaced:
                await agent.ask("forward.start", started.replaced, ForwardStarted)
            else:
                await agent.ask("forward.stop", StopRequest(local_port=order.local_port), ForwardStatus)
            raise
        return started.status

    async def _stop_running(self, space: Space, local_port: Port) -> ForwardStatus | None:
        """What the agent stopped; None when it holds no such forward, or does not run."""
        agent = self._roster.get(space.space_id)
        if agent is None:
            return None
        try:
            return await agent.ask("forward.stop", StopRequest(local_port=local_port), ForwardStatus)
        except NotFound:
            return None

    async def _store(self, space: Space, order: ForwardOrder) -> None:
        row = StoredForward(
            space_id=space.id,
            local_port=int(order.local_port),
            target_id=str(order.target.id),
            target_name=str(order.target.name),
            remote_port=int(order.remote_port),
        )
        async with self._database.writing() as session:
            await session.merge(row)

    async def _forget(self, space: Space, local_port: Port) -> None:
        on_port = delete(StoredForward).where(StoredForward.space_id == space.id, StoredForward.local_port == int(local_port))
        async with self._database.writing() as session:
            await session.execute(on_port)

    def _target(self, space: Space) -> Target:
        agent = self._roster.get(space.space_id)
        return Target(
            id=space.space_id,
            name=space.space_name,
            owner=Owner(space.owner),
            zone=Zone(space.zone),
            addresses=agent.addresses if agent else [],
            running=agent is not None,
        )


def _gone(row: StoredForward, source: Space) -> Target:
    """A stored target that has been deleted, or has moved out of reach."""
    return Target(
        id=SpaceId(row.target_id),
        name=SpaceName(row.target_name),
        owner=Owner(source.owner),
        zone=Zone(source.zone),
        addresses=[],
        running=False,
        gone=True,
    )


def _not_running(order: ForwardOrder) -> ForwardStatus:
    """A stored forward of a space that is not running."""
    return ForwardStatus(
        local_port=order.local_port,
        space=order.target.name,
        space_id=order.target.id,
        remote_port=order.remote_port,
        persistent=True,
        state="stopped",
        reason="target gone" if order.target.gone else "the space is not running",
    )
