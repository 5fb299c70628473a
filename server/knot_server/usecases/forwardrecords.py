"""What the audit record says of forwards: made or stopped, by whom, and by which door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_server.usecases.audit import Audit, Event, Value
from knot_ssh.names import SpaceId
from knot_ssh.wire import ForwardOrder, ForwardStatus, ReplacedForward, StoppedForward


@dataclass(frozen=True, slots=True)
class Told:
    """One change: who asked for it, and what it did. `put_back`: it undoes a change that the agent would not follow."""

    actor: Actor
    made: Sequence[ReplacedForward] = ()
    stopped: Sequence[ForwardOrder] = ()
    apply: bool | None = None
    put_back: bool | None = None

    def record(self, audit: Audit, session: AsyncSession, space: Space) -> None:
        """One record for each forward, within the transaction that stores them."""
        for change in self.made:
            fields = _fields(change.order) | {"replaced": _place(change.replaced)}
            self._record(audit, session, Event.FORWARD_MADE, space, fields)
        for order in self.stopped:
            self._record(audit, session, Event.FORWARD_STOPPED, space, _fields(order))

    def _record(self, audit: Audit, session: AsyncSession, event: Event, space: Space, fields: dict[str, Value]) -> None:
        more: dict[str, Value] = {"by": said_by(self.actor), "apply": self.apply, "put_back": self.put_back}
        audit.record(session, event, self.actor, owner=space.owner, space_id=space.id, space=space.name, **fields, **more)


async def tell_stopped(audit: Audit, actor: Actor, space: Space, status: ForwardStatus) -> None:
    """Record a forward that stood at the agent alone, which says what it was."""
    await audit.write(
        Event.FORWARD_STOPPED,
        actor,
        owner=space.owner,
        space_id=space.id,
        space=space.name,
        by=said_by(actor),
        local_port=int(status.local_port),
        remote_port=int(status.remote_port),
        target=str(status.space),
        target_id=status.space_id,
        persistent=False,
    )


def record_forgotten(audit: Audit, session: AsyncSession, actor: Actor, space_id: SpaceId, gone: StoppedForward) -> None:
    """Record a stored forward that was stopped in its space while the server was away."""
    audit.record(
        session,
        Event.FORWARD_STOPPED,
        actor,
        owner=actor.owner,
        space_id=space_id,
        space=actor.space_name,
        by=said_by(actor),
        local_port=int(gone.local_port),
        remote_port=int(gone.remote_port),
        target_id=gone.target_id,
        persistent=True,
        while_away=True,
    )


def said_by(actor: Actor) -> str:
    """The door: the command line in a space, or the HTTP API."""
    return "command" if actor.space else "api"


def _fields(order: ForwardOrder) -> dict[str, Value]:
    return {
        "local_port": int(order.local_port),
        "remote_port": int(order.remote_port),
        "target": str(order.target.name),
        "target_id": str(order.target.id),
        "persistent": order.persistent,
    }


def _place(order: ForwardOrder | None) -> str | None:
    """Where a forward leads."""
    return None if order is None else f"{order.target.name}:{order.remote_port}"
