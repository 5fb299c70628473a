"""Forwards: success means bound and stored, an error means that nothing changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from knot_keys.keyfiles import new_key
from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_ssh.errors import (
    BadInput,
    Conflict,
    KnotError,
    NotFound,
    NotRunning,
    OtherZone,
    PortTaken,
    StoreUnavailable,
    Unavailable,
)
from knot_ssh.names import Port, SpaceId
from knot_ssh.wire import (
    FORWARDS_MAX,
    Applied,
    ApplyAnswer,
    ApplyError,
    ApplyRequest,
    ForwardRequest,
    ForwardStatus,
    ReplacedForward,
    StoppedForward,
    StopRequest,
)
from tests.support.waiting import becomes
from tests.unit.knot_server.conftest import ALICE, BOB, EU, US, FakeAgent, World

PORT = Port(8080)
STORED = "SELECT local_port, target_name, remote_port FROM forwards ORDER BY local_port"


class Scene:
    """alice's `frontend` and `backend` in eu; the agents of both are connected unless a test takes one away."""

    def __init__(self, world: World, frontend: Space, backend: Space, agent: FakeAgent) -> None:
        self.world = world
        self.frontend = frontend
        self.backend = backend
        self.agent = agent

    @property
    def as_agent(self) -> Actor:
        """The frontend's agent, as it asks the hub."""
        return Actor(ALICE.owner, zone=EU, space=self.frontend.space_id)

    async def forward(
        self, space: str = "backend", *, actor: Actor = ALICE, source: str | None = "frontend", **more: Any
    ) -> ForwardStatus:
        request = ForwardRequest.model_validate({"local_port": int(PORT), "space": space, "remote_port": 3000, **more})
        return await self.world.forwarding.forward(actor, source, request)

    async def refusal(self, kind: type[KnotError], space: str = "backend", **more: Any) -> str:
        """Why a forward is refused; nothing may have changed at agent or store."""
        before = dict(self.agent.forwards), self.stored()
        with pytest.raises(kind) as caught:
            await self.forward(space, **more)
        assert type(caught.value) is kind
        assert (dict(self.agent.forwards), self.stored()) == before
        return str(caught.value)

    def stored(self) -> list[tuple[object, ...]]:
        return self.world.sql(STORED)

    def held(self) -> dict[int, tuple[str, int]]:
        """What the source's agent holds: target and remote port by local port."""
        return {int(port): (order.target.name, int(order.remote_port)) for port, order in self.agent.forwards.items()}

    def stopped(self, space: Space) -> None:
        """The space's agent is gone."""
        agent = self.world.roster.get(space.space_id)
        assert agent
        self.world.roster.leave(agent)


@pytest.fixture
async def scene(world: World) -> AsyncIterator[Scene]:
    frontend, backend = await world.space(ALICE, "frontend"), await world.space(ALICE, "backend")
    async with world.running(frontend) as agent, world.running(backend):
        yield Scene(world, frontend, backend, agent)


# Made


async def test_forward_is_held_by_the_agent(scene: Scene) -> None:
    """A forward is held by the source's agent, which is told the target's id, names and addresses; it is not stored."""
    made = await scene.forward()
    assert (made.local_port, made.space, made.space_id, made.remote_port) == (PORT, "backend", scene.backend.id, 3000)
    assert (made.state, made.persistent) == ("listening", False)
    target = scene.agent.forwards[PORT].target
    assert (target.id, target.name, target.owner, target.zone) == (scene.backend.id, "backend", "alice", "eu")
    assert (target.addresses, target.running, target.gone) == (["10.0.0.7:2022"], True, False)
    assert scene.stored() == []


async def test_persistent_forward_is_stored(scene: Scene) -> None:
    """A persistent forward is held and stored, by the target's id."""
    assert (await scene.forward(persistent=True)).persistent
    assert scene.held() == {8080: ("backend", 3000)}
    assert scene.stored() == [(8080, "backend", 3000)]
    assert scene.world.sql("SELECT space_id, target_id FROM forwards") == [(scene.frontend.id, scene.backend.id)]


async def test_ids_serve_as_well_as_names(scene: Scene) -> None:
    """Source and target may be named by their ids."""
    await scene.forward(scene.backend.id, source=scene.frontend.id)
    assert scene.held() == {8080: ("backend", 3000)}


