"""What the audit record says of forwards, also where a change did not come about as it was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_ssh.errors import KnotError, StoreUnavailable, Unavailable
from knot_ssh.names import Port
from knot_ssh.wire import ApplyRequest, ForwardRequest, StoppedForward, StopRequest
from tests.unit.knot_server.conftest import ALICE, EU, FakeAgent, World


class Scene:
    """alice's frontend and backend."""

    def __init__(self, world: World, frontend: Space, backend: Space) -> None:
        self.world, self.frontend, self.backend = world, frontend, backend

    def request(self, local_port: int = 8080, *, persistent: bool = True) -> ForwardRequest:
        return ForwardRequest(
            local_port=Port(local_port), space="backend", remote_port=Port(3000), persistent=persistent, force=True
        )

    def told(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Event, actor and fields of what the record says of forwards."""
        rows = self.world.sql("SELECT event, actor, fields FROM audit WHERE event LIKE 'forward%' ORDER BY id")
        return [(str(event), str(actor), json.loads(str(fields))) for event, actor, fields in rows]


@pytest.fixture
async def scene(world: World) -> Scene:
    return Scene(world, await world.space(ALICE, "frontend"), await world.space(ALICE, "backend"))


async def test_a_stop_that_is_undone(scene: Scene) -> None:
    """Where the agent does not follow, the record says that the forward was put back."""
    forwarding = scene.world.forwarding
    async with scene.world.running(scene.frontend, FakeAgent(mute=True)):
        await forwarding.forward(ALICE, "frontend", scene.request())
        with pytest.raises(Unavailable):
            await forwarding.stop(ALICE, "frontend", StopRequest(local_port=Port(8080)))
    told = [(event, fields.get("put_back")) for event, _, fields in scene.told()]
    assert told == [("forward made", None), ("forward stopped", None), ("forward made", True)]


async def test_what_failed_is_not_there(scene: Scene) -> None:
    """A forward that the store did not take was not made, and is not in the record; nor is one to a space that there is not."""
    async with scene.world.running(scene.frontend):
        scene.world.break_store("INSERT")
        with pytest.raises(StoreUnavailable):
            await scene.world.forwarding.forward(ALICE, "frontend", scene.request())
        with pytest.raises(KnotError):
            await scene.world.forwarding.forward(ALICE, "nowhere", scene.request())
    assert scene.told() == []


async def test_without_record_no_change(scene: Scene) -> None:
    """A change that cannot be recorded is not made."""
    async with scene.world.running(scene.frontend) as agent:
        scene.world.break_store("INSERT", table="audit")
        with pytest.raises(StoreUnavailable):
            await scene.world.forwarding.forward(ALICE, "frontend", scene.request())
        assert agent.forwards == {}
    assert scene.world.sql("SELECT * FROM forwards") == []


async def test_stopped_while_away(scene: Scene) -> None:
    """What an agent stopped while it could not tell is recorded once, as its doing; what it makes up is not."""
    await scene.world.forwarding.forward(ALICE, "frontend", scene.request())
    [order] = await scene.world.forwarding.stored(scene.frontend.space_id)
    gone = [
        StoppedForward(local_port=port, target_id=order.target.id, remote_port=order.remote_port, made=order.made)
        for port in (order.local_port, order.local_port, Port(1))
    ]
    agent = Actor(ALICE.owner, zone=EU, space=scene.frontend.space_id, space_name="frontend")
    await scene.world.forwarding.forget_stopped(agent, scene.frontend.space_id, gone)
    (event, actor, fields) = scene.told()[-1]
    assert (event, actor, fields["while_away"], fields["local_port"]) == ("forward stopped", "agent frontend", True, 8080)
    assert len(scene.told()) == 2


async def test_of_a_space_that_does_not_run(scene: Scene) -> None:
    """`apply` on a space that does not run records what it stores and forgets; what stays is not mentioned."""
    forwarding = scene.world.forwarding
    await forwarding.apply(ALICE, "frontend", ApplyRequest(forwards=[scene.request(1), scene.request(2)]))
    await forwarding.apply(ALICE, "frontend", ApplyRequest(forwards=[scene.request(2), scene.request(3)]))
    told = [(event, fields["local_port"], fields["apply"]) for event, _, fields in scene.told()]
    assert told == [
        ("forward made", 1, True),
        ("forward made", 2, True),
        ("forward made", 3, True),
        ("forward stopped", 1, True),
    ]
