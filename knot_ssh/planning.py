"""What `apply` does: the difference between the forwards that stand and those that are wanted, decided without I/O.

The agent plans against what it holds, the server against what it has stored for a space that does not run; one plan
serves both, so that the answers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from knot_ssh.errors import KnotError, NotRunning
from knot_ssh.names import Port
from knot_ssh.wire import ApplyError, ForwardOrder, Target, WantedForward

TARGET_GONE, OTHER_ZONE = "target gone", "other zone"
Obstacle = Callable[[WantedForward], KnotError | None]
"""Why a forward cannot be made; None when nothing is in the way. Of several reasons the first that `forward` would give."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, each list ordered by local port."""

    unchanged: list[ForwardOrder]
    make: list[ForwardOrder]
    """New ones, and those that take the place of what stands on their port."""
    stop: list[ForwardOrder]
    errors: list[ApplyError]


def make_plan(standing: Mapping[Port, ForwardOrder], wanted: Sequence[WantedForward], obstacle: Obstacle) -> Plan:
    """The way from what stands to what is wanted. What cannot be made leaves alone what stands on its port."""
    plan = Plan([], [], [], [])
    for entry in sorted(wanted, key=lambda entry: entry.order.local_port):
        order = entry.order
        before = standing.get(order.local_port)
        if before and is_same(before, order):
            plan.unchanged.append(order)
        elif error := obstacle(entry):
            plan.errors.append(complaint_about(order, error))
        else:
            plan.make.append(order)
    ports = {entry.order.local_port for entry in wanted}
    plan.stop.extend(standing[port] for port in sorted(standing) if port not in ports)
    return plan


def target_obstacle(wanted: WantedForward) -> KnotError | None:
    """Whether the target has to run and does not."""
    target = wanted.order.target
    if target.running or wanted.force:
        return None
    return NotRunning(f"the target space {target.name!r} is not running; --force makes the forward all the same")


def absence(target: Target) -> str:
    """Why a target will not be there, in the words that lists show; nothing when it may be."""
    if target.moved:
        return OTHER_ZONE
    return TARGET_GONE if target.gone else ""


def source_obstacle(order: ForwardOrder, space: str) -> KnotError | None:
    """Whether a forward can be stored for a source that does not run."""
    if order.persistent:
        return None
    return NotRunning(f"the space {space!r} is not running; --persistent keeps the forward for when it starts")


def stored_obstacle(wanted: WantedForward, space: str) -> KnotError | None:
    """Whether a forward can be made on a source that does not run. Where both spaces are at fault the source is named."""
    return source_obstacle(wanted.order, space) or target_obstacle(wanted)


def complaint_about(order: ForwardOrder, error: KnotError) -> ApplyError:
    """An entry of `errors`."""
    return ApplyError(local_port=order.local_port, error=str(error), code=error.code)


def is_same(standing: ForwardOrder, order: ForwardOrder) -> bool:
    """Whether the two mean the same forward, whatever is known of the target's whereabouts."""
    return (standing.target.id, standing.remote_port, standing.persistent) == (
        order.target.id,
        order.remote_port,
        order.persistent,
    )
