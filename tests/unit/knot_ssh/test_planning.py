"""The plan of `apply`: what stands and is wanted is left alone, and an error leaves alone what it is about."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.errors import HeldByFile, KnotError
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.planning import Plan, is_same, make_plan, stored_obstacle, target_obstacle
from knot_ssh.wire import ForwardOrder, Target, WantedForward

TARGETS = [
    Target(id=SpaceId.new(), name=SpaceName(name), owner=Owner("alice"), zone=Zone("eu"), addresses=[], running=running)
    for name, running in (("backend", True), ("database", True), ("away", False))
]
PORTS = range(1, 6)
HELD = Port(5)

orders = st.builds(
    ForwardOrder,
    local_port=st.sampled_from(PORTS).map(Port),
    target=st.sampled_from(TARGETS),
    remote_port=st.sampled_from([3000, 3001]).map(Port),
    persistent=st.booleans(),
)
standings = st.lists(orders, unique_by=lambda order: order.local_port)
wishes = st.lists(st.builds(WantedForward, order=orders, force=st.booleans()), unique_by=lambda wanted: wanted.order.local_port)


def held(wanted: WantedForward) -> KnotError | None:
    return target_obstacle(wanted) or (HeldByFile() if wanted.order.local_port == HELD else None)


def planned(standing: list[ForwardOrder], wanted: list[WantedForward]) -> Plan:
    return make_plan({order.local_port: order for order in standing}, wanted, held)


def after(standing: list[ForwardOrder], plan: Plan) -> dict[Port, ForwardOrder]:
    """What stands once the plan was carried out."""
    result = {order.local_port: order for order in standing}
    for order in plan.stop:
        del result[order.local_port]
    return result | {order.local_port: order for order in plan.make}


@given(standings, wishes)
def test_plan_leads_to_what_is_wanted(standing: list[ForwardOrder], wanted: list[WantedForward]) -> None:
    """Once it was carried out exactly what is wanted stands, but for the ports in errors, where all is as it was."""
    plan = planned(standing, wanted)
    before, result = {order.local_port: order for order in standing}, after(standing, plan)
    failed = {error.local_port for error in plan.errors}
    for entry in wanted:
        port = entry.order.local_port
        if port in failed:
            assert result.get(port) is before.get(port)
        else:
            assert is_same(result[port], entry.order)
    assert set(result) == {
        entry.order.local_port for entry in wanted if entry.order.local_port not in failed or before.get(entry.order.local_port)
    }


@given(standings, wishes)
def test_plan_does_no_more_than_needed(standing: list[ForwardOrder], wanted: list[WantedForward]) -> None:
    """Nothing that stands is made again, what is done is done once, and all lists are in the order of ports."""
    plan = planned(standing, wanted)
    before = {order.local_port: order for order in standing}
    assert not any(order.local_port in before and is_same(before[order.local_port], order) for order in plan.make)
    lists = [[order.local_port for order in part] for part in (plan.unchanged, plan.make, plan.stop)]
    lists.append([error.local_port for error in plan.errors])
    assert all(ports == sorted(ports) for ports in lists)
    once = [port for ports in lists for port in ports]
    assert len(once) == len(set(once))


@given(standings, wishes)
def test_second_plan_is_empty(standing: list[ForwardOrder], wanted: list[WantedForward]) -> None:
    """The same list again changes nothing, and has the same errors."""
    first = planned(standing, wanted)
    again = planned(list(after(standing, first).values()), wanted)
    assert (again.make, again.stop, again.errors) == ([], [], first.errors)


@given(standings)
def test_empty_list_stops_all(standing: list[ForwardOrder]) -> None:
    """Where nothing is wanted all is stopped."""
    plan = planned(standing, [])
    assert plan.stop == sorted(standing, key=lambda order: order.local_port)
    assert not plan.make
    assert not plan.errors


def test_what_does_not_run_is_named() -> None:
    """An error names the space that is at fault: the target, or the source."""
    [running, _, away] = TARGETS
    order = ForwardOrder(local_port=Port(1), target=away, remote_port=Port(3000), persistent=False)
    [error] = planned([], [WantedForward(order=order, force=False)]).errors
    assert (error.code, "target space 'away'" in error.error) == ("not_running", True)
    assert planned([], [WantedForward(order=order, force=True)]).make == [order]
    for target in (running, away):
        wanted = WantedForward(order=order.model_copy(update={"target": target}), force=False)
        assert "the space 'frontend' is not running" in str(stored_obstacle(wanted, "frontend"))
