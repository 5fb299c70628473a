"""Moving a space to another zone: what is void then, what stays, who hears of it, and when it is refused."""

from __future__ import annotations

import asyncio

import pytest

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import new_key, public_line
from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_ssh.errors import Conflict, NameTaken, NotFound, OtherZone
from knot_ssh.names import Principal, SpaceName, Zone
from knot_ssh.wire import ForwardRequest
from tests.unit.knot_server.conftest import ALICE, BOB, EU, US, World
from tests.unit.knot_server.test_renaming import RenamedAgent

KEY, HOST, LAPTOP = new_key("agent"), new_key("host"), new_key("laptop")


async def move(world: World, reference: str, zone: Zone = US, name: str | None = None, actor: Actor = ALICE) -> Space:
    return await world.renaming.change(actor, reference, zone=zone, name=SpaceName(name) if name else None)


async def certified(world: World, name: str = "backend") -> Space:
    """A space whose agent has certificates."""
    space, token = await world.invited(ALICE, name)
    await world.enrolment.redeem(token.id, KEY.convert_to_public())
    await world.certified(space, KEY.convert_to_public(), HOST)
    return space


async def laptop(world: World) -> int:
    issued, _ = await world.enrolment.certify_person(ALICE, public_line(LAPTOP), None)
    return issued.serial


def forward(local_port: int, space: str) -> ForwardRequest:
    order = {"local_port": local_port, "space": space, "remote_port": 2, "persistent": True, "force": True}
    return ForwardRequest.model_validate(order)


@pytest.mark.parametrize("by", ["name", "id"])
async def test_moved(world: World, by: str) -> None:
    """The zone is another, all else stays; the old certificates are void, the key is not; the next ones say the new zone."""
    space = await certified(world)
    old = world.serials(ALICE)
    moved = await move(world, getattr(space, by))
    assert (moved.id, moved.name, moved.zone, moved.enrolled_key) == (space.id, "backend", "us", public_line(KEY))
    assert world.revocations.current.serials == old
    assert not world.revocations.current.keys
    issued = await world.certified(space, KEY.convert_to_public(), HOST)
    assert read_certificate(issued.client).principals == ["alice@us"]
    assert read_certificate(issued.host).principals == [space.id, "backend.alice.us.knot"]
    assert world.sql("SELECT count(*) FROM audit WHERE event = 'revoked'") == [(1,)]


async def test_same_zone(world: World) -> None:
    """To move a space to where it is voids nothing."""
    space = await certified(world)
    async with world.running(space, RenamedAgent()) as agent:
        await move(world, "backend", EU)
        assert f"{space.id} is backend" in await agent.hears(2)
    assert not world.revocations.current.serials


async def test_peoples_certificates(world: World) -> None:
    """A person's certificate for the old zone alone is void once they own nothing there any more, and not before; one for more
    zones stays."""
    await certified(world)
    await world.space(ALICE, "other")
    one = await laptop(world)
    await move(world, "backend")
    both = await laptop(world)
    assert one not in world.revocations.current.serials
    await move(world, "other")
    assert one in world.revocations.current.serials
    assert both not in world.revocations.current.serials


async def test_stored_forwards(world: World) -> None:
    """Forwards from and to the space stay stored, and fail as of another zone; when it comes back they are good."""
    near, far = await world.space(ALICE, "near"), await world.space(ALICE, "far")
    await world.forwarding.forward(ALICE, "near", forward(1, "far"))
    await world.forwarding.forward(ALICE, "far", forward(3, "near"))
    await move(world, "far")
    for space in (near, far):
        [order] = await world.forwarding.stored(space.space_id)
        assert (order.target.gone, order.target.moved) == (True, True)
        [shown] = (await world.forwarding.listing(ALICE, space.id)).forwards
        assert shown.reason == "other zone"
    with pytest.raises(OtherZone):
        await world.forwarding.target(Actor(ALICE.owner, zone=EU), far.id)
    await move(world, "far", EU)
    [order] = await world.forwarding.stored(near.space_id)
    assert (order.target.gone, order.target.moved) == (False, False)


async def test_who_hears(world: World) -> None:
    """The agent hears what it is; both zones hear of the target, as gone and as come; others do not."""
    space = await certified(world)
    old, new, others = await world.space(ALICE, "old"), await world.space(ALICE, "new"), await world.space(BOB, "others")
    await move(world, "new")
    async with (
        world.running(space, RenamedAgent()) as agent,
        world.running(old) as left,
        world.running(await world.renaming.change(ALICE, new.id)) as joined,
        world.running(others) as other,
    ):
        await move(world, "backend")
        assert f"{space.id} is backend" in await agent.hears(3)
        await left.hears(3)
        await joined.hears(3)
        assert [(target.gone, target.moved, target.zone) for target in left.targets] == [(True, True, "eu")]
        assert [(target.gone, target.moved, target.zone) for target in joined.targets] == [(False, False, "us")]
        assert other.targets == []
        present = world.roster.get(space.space_id)
        assert present
        assert present.principal == Principal(ALICE.owner, US)


async def test_name_and_zone_at_once(world: World) -> None:
    """Both in one order are both or neither; in two at the same time, both."""
    space = await certified(world)
    await world.space(ALICE, "taken")
    with pytest.raises(NameTaken):
        await move(world, "backend", US, "taken")
    assert world.sql("SELECT name, zone FROM spaces ORDER BY name") == [("backend", "eu"), ("taken", "eu")]
    moved = await move(world, "backend", US, "api")
    assert (moved.name, moved.zone) == ("api", "us")
    await asyncio.gather(move(world, space.id, EU), world.renaming.rename(ALICE, space.id, SpaceName("again")))
    assert world.sql("SELECT name, zone FROM spaces WHERE id = ?", space.id) == [("again", "eu")]


async def test_old_name_is_held_back(world: World) -> None:
    """The full name that the space has left goes to no other space while a certificate for it could be good."""
    await certified(world)
    await move(world, "backend", US, "api")
    with pytest.raises(NameTaken, match="held back"):
        await world.space(ALICE, "backend", EU)
    await world.space(ALICE, "backend", US)
    await move(world, "api", EU)


async def test_refused(world: World) -> None:
    """Another's space, and one whose ordinary sshd says in its configuration which zone it is in, do not move."""
    space, token = await world.invited(ALICE, "backend")
    await world.enrolment.redeem(token.id, KEY.convert_to_public(), HOST.convert_to_public())
    with pytest.raises(NotFound):
        await move(world, space.id, actor=BOB)
    with pytest.raises(Conflict, match="ordinary sshd"):
        await move(world, "backend")
    assert (await move(world, "backend", EU)).zone == "eu"