async def test_agent_asks_for_its_own_space(scene: Scene) -> None:
    """An agent that names no source means its own space; a user must name one."""
    await scene.forward(actor=scene.as_agent, source=None)
    assert scene.held() == {8080: ("backend", 3000)}
    assert "name a source" in await scene.refusal(BadInput, source=None)


async def test_same_port_again_replaces(scene: Scene) -> None:
    """A second forward on a port takes the place of the first, at the agent and in the store."""
    await scene.forward(persistent=True)
    await scene.forward(persistent=True, remote_port=3001)
    assert scene.held() == {8080: ("backend", 3001)}
    assert scene.stored() == [(8080, "backend", 3001)]


async def test_passing_forward_in_place_of_a_persistent_one(scene: Scene) -> None:
    """Replacing a persistent forward with one that is not forgets the stored one: it must not come back."""
    await scene.forward(persistent=True)
    await scene.forward(remote_port=3001)
    assert scene.held() == {8080: ("backend", 3001)}
    assert scene.stored() == []


async def test_watchers_hear_of_a_deleted_target(scene: Scene) -> None:
    """Who has a forward to a space that does not run is told when that is deleted."""
    scene.stopped(scene.backend)
    await scene.forward(force=True)
    scene.agent.told.clear()
    scene.agent.news.clear()
    await scene.world.spaces.delete(ALICE, "backend")
    await scene.agent.news.wait()
    await becomes(lambda: "backend" in scene.agent.told)


async def test_force_needs_no_running_target(scene: Scene) -> None:
    """With force, a forward is made to a target that is not running."""
    scene.stopped(scene.backend)
    await scene.forward(force=True)
    target = scene.agent.forwards[PORT].target
    assert (target.running, target.addresses) == (False, [])


async def test_persistent_forward_of_a_space_that_is_not_running(scene: Scene) -> None:
    """A persistent forward is stored for when its source starts, and says so."""
    scene.stopped(scene.frontend)
    made = await scene.forward(persistent=True)
    assert (made.state, made.reason, made.persistent) == ("stopped", "the space is not running", True)
    assert scene.stored() == [(8080, "backend", 3000)]
    assert scene.held() == {}


# Refused


async def test_port_that_is_taken(scene: Scene) -> None:
    """Where another process has the port, nothing is stored, and the agent's own error comes back."""
    scene.agent.taken = {8080}
    assert "taken by another process" in await scene.refusal(PortTaken, persistent=True)
    assert scene.stored() == []


async def test_target_that_is_not_running(scene: Scene) -> None:
    """Without force, the target must be running, also for a persistent forward."""
    scene.stopped(scene.backend)
    for persistent in (False, True):
        assert "--force" in await scene.refusal(NotRunning, persistent=persistent)


async def test_source_that_is_not_running(scene: Scene) -> None:
    """A forward that is not persistent needs a running source, even with force."""
    scene.stopped(scene.frontend)
    assert "--persistent" in await scene.refusal(NotRunning, force=True)


async def test_neither_is_running(scene: Scene) -> None:
    """Where both spaces are at fault the source is named, by `forward` as by `apply`."""
    scene.stopped(scene.frontend)
    scene.stopped(scene.backend)
    said = await scene.refusal(NotRunning)
    assert "the space 'frontend' is not running" in said
    request = ForwardRequest(local_port=PORT, space="backend", remote_port=Port(3000))
    applied = await scene.world.forwarding.apply(ALICE, "frontend", ApplyRequest(forwards=[request]))
    assert [error.error for error in applied.errors] == [said]


async def test_forward_to_itself(scene: Scene) -> None:
    """A space does not forward to itself, by name or by id."""
    for reference in ("frontend", scene.frontend.id):
        assert "cannot forward to itself" in await scene.refusal(BadInput, reference)


async def test_other_zone(scene: Scene) -> None:
    """A forward stays within its zone, even with force, and whoever asks."""
    await scene.world.space(ALICE, "far", US)
    for actor in (ALICE, scene.as_agent):
        assert "stay within one zone" in await scene.refusal(OtherZone, "far", actor=actor, force=True)


