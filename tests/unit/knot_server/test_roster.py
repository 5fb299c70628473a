"""The roster: which agents are here, who hears of what, and how far a fleet is to spread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

import pytest
from pydantic import ValidationError

from knot_server import roster as module
from knot_server.roster import SECONDS_A_LOGIN, SMALL_FLEET, Present, Roster
from knot_ssh.errors import (
    BadInput,
    KnotError,
    LooseFile,
    NotAuthenticated,
    NotFound,
    PortTaken,
    TooLarge,
    Unavailable,
)
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from knot_ssh.rpc import Method, Peer
from knot_ssh.wire import (
    COUNT_MAX,
    INCREMENT_MAX,
    AgentReport,
    Carried,
    ForwardList,
    ForwardStates,
    LinkModes,
    Nothing,
    Spread,
    Target,
)
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


# Asking


@pytest.mark.parametrize(
    ("raised", "heard"),
    [
        (PortTaken("port 1 is taken"), PortTaken),
        (NotFound("there is no forward"), NotFound),
        (BadInput("no"), BadInput),
        (NotAuthenticated("go away"), Unavailable),
        (TooLarge("too large"), Unavailable),
        (LooseFile("memory.json\n\x1b[31m"), Unavailable),
        (KnotError("internal error"), Unavailable),
    ],
)
async def test_what_agents_may_refuse_with(raised: KnotError, heard: type[KnotError]) -> None:
    """An agent's refusal is heard as bad input, not found or conflict; whatever else it says, it is the agent that fails."""

    async def refuse(_request: Nothing) -> None:
        raise raised

    async with conversation({}, {"forward.list": (Nothing, refuse)}) as (peer, _):
        with pytest.raises(heard) as caught:
            await present(peer=peer).ask("forward.list", Nothing(), ForwardList)
    assert type(caught.value) is heard
    assert str(caught.value).isprintable()


async def test_answers_that_make_no_sense() -> None:
    """An answer of another form is the agent's failure, and not the server's."""

    async def answer(_request: Nothing) -> Spread:
        return Spread(spread=1)

    async with conversation({}, {"forward.list": (Nothing, answer)}) as (peer, _):
        with pytest.raises(Unavailable, match="does not understand"):
            await present(peer=peer).ask("forward.list", Nothing(), ForwardList)


# Reports


def report(listening: int = 0, direct: int = 0, relay: int = 0, open: int = 0, sent: int = 0, received: int = 0) -> AgentReport:
    return AgentReport(
        forwards=ForwardStates(listening=listening),
        links=LinkModes(direct=direct, relay=relay),
        open=open,
        carried=Carried(sent=sent, received=received),
    )


def test_reports_add_up() -> None:
    """How things stand is the sum of what each connected agent said last; what was carried is the sum of all it ever said."""
    roster, one, other = Roster(), present(), present()
    fleet = roster.fleet
    roster.arrive(one)
    roster.arrive(other)
    roster.report(one, report(listening=2, direct=1, open=5, sent=100))
    roster.report(other, report(listening=1, relay=1, sent=10, received=7))
    roster.report(one, report(listening=3, relay=1, open=1, sent=1))
    assert (fleet.forwards["listening"], fleet.links["direct"], fleet.links["relay"], fleet.open) == (4, 0, 2, 1)
    assert (fleet.carried["sent"], fleet.carried["received"]) == (111, 7)


def test_what_was_carried_stays() -> None:
    """An agent that leaves takes its forwards along, and not what they have carried; back again it adds to that."""
    roster, space_id = Roster(), SpaceId.new()
    for sent in (100, 20):
        agent = present(space_id)
        roster.arrive(agent)
        roster.report(agent, report(listening=2, direct=2, open=2, sent=sent))
        assert roster.fleet.forwards["listening"] == 2
        roster.leave(agent)
        roster.leave(agent)
        assert (roster.fleet.forwards["listening"], roster.fleet.links["direct"], roster.fleet.open) == (0, 0, 0)
    assert roster.fleet.carried["sent"] == 120


def test_superseded_agents_have_no_say() -> None:
    """Of two connections of one space only the last one counts, whatever the other still says."""
    roster, space_id = Roster(), SpaceId.new()
    first, second = present(space_id), present(space_id)
    roster.arrive(first)
    roster.report(first, report(listening=5, sent=1))
    roster.arrive(second)
    assert roster.fleet.forwards["listening"] == 0
    roster.report(first, report(listening=7, sent=1000))
    roster.report(second, report(listening=1, sent=1))
    roster.leave(first)
    assert (roster.fleet.forwards["listening"], roster.fleet.carried["sent"]) == (1, 2)
    roster.leave(second)
    assert roster.fleet.forwards["listening"] == 0


def test_strangers_have_no_say() -> None:
    """Who is not in the roster reports in vain."""
    roster = Roster()
    roster.report(present(), report(listening=5, sent=1))
    assert (roster.fleet.forwards["listening"], roster.fleet.carried["sent"]) == (0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"open": -1},
        {"open": COUNT_MAX + 1},
        {"open": True},
        {"open": 1.0},
        {"forwards": {"listening": -1}},
        {"forwards": {"listening": 10**400}},
        {"forwards": {"alice-owns-this": 1}},
        {"links": {"direct": COUNT_MAX + 1}},
        {"links": {"carrier-pigeon": 1}},
        {"carried": {"sent": -1}},
        {"carried": {"sent": INCREMENT_MAX + 1}},
        {"carried": {"sent": "1"}},
        {"carried": {"sent": float("nan")}},
        {"name": "alice"},
    ],
)
def test_reports_are_bounded(wrong: dict[str, object]) -> None:
    """A report has whole numbers within bounds, and no words: nothing negative, nothing huge, no label of its own making."""
    AgentReport.model_validate(report().model_dump())
    with pytest.raises(ValidationError):
        AgentReport.model_validate(report().model_dump() | wrong)


def test_hostile_sums_stay_exact() -> None:
    """An agent that reports as much as it may, again and again, does not make what others have carried disappear in it."""
    roster, hostile, honest = Roster(), present(), present()
    roster.arrive(hostile)
    roster.arrive(honest)
    for _ in range(20_000):
        roster.report(hostile, report(sent=INCREMENT_MAX))
    roster.report(honest, report(sent=1))
    assert roster.fleet.carried["sent"] == 20_000 * INCREMENT_MAX + 1
