"""Renaming: what changes, what does not, who hears of it, and which names can be had."""

from __future__ import annotations

import asyncio
import time

import pytest

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import new_key
from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_server.usecases import renaming as module
from knot_ssh.errors import KnotError, NameTaken, NotFound
from knot_ssh.names import SpaceId, SpaceName
from knot_ssh.rpc import Method
from knot_ssh.wire import ForwardRequest, Membership
from tests.unit.knot_server.conftest import ALICE, BOB, US, FakeAgent, World

NEW = SpaceName("new")
KEY, HOST = new_key("agent"), new_key("host")


class RenamedAgent(FakeAgent):
    """Notes what it is told that it is called; `fault` is what it answers, `silent` whether it does not."""

    fault: KnotError | None = None
    silent = False

    def methods(self) -> dict[str, Method]:
        return super().methods() | {"membership.changed": (Membership, self.renamed)}

    async def renamed(self, membership: Membership) -> None:
        self.told.append(f"{membership.space_id} is {membership.space}")
        if self.silent:
            await asyncio.Event().wait()
        if self.fault:
            raise self.fault


async def rename(world: World, reference: str, name: str = NEW, actor: Actor = ALICE) -> Space:
    return await world.renaming.rename(actor, reference, SpaceName(name))


async def certified(world: World, name: str, actor: Actor = ALICE) -> Space:
    """A space whose agent has certificates."""
    space, token = await world.invited(actor, name)
    key = new_key("agent").convert_to_public()
    await world.enrolment.redeem(token.id, key)
    await world.certified(space, key, HOST)
    return space


def spaces(world: World) -> list[tuple[object, ...]]:
    return world.sql("SELECT id, name FROM spaces ORDER BY name")


# What changes


@pytest.mark.parametrize("by", ["name", "id"])
async def test_name_alone_changes(world: World, by: str) -> None:
    """A space that is renamed, by name or id, keeps its id, zone and all else."""
    space = await world.space(ALICE, "old")
    [before] = world.sql("SELECT * FROM spaces")
    renamed = await rename(world, getattr(space, by))
    [after] = world.sql("SELECT * FROM spaces")
    assert (renamed.id, renamed.name, renamed.zone) == (space.id, "new", "eu")
    assert [(was, now) for was, now in zip(before, after, strict=True) if was != now] == [("old", "new")]


async def test_stored_forwards_stay(world: World) -> None:
    """Forwards that are stored, to the space and from it, go by ids; the new name is shown, also once the space is gone."""
    near, far = await world.space(ALICE, "near"), await world.space(ALICE, "far")
    request = ForwardRequest.model_validate(
        {"local_port": 1, "space": "far", "remote_port": 2, "persistent": True, "force": True}
    )
    await world.forwarding.forward(ALICE, "near", request)
    before = world.sql("SELECT space_id, local_port, target_id, remote_port FROM forwards")
    await rename(world, "far")
    await rename(world, "near", "source")
    assert world.sql("SELECT space_id, local_port, target_id, remote_port FROM forwards") == before
    [order] = await world.forwarding.stored(near.space_id)
    assert (order.target.name, order.target.id) == ("new", far.id)
    await world.spaces.delete(ALICE, "new")
    [order] = await world.forwarding.stored(near.space_id)
    assert (order.target.name, order.target.gone) == ("new", True)


async def test_next_certificate_carries_the_name(world: World) -> None:
    """What is certified after a rename is certified under the new name, for the same id."""
    space, token = await world.invited(ALICE, "old")
    await world.enrolment.redeem(token.id, KEY.convert_to_public())
    await rename(world, "old")
    issued = await world.certified(space, KEY.convert_to_public(), HOST)
    assert read_certificate(issued.host).principals == [space.id, "new.alice.eu.knot"]


# Who hears


async def test_agent_and_neighbours_hear(world: World) -> None:
    """The space's agent hears what it is called; every agent of its owner and zone hears of the target; no other does."""
    space, near = await world.space(ALICE, "old"), await world.space(ALICE, "near")
    away, others = await world.space(ALICE, "away", US), await world.space(BOB, "others")
    async with (
        world.running(space, RenamedAgent()) as agent,
        world.running(near) as neighbour,
        world.running(away) as other_zone,
        world.running(others) as other_owner,
    ):
        heard: list[tuple[SpaceId, SpaceName]] = []
        world.renaming.on_change.append(lambda space_id, name, _: heard.append((space_id, name)))
        await rename(world, "old")
        assert heard == [(space.id, "new")]
        assert await agent.hears(2) == [f"{space.id} is new", "new"]
        assert await neighbour.hears(1) == ["new"]
        assert (other_zone.told, other_owner.told) == ([], [])
        present = world.roster.get(space.space_id)
        assert present
        assert present.name == "new"