async def test_other_owners_space_is_like_none(scene: Scene) -> None:
    """Another owner's space, by name or by id and as target or source, is told in the very words of one that is not there."""
    theirs = await scene.world.space(BOB, "theirs")
    async with scene.world.running(theirs) as agent:
        for there, nowhere in (("theirs", "absent"), (theirs.id, str(SpaceId.new()))):
            for actor in (ALICE, scene.as_agent):
                found = await scene.refusal(NotFound, there, actor=actor)
                missing = await scene.refusal(NotFound, nowhere, actor=actor)
                assert found.replace(there, nowhere) == missing
                found = await scene.refusal(NotFound, source=there, actor=actor)
                assert found.replace(there, nowhere) == missing
    assert agent.forwards == {}


async def test_other_owners_name_does_not_hide_ones_own(scene: Scene) -> None:
    """Names are each owner's own: a space of the same name elsewhere changes nothing."""
    await scene.world.space(BOB, "backend")
    assert (await scene.forward()).space_id == scene.backend.id


async def test_agent_does_not_act_in_another_zone(scene: Scene) -> None:
    """An agent cannot forward, list, stop or locate in another zone of its owner."""
    far = await scene.world.space(ALICE, "far", US)
    forwarding, agent = scene.world.forwarding, scene.as_agent
    await scene.refusal(NotFound, "far", actor=agent, source="far")
    with pytest.raises(NotFound, match="no space 'far' of yours"):
        await forwarding.listing(agent, "far")
    with pytest.raises(NotFound, match="no space 'far' of yours"):
        await forwarding.stop(agent, "far", StopRequest(local_port=PORT))
    with pytest.raises(OtherZone):
        await forwarding.target(agent, far.space_id)


@pytest.mark.parametrize("reference", ["", "Backend", "join", "../backend", "backend\n"])
async def test_reference_to_nothing(scene: Scene, reference: str) -> None:
    """A source that is neither a name nor an id is bad input."""
    await scene.refusal(BadInput, source=reference)


# The store fails


async def test_store_failure_takes_the_forward_back(scene: Scene) -> None:
    """When a forward cannot be stored, the agent does not keep it."""
    scene.world.break_store("INSERT")
    await scene.refusal(StoreUnavailable, persistent=True)
    assert scene.held() == {}


async def test_store_failure_puts_back_what_was_before(scene: Scene) -> None:
    """When the one that replaces cannot be stored, the agent holds the one before again, as it was."""
    await scene.forward(persistent=True, remote_port=3001)
    scene.world.break_store("INSERT", "UPDATE")
    await scene.refusal(StoreUnavailable, persistent=True)
    assert scene.held() == {8080: ("backend", 3001)}
    assert scene.agent.forwards[PORT].persistent


async def test_store_failure_keeps_the_persistent_one(scene: Scene) -> None:
    """When the stored one cannot be forgotten, the agent holds it again."""
    await scene.forward(persistent=True, remote_port=3001)
    scene.world.break_store("DELETE")
    await scene.refusal(StoreUnavailable)
    assert scene.held() == {8080: ("backend", 3001)}


async def test_store_failure_of_a_space_that_is_not_running(scene: Scene) -> None:
    """A forward that could not be stored is not reported as made."""
    scene.stopped(scene.frontend)
    scene.world.break_store("INSERT")
    await scene.refusal(StoreUnavailable, persistent=True)


# Listed and stopped


async def test_listing_of_a_running_space(scene: Scene) -> None:
    """The forwards of a running space are what its agent holds, by port."""
    for port in (9000, 8000, 8500):
        await scene.forward(local_port=port)
    listed = await scene.world.forwarding.listing(ALICE, "frontend")
    assert [int(forward.local_port) for forward in listed.forwards] == [8000, 8500, 9000]


async def test_listing_of_a_space_that_is_not_running(scene: Scene) -> None:
    """Of a space that is not running the stored forwards are shown, by port, as stopped."""
    for port in (9000, 8000):
        await scene.forward(local_port=port, persistent=True)
    await scene.forward(local_port=7000)
    scene.stopped(scene.frontend)
    listed = await scene.world.forwarding.listing(ALICE, "frontend")
    assert [(int(forward.local_port), forward.state) for forward in listed.forwards] == [(8000, "stopped"), (9000, "stopped")]


