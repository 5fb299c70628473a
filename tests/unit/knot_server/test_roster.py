"""The roster: which agents are here, who hears of what, and how far a fleet is to spread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest

from knot_server import roster as module
from knot_server.roster import SECONDS_A_LOGIN, SMALL_FLEET, Present, Roster
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from knot_ssh.rpc import Method, Peer
from knot_ssh.wire import Spread, Target
from tests.support.waiting import becomes
from tests.unit.conversations import conversation
from tests.unit.knot_server.conftest import NoLine

OWN = Principal(Owner("alice"), Zone("eu"))


class Quiet:
    """A conversation in which what is said is only noted."""

    def __init__(self) -> None:
        self.said: list[object] = []

    async def notify(self, _method: str, message: object) -> None:
        self.said.append(message)


def present(space_id: SpaceId | None = None, principal: Principal = OWN, peer: object = None) -> Present:
    return Present(space_id or SpaceId.new(), principal, cast("Peer", peer or Quiet()), NoLine())


def target(space_id: SpaceId, principal: Principal = OWN) -> Target:
    return Target(
        id=space_id, name=SpaceName("backend"), owner=principal.owner, zone=principal.zone, addresses=[], running=True
    )


class Ear:
    """An agent that notes what it is told."""

    def __init__(self) -> None:
        self.targets: list[SpaceId] = []

    def methods(self) -> dict[str, Method]:
        return {
            "target.changed": (Target, self.changed),
        }

    async def changed(self, message: Target) -> None:
        self.targets.append(message.id)


@contextlib.asynccontextmanager
async def listening(principal: Principal = OWN) -> AsyncIterator[tuple[Ear, Present]]:
    """An agent that is connected."""
    ear = Ear()
    async with conversation({}, ear.methods()) as (peer, _):
        yield ear, present(principal=principal, peer=peer)


# Coming and going


def test_latest_connection_counts() -> None:
    """A second connection of a space takes the place of the first, and the first's leaving changes nothing then."""
    roster, space_id = Roster(), SpaceId.new()
    first, second = present(space_id), present(space_id)
    assert roster.arrive(first) is None
    assert roster.arrive(second) is first
    roster.leave(first)
    assert roster.get(space_id) is second
    roster.leave(second)
    roster.leave(second)
    assert roster.get(space_id) is None


# Spreading


def test_spread_grows_with_the_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet spreads over as long as its logins take, and over a limit at most."""
    roster = Roster()
    assert roster.spread == 0
    for count in range(1, 201):
        roster.arrive(present())
        assert roster.spread == pytest.approx(count * SECONDS_A_LOGIN)
    monkeypatch.setattr(module, "SPREAD_MAX", 1.5)
    assert roster.spread == 1.5


async def test_fleet_is_told_when_it_has_doubled() -> None:
    """Everybody hears how far to spread when the fleet has doubled since they heard last, and not at each arrival."""
    roster, quiet = Roster(), Quiet()
    for count in range(1, 4 * SMALL_FLEET + 1):
        roster.arrive(present(peer=quiet))
        await roster.tell_when_grown()
        if count in (2 * SMALL_FLEET, 4 * SMALL_FLEET):
            assert quiet.said == [Spread(spread=roster.spread)] * count
            quiet.said.clear()
        assert quiet.said == []


# Watching


async def test_watchers_hear() -> None:
    """Who watches a space hears when it comes or moves; who does not, or has left, hears nothing."""
    roster, space_id = Roster(), SpaceId.new()
    async with listening() as (one, watcher), listening() as (other, left), listening() as (third, stranger):
        for agent in (watcher, left, stranger):
            roster.arrive(agent)
        roster.watch(watcher, [space_id, SpaceId.new()])
        roster.watch(watcher, [space_id])
        roster.watch(left, [space_id])
        roster.leave(left)
        await roster.tell_watchers(target(space_id))
        await becomes(lambda: one.targets == [space_id])
        await asyncio.sleep(0.01)
        assert (other.targets, third.targets) == ([], [])
        roster.leave(watcher)
        assert not roster._watchers


@pytest.mark.parametrize("principal", [Principal(Owner("bob"), Zone("eu")), Principal(Owner("alice"), Zone("us"))])
async def test_others_hear_nothing(principal: Principal) -> None:
    """Whatever id an agent says it watches, it hears of spaces of its own owner and zone alone."""
    roster, space_id = Roster(), SpaceId.new()
    async with listening(principal) as (ear, agent), listening() as (own, watcher):
        roster.watch(agent, [space_id])
        roster.watch(watcher, [space_id])
        await roster.tell_watchers(target(space_id))
        await becomes(lambda: own.targets == [space_id])
        await asyncio.sleep(0.01)
        assert ear.targets == []


async def test_neighbours_hear() -> None:
    """Every agent of the same owner and zone hears of a target, whether it watches it or not; others hear nothing."""
    roster, space_id = Roster(), SpaceId.new()
    strangers = [Principal(Owner("bob"), Zone("eu")), Principal(Owner("alice"), Zone("us"))]
    async with listening() as (own, neighbour), listening(strangers[0]) as (one, bobs), listening(strangers[1]) as (two, us):
        for agent in (neighbour, bobs, us):
            roster.arrive(agent)
        roster.watch(bobs, [space_id])
        await roster.tell_neighbours(target(space_id))
        await becomes(lambda: own.targets == [space_id])
        await asyncio.sleep(0.01)
        assert (one.targets, two.targets) == ([], [])


async def test_nobody_watches() -> None:
    """News of a space that nobody watches are told to nobody, and nothing is kept of the question."""
    roster = Roster()
    await roster.tell_watchers(target(SpaceId.new()))
    assert not roster._watchers