@pytest.mark.parametrize("trouble", ["refuses", "does not know the method", "does not answer"])
async def test_agent_that_does_not_follow(world: World, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """An agent that does not take the name over now does so at its next hello: the rename is done, and told."""
    monkeypatch.setattr(module, "CERTIFY_SECONDS", 0.05)
    space, near = await world.space(ALICE, "old"), await world.space(ALICE, "near")
    agent = FakeAgent() if trouble == "does not know the method" else RenamedAgent()
    if isinstance(agent, RenamedAgent):
        agent.fault = KnotError("no")
        agent.silent = trouble == "does not answer"
    async with world.running(space, agent), world.running(near) as neighbour:
        assert (await rename(world, "old")).name == "new"
        assert await neighbour.hears(1) == ["new"]
    assert not world.roster.lock(space.space_id).locked()


async def test_same_name_again(world: World) -> None:
    """The name that a space has may be given to it: nothing changes, and whoever should know is told once more."""
    space = await world.space(ALICE, "old")
    async with world.running(space, RenamedAgent()) as agent:
        await rename(world, "old", "old")
        assert await agent.hears(2) == [f"{space.id} is old", "old"]
    assert spaces(world) == [(space.id, "old")]


async def test_many_at_once(world: World) -> None:
    """Renames of one space at the same time come one after the other: the agent hears last what the store has."""
    space = await world.space(ALICE, "old")
    heard: list[SpaceName] = []
    world.renaming.on_change.append(lambda _, name, __: heard.append(name))
    async with world.running(space, RenamedAgent()) as agent:
        await asyncio.gather(*(rename(world, space.id, f"name-{number}") for number in range(10)))
        told = await agent.hears(20)
    [(_, name)] = spaces(world)
    assert told[::2] == [f"{space.id} is {each}" for each in heard]
    assert told[1::2] == heard
    assert heard[-1] == name


# Refused


async def refusal(world: World, kind: type[KnotError], reference: str, name: str = NEW, actor: Actor = ALICE) -> str:
    """Why a rename is refused; nothing has changed, and nobody was told."""
    before = spaces(world)
    heard: list[object] = []
    world.renaming.on_change.append(lambda *news: heard.append(news))
    with pytest.raises(kind) as caught:
        await rename(world, reference, name, actor)
    assert (spaces(world), heard) == (before, [])
    return str(caught.value)


async def test_name_of_another_space(world: World) -> None:
    """A name that another space of the owner has, in whatever zone, is taken; another owner's does not matter."""
    await world.space(ALICE, "old")
    await world.space(ALICE, "new", US)
    await world.space(BOB, "theirs")
    assert await refusal(world, NameTaken, "old") == "you have a space 'new' already"
    assert (await rename(world, "old", "theirs")).name == "theirs"


async def test_other_owners_space_is_like_none(world: World) -> None:
    """Another owner's space, by name or id, is refused in the words for what does not exist."""
    theirs = await world.space(BOB, "theirs")
    said = {(await refusal(world, NotFound, each)).replace(each, "X") for each in ("absent", "theirs", theirs.id)}
    assert len(said) == 1


# Names that were another's


async def test_name_is_held_back(world: World) -> None:
    """While a host certificate for it is good, a name that was given up is neither for a new space nor for another one."""
    await certified(world, "old")
    await world.space(ALICE, "other")
    await rename(world, "old")
    sentence = r"the name 'old' is held back until \d{4}-\d\d-\d\d \d\d:\d\d UTC: a space that has had it"
    with pytest.raises(NameTaken, match=sentence):
        await world.space(ALICE, "old")
    assert "held back" in await refusal(world, NameTaken, "other", "old")
    world.sql("UPDATE certificates SET expires_at = ?", int(time.time()) - 1)
    assert (await rename(world, "other", "old")).name == "old"


async def test_last_certificate_counts(world: World) -> None:
    """The name is held back until the last of its certificates ends, as the sentence says."""
    space = await certified(world, "old")
    world.sql("UPDATE certificates SET expires_at = 1000 WHERE key_id LIKE 'host/%'")
    await rename(world, "old")
    assert await world.space(ALICE, "old")
    end = 4_000_000_000
    await world.spaces.delete(ALICE, "old")
    world.sql(
        "INSERT INTO certificates (serial, fingerprint, key_id, owner, space_id, expires_at) "
        "VALUES (7, 'SHA256:x', ?, 'alice', ?, ?)",
        f"host/alice/eu/old/{space.id}",
        space.id,
        end,
    )
    with pytest.raises(NameTaken, match="until 2096-10-02 07:07 UTC"):  # a minute that has ended by then
        await world.space(ALICE, "old")


async def test_straight_back(world: World) -> None:
    """A space may have back the name that it gave up, at once."""
    space = await certified(world, "old")
    await rename(world, "old")
    await rename(world, "new", "old")
    assert spaces(world) == [(space.id, "old")]


async def test_deleted_name_is_free(world: World) -> None:
    """The names of a deleted space, its last one and those before, are free at once: its certificates are revoked."""
    await certified(world, "old")
    await rename(world, "old")
    await world.spaces.delete(ALICE, "new")
    for name in ("old", "new"):
        assert (await world.space(ALICE, name)).name == name


async def test_name_that_nobody_is_certified_under(world: World) -> None:
    """A name is free that was certified for nobody, or in another zone, for another owner, or that only begins alike."""
    await world.space(ALICE, "plain")
    await rename(world, "plain", "plainer")
    await certified(world, "old")
    await certified(world, "old-api")
    await certified(world, "theirs", BOB)
    await rename(world, "old")
    await rename(world, "old-api", "new-api")
    await world.renaming.rename(BOB, "theirs", NEW)
    assert await world.space(ALICE, "plain")
    assert await world.space(ALICE, "old", US)
    assert await world.space(ALICE, "theirs")
    assert await world.space(ALICE, "ol")