async def test_stored_forward_to_a_space_that_is_gone(scene: Scene) -> None:
    """A stored forward whose target was deleted is kept, named and shown as gone, also after one of that name was made."""
    await scene.forward(persistent=True)
    await scene.world.spaces.delete(ALICE, "backend")
    again = await scene.world.space(ALICE, "backend")
    [order] = await scene.world.forwarding.stored(scene.frontend.space_id)
    assert (order.target.name, order.target.id, order.target.gone) == ("backend", scene.backend.id, True)
    assert order.target.id != again.id
    scene.stopped(scene.frontend)
    [shown] = (await scene.world.forwarding.listing(ALICE, "frontend")).forwards
    assert shown.reason == "target gone"


async def test_stop(scene: Scene) -> None:
    """A forward that is stopped is held and stored no longer; others stay."""
    await scene.forward(persistent=True)
    await scene.forward(persistent=True, local_port=9000)
    stopped = await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))
    assert (stopped.state, stopped.space) == ("stopped", "backend")
    assert scene.held() == {9000: ("backend", 3000)}
    assert scene.stored() == [(9000, "backend", 3000)]


async def test_stop_of_a_space_that_is_not_running(scene: Scene) -> None:
    """The stored forward of a space that is not running can be stopped: it does not come back."""
    await scene.forward(persistent=True)
    scene.stopped(scene.frontend)
    await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))
    assert scene.stored() == []


async def test_stop_of_one_that_could_not_be_restored(scene: Scene) -> None:
    """A stored forward that the agent does not hold, because its port was taken, can be stopped."""
    await scene.forward(persistent=True)
    scene.agent.forwards.clear()
    assert (await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))).persistent
    assert scene.stored() == []


async def test_stop_of_nothing(scene: Scene) -> None:
    """A port without forward cannot be stopped."""
    with pytest.raises(NotFound, match="there is no forward on port 8080 in space 'frontend'"):
        await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))


async def test_stop_that_the_store_did_not_learn_of(scene: Scene) -> None:
    """When the stored forward cannot be forgotten, the error means that nothing changed: it still stands."""
    await scene.forward(persistent=True)
    scene.world.break_store("DELETE")
    with pytest.raises(StoreUnavailable):
        await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))
    assert scene.stored() == [(8080, "backend", 3000)]
    assert scene.held() == {8080: ("backend", 3000)}


async def test_stop_that_the_agent_did_not_carry_out(scene: Scene) -> None:
    """When the agent does not stop the forward it stays stored, and the agent is cut off: so it hears of that."""
    await scene.forward(persistent=True)
    assert not scene.agent.line.aborted
    scene.agent.mute = True
    with pytest.raises(Unavailable):
        await scene.world.forwarding.stop(ALICE, "frontend", StopRequest(local_port=PORT))
    assert scene.stored() == [(8080, "backend", 3000)]
    assert scene.held() == {8080: ("backend", 3000)}
    assert scene.agent.line.aborted


async def test_stored_of_nobody(scene: Scene) -> None:
    """A space that is not there has no stored forwards."""
    assert await scene.world.forwarding.stored(SpaceId.new()) == []


# Applied


def entries(*rows: tuple[int, str] | tuple[int, str, dict[str, Any]], dry_run: bool = False) -> ApplyRequest:
    """A list of (local port, target, other fields); the remote port is 3000 and all are persistent, unless said."""
    forwards = [
        {"local_port": row[0], "space": row[1], "remote_port": 3000, "persistent": True, **(row[2] if len(row) > 2 else {})}
        for row in rows
    ]
    return ApplyRequest.model_validate({"forwards": forwards, "dry_run": dry_run})


def outcome(applied: Applied) -> tuple[list[int], list[int], list[tuple[int, str]]]:
    return (
        [int(entry.local_port) for entry in applied.applied],
        [int(entry.local_port) for entry in applied.stopped],
        [(int(error.local_port), error.code) for error in applied.errors],
    )


@pytest.mark.parametrize("running", [True, False])
async def test_apply_replaces_all(scene: Scene, running: bool) -> None:
    """New, changed, removed and unchanged forwards: the same answer whether the source runs or not, and the store agrees."""
    apply = partial(scene.world.forwarding.apply, ALICE, "frontend")
    if not running:
        scene.stopped(scene.frontend)
    first = await apply(entries((8002, "backend"), (8001, "backend"), (8003, "backend")))
    assert outcome(first) == ([8001, 8002, 8003], [], [])
    assert first.applied[0].model_dump() == {"local_port": 8001, "space": "backend", "remote_port": 3000, "persistent": True}
    wanted = entries((8004, "backend"), (8002, "backend", {"remote_port": 4000}), (8001, scene.backend.id))
    assert outcome(await apply(wanted.model_copy(update={"dry_run": True}))) == ([8002, 8004], [8003], [])
    assert [row[0] for row in scene.stored()] == [8001, 8002, 8003]
    assert outcome(await apply(wanted)) == ([8002, 8004], [8003], [])
    assert scene.stored() == [(8001, "backend", 3000), (8002, "backend", 4000), (8004, "backend", 3000)]
    assert outcome(await apply(wanted)) == ([], [], [])
    assert outcome(await apply(entries())) == ([], [8001, 8002, 8004], [])
    assert (scene.stored(), scene.held()) == ([], {})


@pytest.mark.parametrize("running", [True, False])
async def test_apply_refuses_a_bad_list_as_a_whole(scene: Scene, running: bool) -> None:
    """A port twice, a space that is not there or another's, another zone, or the source itself: nothing changes."""
    await scene.forward(persistent=True)
    await scene.world.space(ALICE, "far", US)
    await scene.world.space(BOB, "his")
    if not running:
        scene.stopped(scene.frontend)
    before = scene.stored(), scene.held()
    bad: list[tuple[type[KnotError], ApplyRequest, str]] = [
        (BadInput, entries((8001, "backend"), (8002, "backend"), (8001, "backend")), "forwards.2.local_port: 8001"),
        (NotFound, entries((8001, "backend"), (8002, "nothing")), "'nothing'"),
        (NotFound, entries((8001, "backend"), (8002, "his", {"force": True})), "'his'"),
        (OtherZone, entries((8001, "backend"), (8002, "far", {"force": True})), "'far'"),
        (BadInput, entries((8001, "frontend")), "to itself"),
    ]
    for kind, request, words in bad:
        with pytest.raises(kind, match=words):
            await scene.world.forwarding.apply(ALICE, "frontend", request)
        assert (scene.stored(), scene.held()) == before


@pytest.mark.parametrize("running", [True, False])
async def test_apply_to_what_does_not_run(scene: Scene, running: bool) -> None:
    """A target that does not run is an error unless forced; one that is unchanged is none."""
    scene.stopped(scene.backend)
    if not running:
        scene.stopped(scene.frontend)
    apply = partial(scene.world.forwarding.apply, ALICE, "frontend")
    assert outcome(await apply(entries((8001, "backend"), (8002, "backend", {"force": True})))) == (
        [8002],
        [],
        [(8001, "not_running")],
    )
    assert outcome(await apply(entries((8002, "backend")))) == ([], [], [])


async def test_apply_passing_ones_to_what_does_not_run(scene: Scene) -> None:
    """For a source that is not running a forward must be persistent; the error names the source, and what is stored stays."""
    await scene.forward(persistent=True)
    scene.stopped(scene.frontend)
    applied = await scene.world.forwarding.apply(ALICE, "frontend", entries((8080, "backend", {"persistent": False})))
    assert outcome(applied) == ([], [], [(8080, "not_running")])
    assert "the space 'frontend' is not running" in applied.errors[0].error
    assert scene.stored() == [(8080, "backend", 3000)]


async def test_apply_where_a_port_is_taken(scene: Scene) -> None:
    """What the agent could not make is an error, and not stored."""
    scene.agent.taken.add(8001)
    applied = await scene.world.forwarding.apply(ALICE, "frontend", entries((8001, "backend"), (8002, "backend")))
    assert outcome(applied) == ([8002], [], [(8001, "port_taken")])
    assert [row[0] for row in scene.stored()] == [8002]


async def test_changed_persistence_is_a_change(scene: Scene) -> None:
    """From persistent to passing and back is a change, and the store follows."""
    await scene.forward(persistent=True)
    for persistent in (False, True):
        request = entries((8080, "backend", {"persistent": persistent}))
        assert outcome(await scene.world.forwarding.apply(ALICE, "frontend", request)) == ([8080], [], [])
        assert len(scene.stored()) == persistent


async def test_apply_that_the_store_did_not_learn_of(scene: Scene) -> None:
    """When the store fails, the agent holds again what it held before."""
    await scene.forward(persistent=True, local_port=8001)
    await scene.forward(local_port=8002)
    before = scene.held()
    scene.world.break_store("INSERT")
    with pytest.raises(StoreUnavailable):
        await scene.world.forwarding.apply(
            ALICE, "frontend", entries((8001, "backend", {"remote_port": 4000}), (8003, "backend"))
        )
    assert scene.held() == before
    assert scene.stored() == [(8001, "backend", 3000)]


async def test_apply_of_what_was_not_asked(scene: Scene) -> None:
    """An agent that speaks of other forwards than those it was told to hold is not believed, and nothing of it is stored."""
    his = await scene.world.space(BOB, "his")
    await scene.forward(persistent=True, local_port=8001)
    before = scene.stored()
    [asked] = scene.agent.forwards.values()
    elsewhere = asked.target.model_copy(update={"id": his.space_id})
    lies = [
        ApplyAnswer(applied=[ReplacedForward(order=asked.model_copy(update=change))], stopped=[], errors=[])
        for change in ({"target": elsewhere}, {"local_port": Port(9000)}, {"remote_port": Port(22)}, {"persistent": False})
    ]
    lies.append(ApplyAnswer(applied=[], stopped=[asked], errors=[]))
    lies.append(ApplyAnswer(applied=[], stopped=[], errors=[ApplyError(local_port=Port(9000), error="no", code="failed")]))
    for lie in lies:
        scene.agent.lie = lie
        for dry_run in (True, False):
            with pytest.raises(Unavailable, match="was not asked"):
                await scene.world.forwarding.apply(ALICE, "frontend", entries((8001, "backend"), dry_run=dry_run))
        assert scene.agent.line.aborted
    assert scene.stored() == before


async def test_stored_forward_never_leaves_its_owner_and_zone(scene: Scene) -> None:
    """Whatever the store says, a space of another owner or zone is no target: nothing is told of it."""
    others = [await scene.world.space(BOB, "his"), await scene.world.space(ALICE, "far", US)]
    await scene.forward(persistent=True)
    for other in others:
        scene.world.sql(f"UPDATE forwards SET target_id = '{other.id}'")
        [order] = await scene.world.forwarding.stored(scene.frontend.space_id)
        assert (order.target.gone, order.target.name, order.target.zone, order.target.addresses) == (True, "backend", "eu", [])


async def test_agent_applies_to_its_own_space(scene: Scene) -> None:
    """Without a source it is the agent's own space; another zone's is none."""
    await scene.world.space(ALICE, "far", US)
    applied = await scene.world.forwarding.apply(scene.as_agent, None, entries((8001, "backend")))
    assert outcome(applied) == ([8001], [], [])
    with pytest.raises(NotFound):
        await scene.world.forwarding.apply(scene.as_agent, "far", entries())


async def test_as_many_as_there_may_be(scene: Scene) -> None:
    """A space that does not run stores no more forwards than its agent would take; a change of one of them is none more."""
    scene.stopped(scene.frontend)
    full = entries(*((port, "backend") for port in range(1, FORWARDS_MAX + 1)))
    await scene.world.forwarding.apply(ALICE, "frontend", full)
    with pytest.raises(Conflict, match=str(FORWARDS_MAX)):
        await scene.forward(local_port=60000, persistent=True)
    await scene.forward(local_port=1, remote_port=4000, persistent=True)


# What an agent has stopped by itself


def making(scene: Scene) -> str:
    """Which making of the one forward is stored."""
    [(made,)] = scene.world.sql("SELECT made FROM forwards")
    return str(made)


async def stop_alone(scene: Scene, made: str = "", *, port: int = 8080, target: str = "", remote_port: int = 3000) -> None:
    """The frontend's agent says that it has stopped a forward while the server was away: the present one, unless said."""
    gone = StoppedForward(
        local_port=Port(port),
        target_id=SpaceId(target or scene.backend.id),
        remote_port=Port(remote_port),
        made=made or making(scene),
    )
    await scene.world.forwarding.forget_stopped(ALICE, scene.frontend.space_id, [gone])


async def test_stopped_alone_is_forgotten(scene: Scene) -> None:
    """What an agent has stopped while it could not tell is not made again."""
    await scene.forward(persistent=True)
    await stop_alone(scene)
    assert scene.stored() == []


async def test_made_anew_since(scene: Scene) -> None:
    """What was made anew since then, on another port, to another target or remote port, stays."""
    await scene.forward(persistent=True)
    await stop_alone(scene, port=8081)
    await stop_alone(scene, target=str(SpaceId.new()))
    await stop_alone(scene, remote_port=3001)
    assert scene.stored() == [(8080, "backend", 3000)]


@pytest.mark.parametrize("door", ["forward", "apply"])
async def test_the_same_made_anew_since(scene: Scene, door: str) -> None:
    """What was stopped alone and then asked for anew, while the agent was away, stays, though it is the same."""
    await scene.forward(persistent=True)
    stopped = making(scene)
    scene.stopped(scene.frontend)
    if door == "forward":
        await scene.forward(persistent=True)
    else:
        applied = await scene.world.forwarding.apply(ALICE, "frontend", entries((8080, "backend")))
        assert outcome(applied) == ([], [], [])
    await stop_alone(scene, stopped)
    assert scene.stored() == [(8080, "backend", 3000)]
    [order] = await scene.world.forwarding.stored(scene.frontend.space_id)
    await stop_alone(scene, order.made)
    assert scene.stored() == []


async def test_stopped_of_another_space(scene: Scene) -> None:
    """An agent makes the server forget forwards of its own space alone."""
    await scene.forward(persistent=True)
    gone = StoppedForward(local_port=PORT, target_id=scene.backend.space_id, remote_port=Port(3000))
    await scene.world.forwarding.forget_stopped(ALICE, scene.backend.space_id, [gone])
    assert scene.stored() == [(8080, "backend", 3000)]


async def test_nothing_stopped(scene: Scene) -> None:
    """Without anything to forget the store is not written to."""
    await scene.forward(persistent=True)
    scene.world.break_store("DELETE")
    await scene.world.forwarding.forget_stopped(ALICE, scene.frontend.space_id, [])
    assert scene.stored() == [(8080, "backend", 3000)]


# A source with an ordinary sshd

NO_SOURCE = "has an ordinary sshd and no agent"


async def without_agent(world: World) -> Space:
    """alice's `db`, which an sshd has joined as."""
    space, token = await world.invited(ALICE, "db")
    keys = [new_key(name).convert_to_public() for name in ("registration", "host")]
    await world.enrolment.redeem(token.id, *keys)
    return space


@pytest.mark.parametrize("more", [{}, {"persistent": True}, {"persistent": True, "force": True}])
async def test_no_forward_starts_from_an_sshd(scene: Scene, more: dict[str, Any]) -> None:
    """A space without agent is no source, whatever is asked; nothing is stored for it."""
    await without_agent(scene.world)
    with pytest.raises(NotRunning, match=NO_SOURCE):
        await scene.forward(source="db", **more)
    assert scene.world.sql(STORED) == []


async def test_apply_on_an_sshd(scene: Scene) -> None:
    """Of a list for such a source each entry is an error; what was stored for its agent is listed with that reason."""
    db = await without_agent(scene.world)
    wanted = ForwardRequest(local_port=PORT, space="backend", remote_port=Port(3000), persistent=True)
    applied = await scene.world.forwarding.apply(ALICE, "db", ApplyRequest(forwards=[wanted]))
    assert [(error.local_port, error.code) for error in applied.errors] == [(PORT, "not_running")]
    assert NO_SOURCE in applied.errors[0].error
    assert applied.applied == []
    row = (db.id, 1, scene.backend.id, "backend", 3000)
    scene.world.sql(
        "INSERT INTO forwards (space_id, local_port, target_id, target_name, remote_port) VALUES (?, ?, ?, ?, ?)", *row
    )
    [listed] = (await scene.world.forwarding.listing(ALICE, "db")).forwards
    assert (listed.state, listed.reason) == ("stopped", "the space has no agent")


async def test_an_sshd_is_a_target_while_it_is_registered(scene: Scene) -> None:
    """A forward to it needs `force` before it registers and after it has left, and none meanwhile; it has no addresses."""
    db = await without_agent(scene.world)
    with pytest.raises(NotRunning, match="--force"):
        await scene.forward("db")
    scene.world.roster.sshd_came(db.space_id)
    await scene.forward("db")
    [order] = scene.agent.forwards.values()
    assert (order.target.running, order.target.addresses) == (True, [])
    scene.world.roster.sshd_left(db.space_id)
    assert not (await scene.world.forwarding.target(ALICE, "db")).running
