"""The relay: who may use it, how much of it, which connection serves, and what is left when a relayed connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from contextlib import suppress
from itertools import permutations
from typing import cast

import asyncssh
import pytest
from asyncssh.packet import SSHPacket, String
from hypothesis import given, settings
from hypothesis import strategies as st

from knot_keys.certificates import ClientCertificate
from knot_keys.connections import ServerConnection
from knot_keys.identity import Identity
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_server.hub import relay as module
from knot_server.hub.relay import HELD_MAX, RELAYED_MAX, Passage, Reachable, Relay
from knot_server.usecases.audit import Audit
from knot_ssh.dataplane.channel import Channel, Opening
from knot_ssh.dataplane.limits import PACKET
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone, qualified_name
from tests.support.planes import stock_plane
from tests.support.reactors import KINDS, on_both, run_on
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, PEERS, WINDOW, FakeConnection, fake_connection

ALICE, BOB = Owner("alice"), Owner("bob")
EU, US = Zone("eu"), Zone("us")
BACKEND = SpaceName("backend")
HOME = Principal(Owner("alice"), Zone("eu"))
BACKEND_ID = SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
FULL_NAME = "backend.alice.eu.knot"
NAMES = ["backend", "backend.knot", FULL_NAME, str(BACKEND_ID)]
NOBODY = cast("ServerConnection", object())
CA = "SHA256:ca"
CAS = {CA}
REVOKED = RevocationList.of([7], ["SHA256:revoked"])


def agent(
    owner: Owner = ALICE, zone: Zone = EU, *, serial: int = 1, key: str = "SHA256:key", lasts: float = 60
) -> ClientCertificate:
    """The certificate of an agent."""
    identity = Identity.agent(Principal(owner, zone), SpaceName("frontend"), SpaceId.new())
    return ClientCertificate(identity, serial, key, time.time() + lasts, CA)


def person(owner: Owner, *zones: Zone) -> ClientCertificate:
    """The certificate of a person."""
    return dataclasses.replace(agent(), identity=Identity.person(owner, list(zones)))


def endpoint(
    connection: ServerConnection = NOBODY,
    owner: Owner = ALICE,
    zone: Zone = EU,
    name: SpaceName = BACKEND,
    space_id: SpaceId = BACKEND_ID,
) -> Reachable:
    principal = Principal(owner, zone)
    return Reachable(space_id, name, principal, connection, registered=qualified_name(name, principal))


class Scene:
    """A relay with alice's `backend` in eu."""

    def __init__(self, plane: DataPlane | None = None) -> None:
        self.relay = Relay(plane or stock_plane())
        self.relay.register(endpoint())

    def may(
        self, client: ClientCertificate, host: str = FULL_NAME, port: int = 22, revoked: RevocationList = NOTHING_REVOKED
    ) -> bool:
        """Whether this client gets a channel; it is given back."""
        try:
            near, _ = self.relay.request(NOBODY, client, CAS, revoked, host, port)
        except asyncssh.ChannelOpenError:
            return False
        near.abort()
        return True

    def refusal(
        self, client: ClientCertificate, host: str = FULL_NAME, port: int = 22, revoked: RevocationList = NOTHING_REVOKED
    ) -> tuple[int, str]:
        """What a client hears that gets none."""
        with pytest.raises(asyncssh.ChannelOpenError) as caught:
            self.relay.request(NOBODY, client, CAS, revoked, host, port)
        return caught.value.code, caught.value.reason


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Who may


@pytest.mark.parametrize("owner", [ALICE, BOB])
@pytest.mark.parametrize("zone", [EU, US])
@pytest.mark.parametrize("host", NAMES)
def test_own_owner_and_zone_alone(scene: Scene, owner: Owner, zone: Zone, host: str) -> None:
    """By whatever name, an endpoint is reached by its own owner in its own zone alone."""
    assert scene.may(agent(owner, zone), host) == ((owner, zone) == (ALICE, EU))


@pytest.mark.parametrize("host", NAMES)
def test_people_reach_their_zones(scene: Scene, host: str) -> None:
    """A person reaches what is in one of the zones that their certificate names."""
    assert scene.may(person(ALICE, US, EU), host)
    assert not scene.may(person(ALICE, US), host)
    assert not scene.may(person(BOB, EU, US), host)


@pytest.mark.parametrize("host", NAMES)
def test_expired_or_revoked(scene: Scene, host: str) -> None:
    """At every channel it is asked whether the certificate is still good."""
    assert scene.may(agent(lasts=5), host, revoked=REVOKED)
    assert not scene.may(agent(lasts=-0.001), host)
    assert not scene.may(agent(serial=7), host, revoked=REVOKED)
    assert not scene.may(agent(key="SHA256:revoked"), host, revoked=REVOKED)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        ".knot",
        "knot",
        "backend.",
        "backend.knot.",
        "BACKEND",
        " backend",
        "backend\0",
        "backend.alice",
        "backend.alice.eu",
        "backend.alice.us.knot",
        "backend.bob.eu.knot",
        "backend.alice.eu.knot.evil",
        "x.backend.alice.eu.knot",
        f"{BACKEND_ID}.knot",
        f"{BACKEND_ID}".upper(),
        "frontend",
        "localhost",
        "127.0.0.1",
        "169.254.169.254",
        "hub.knot",
        "x" * 100_000,
    ],
)
def test_other_names_lead_nowhere(scene: Scene, host: str) -> None:
    """A name that is not exactly one of an endpoint's leads nowhere, and surely not out of the system."""
    assert not scene.may(agent(), host)


@pytest.mark.parametrize("port", [0, 21, 23, 80, 2022, 65535, 65536 + 22, 2**32 - 1])
def test_other_ports_lead_nowhere(scene: Scene, port: int) -> None:
    """The relay leads to endpoints, on the port that says so, and to nothing else."""
    assert not scene.may(agent(), FULL_NAME, port)


def test_everybody_hears_the_same(scene: Scene) -> None:
    """What does not exist, is another's, lies in another zone or on another port is refused in the same words."""
    scene.relay.register(endpoint(owner=BOB, name=SpaceName("theirs"), space_id=SpaceId.new()))
    scene.relay.register(endpoint(zone=US, name=SpaceName("faraway"), space_id=SpaceId.new()))
    heard = {
        scene.refusal(agent(), name, port)[1].replace(name, "X")
        for name, port in (("absent", 22), ("theirs", 22), ("faraway", 22), ("backend", 23))
    }
    heard |= {scene.refusal(agent(lasts=-1), "backend")[1].replace("backend", "X")}
    assert len(heard) == 1


class FakeAudit:
    """Keeps why whoever was refused what."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, object]] = []

    def refuse(self, _door: str, reason: str, *_who: object, host: str, **_fields: object) -> None:
        self.refused.append((reason, host))


def test_who_is_not_there_is_recorded_once() -> None:
    """An agent that asks again and again for a target that is not connected is recorded once for each name; one that may not go
    there, each time."""
    audit, asking = FakeAudit(), agent()
    scene = Scene()
    scene.relay = Relay(stock_plane(), cast("Audit", audit))
    scene.relay.register(endpoint(zone=US, name=SpaceName("faraway"), space_id=SpaceId.new()))
    for name in ("absent", "faraway", "absent", "faraway", "gone"):
        assert not scene.may(asking, name)
    away, elsewhere = "not reachable", "other owner or zone"
    assert audit.refused == [(away, "absent"), (elsewhere, "faraway"), (elsewhere, "faraway"), (away, "gone")]


def test_long_names_are_not_quoted_in_full(scene: Scene) -> None:
    """A caller cannot have the hub repeat more than a name's length."""
    assert len(scene.refusal(agent(), "x" * 100_000)[1]) < 400


def test_same_name_of_two_owners(scene: Scene) -> None:
    """Two owners may have a space of one name: each reaches their own."""
    other = endpoint(owner=BOB, space_id=SpaceId.new(), connection=cast("ServerConnection", "bob's"))
    scene.relay.register(other)
    for client, wanted in ((agent(), BACKEND_ID), (agent(BOB), other.space_id)):
        near, passage = scene.relay.request(NOBODY, client, CAS, NOTHING_REVOKED, "backend", 22)
        assert passage._endpoint.space_id == wanted
        near.abort()
    assert not scene.may(agent(), str(other.space_id))


# Which connection serves


def served_by(scene: Scene, host: str = FULL_NAME) -> object:
    """The connection that a channel would go to; None where there is none."""
    try:
        near, passage = scene.relay.request(NOBODY, agent(), CAS, NOTHING_REVOKED, host, 22)
    except asyncssh.ChannelOpenError:
        return None
    near.abort()
    return passage._endpoint.connection


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_latest_connection_serves(order: tuple[int, ...]) -> None:
    """Of several connections of one space the last to register serves; when it goes, the one before that is left."""
    relay = Scene()
    relay.relay = Relay(stock_plane())
    lines = [cast("ServerConnection", name) for name in "abc"]
    listeners = [relay.relay.register(endpoint(line)) for line in lines]
    left = list(lines)
    for number in order:
        assert [served_by(relay, host) for host in NAMES] == [left[-1]] * 4
        listeners[number].close()
        left.remove(lines[number])
    assert [served_by(relay, host) for host in NAMES] == [None] * 4
    assert (relay.relay._by_id, relay.relay._by_name) == ({}, {})


def test_name_given_to_a_new_space() -> None:
    """When the last connection of a deleted space goes late, the new space of that name stays reachable."""
    scene = Scene(stock_plane())
    scene.relay = Relay(stock_plane())
    old, new = cast("ServerConnection", "old"), cast("ServerConnection", "new")
    lingering = scene.relay.register(endpoint(old, space_id=SpaceId.new()))
    listener = scene.relay.register(endpoint(new))
    lingering.close()
    assert [served_by(scene, host) for host in NAMES] == [new] * 4
    listener.close()
    assert (scene.relay._by_id, scene.relay._by_name) == ({}, {})


# Renamed


NEW = SpaceName("new")
NEW_NAMES = ["new", "new.knot", "new.alice.eu.knot", str(BACKEND_ID)]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_renamed(order: tuple[int, ...]) -> None:
    """All connections of a renamed space serve under the new name, the last one first; then nothing is left of it."""
    scene = Scene()
    scene.relay = Relay(stock_plane())
    lines = [cast("ServerConnection", name) for name in "abc"]
    listeners = [scene.relay.register(endpoint(line)) for line in lines]
    scene.relay.change(BACKEND_ID, NEW, HOME)
    left = list(lines)
    for number in order:
        assert [served_by(scene, host) for host in NEW_NAMES] == [left[-1]] * 4
        assert [served_by(scene, host) for host in NAMES[:-1]] == [None] * 3
        listeners[number].close()
        left.remove(lines[number])
    assert (scene.relay._by_id, scene.relay._by_name) == ({}, {})


def test_renamed_back_and_forth() -> None:
    """A space that has its name back is reached by it, and by no other."""
    scene = Scene()
    for name in (NEW, BACKEND) * 3:
        scene.relay.change(BACKEND_ID, name, HOME)
    assert [served_by(scene, host) for host in NAMES] == [NOBODY] * 4
    assert [served_by(scene, host) for host in NEW_NAMES[:-1]] == [None] * 3


def test_name_that_was_passed_on() -> None:
    """When the name of a renamed space has gone to another, either is reached by its own, whichever is heard of first."""
    other = SpaceId.new()
    line = cast("ServerConnection", "other")
    for takes_over_first in (True, False):
        scene = Scene()
        scene.relay.register(endpoint(line, name=SpaceName("other"), space_id=other))
        news = [(other, BACKEND), (BACKEND_ID, NEW)]
        for space_id, name in news if takes_over_first else reversed(news):
            scene.relay.change(space_id, name, HOME)
        assert [served_by(scene, host) for host in NAMES[:-1]] == [line] * 3
        assert [served_by(scene, host) for host in NEW_NAMES] == [NOBODY] * 4


def test_renamed_unheard_of(scene: Scene) -> None:
    """A renamed space that is not relayed to leaves nothing here."""
    scene.relay.change(SpaceId.new(), NEW, HOME)
    assert [served_by(scene, host) for host in (*NAMES, "new")] == [NOBODY] * 4 + [None]


# How much


def test_connections_are_counted_by_owner(scene: Scene) -> None:
    """One owner may have so many at a time, and another as many beside them; who has ended makes room."""
    scene.relay.register(endpoint(owner=BOB, space_id=SpaceId.new()))
    nears = [scene.relay.request(NOBODY, agent(), CAS, NOTHING_REVOKED, "backend", 22)[0] for _ in range(RELAYED_MAX)]
    assert "too many" in scene.refusal(agent(), "backend")[1]
    assert scene.may(agent(BOB), "backend")
    nears[0].abort()
    assert scene.may(agent(), "backend")
    for near in nears:
        near.abort()
    assert len(scene.relay.channels) == 0
    assert scene.relay._accounts == {}


def test_nothing_new_at_the_end(scene: Scene) -> None:
    """Once the hub stops, nothing more is relayed."""
    scene.relay.stop_accepting()
    assert not scene.may(agent())


@on_both
async def test_windows_are_promised_by_owner(plane: DataPlane) -> None:
    """All windows of one owner come out of one budget, which is part of the hub's; another owner has their own."""
    with Stage(plane) as stage:
        stage.relay.register(endpoint(server(stage.far), owner=BOB, space_id=SpaceId.new()))
        before = plane.budget.left
        budgets = [stage.ask(client)[1].budget for client in (agent(), agent(), agent(BOB))]
        assert budgets[0] is budgets[1]
        assert budgets[0] is not budgets[2]
        spent = [HELD_MAX - budget._own_left for budget in (budgets[0], budgets[2])]
        assert all(spent)
        assert plane.budget.left == before - sum(spent)


@on_both
async def test_many_windows_fit(plane: DataPlane) -> None:
    """However many are relayed for an owner, the hub has not promised to hold much more than the bound."""
    with Stage(plane) as stage:
        passages = [stage.ask(agent())[1] for _ in range(RELAYED_MAX)]
        held = HELD_MAX - passages[0].budget._own_left
        assert HELD_MAX // 2 < held < HELD_MAX + RELAYED_MAX * 2 * 32 * 1024


# From the first packet to the last


class Stage:
    """A caller, the relay and an agent. At the end nothing may be left of what was relayed."""

    def __init__(self, plane: DataPlane) -> None:
        self.plane = plane
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        self.before = self.plane.budget.left, descriptors()
        self.near, self.far = (self.stack.enter_context(fake_connection(self.plane)) for _ in range(2))
        self.relay = Relay(self.plane)
        self.relay.register(endpoint(server(self.far)))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        if error[0] is None:
            assert len(self.relay.channels) == 0
            assert self.relay._accounts == {}
            assert (self.plane.budget.left, descriptors()) == self.before
            assert self.plane._pool._taken == 0

    def ask(self, client: ClientCertificate | None = None, host: str = "backend") -> tuple[Channel, Passage]:
        """A caller asks for a channel: the agent has been asked when this returns."""
        near, passage = self.relay.request(server(self.near), client or agent(), CAS, NOTHING_REVOKED, host, 22)
        near.process_open(PEERS, WINDOW, PACKET, cast("Opening", passage))
        return near, passage

    def asked(self, host: str = "backend") -> tuple[Channel, Channel]:
        """The same; gives the caller's channel and the agent's."""
        near, _ = self.ask(host=host)
        (far,) = self.far.channels
        return near, far

    def open(self) -> tuple[Channel, Channel]:
        """An open relayed connection."""
        near, far = self.asked()
        far.process_open_confirmation(PEERS, WINDOW, PACKET)
        assert self.near.said == ["confirmation"]
        return near, far

    async def say(self, *, near: list[str], far: list[str]) -> None:
        """Wait until caller and agent were sent exactly this, after the opening."""
        await becomes(lambda: self.near.said == ["confirmation", *near], PATIENCE, f"{self.near.said}")
        await becomes(lambda: self.far.said == ["open", *far], PATIENCE, f"{self.far.said}")


def server(connection: FakeConnection) -> ServerConnection:
    """What the relay takes it for."""
    return cast("ServerConnection", connection)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@on_both
async def test_agent_is_asked(plane: DataPlane) -> None:
    """The agent hears its own full name and port 22, as a forward that it has asked for; the caller waits meanwhile."""
    with Stage(plane) as stage:
        stage.asked()
        packet = SSHPacket(stage.far.asked)
        assert packet.get_string() == b"forwarded-tcpip"
        for _ in range(3):
            packet.get_uint32()
        assert (packet.get_string(), packet.get_uint32()) == (FULL_NAME.encode(), 22)
        assert stage.near.said == []


@on_both
async def test_renamed_agent_is_asked(plane: DataPlane) -> None:
    """An agent whose space was renamed since hears the name that it has registered: stock ssh knows no other."""
    with Stage(plane) as stage:
        stage.relay.change(BACKEND_ID, NEW, HOME)
        stage.asked(NEW)
        assert String(FULL_NAME) in stage.far.asked


@on_both
async def test_relayed_both_ways(plane: DataPlane) -> None:
    """What each says the other is sent, and each end behind the last byte."""
    with Stage(plane) as stage:
        near, far = stage.open()
        near.data(memoryview(b"there"))
        far.data(memoryview(b"back"))
        await stage.say(near=["data"], far=["data"])
        assert (bytes(stage.far.sent), bytes(stage.near.sent)) == (b"there", b"back")
        near.got_eof()
        await stage.say(near=["data"], far=["data", "eof"])
        far.got_eof()
        await stage.say(near=["data", "eof", "close"], far=["data", "eof", "close"])
        near.got_close()
        far.got_close()
        await becomes(lambda: len(stage.relay.channels) == 0, PATIENCE)


@on_both
async def test_agent_refuses(plane: DataPlane) -> None:
    """What the agent says against it is passed on with the space's name, and nothing is left of the attempt."""
    with Stage(plane) as stage:
        _, far = stage.asked()
        far.process_open_failure(2, "busy\n\x1b[31m", "en")
        assert stage.near.said == ["refusal"]
        code, reason = stage.near.answer[1:]
        assert code == asyncssh.OPEN_CONNECT_FAILED
        assert str(reason).startswith("backend: busy")
        assert "\n" not in str(reason)
        assert "\x1b" not in str(reason)
        assert len(stage.relay.channels) == 0


@on_both
async def test_agent_is_lost_before_it_answers(plane: DataPlane) -> None:
    """When the agent's connection is lost first, the caller hears that, and may come again."""
    with Stage(plane) as stage:
        stage.asked()
        stage.far.lose()
        assert stage.near.said == ["refusal"]
        assert "lost" in str(stage.near.answer[2])
        assert len(stage.relay.channels) == 0


@on_both
async def test_agent_is_gone_already(plane: DataPlane) -> None:
    """An agent whose connection takes no more channels is a refusal at once."""
    with Stage(plane) as stage:
        stage.far.too_many = True
        stage.ask()
        assert stage.near.said == ["refusal"]
        assert len(stage.relay.channels) == 0


@on_both
async def test_caller_takes_too_small_packets(plane: DataPlane) -> None:
    """A caller's channel that cannot be opened is over before the agent hears of it."""
    with Stage(plane) as stage:
        near, passage = stage.relay.request(server(stage.near), agent(), CAS, NOTHING_REVOKED, "backend", 22)
        with pytest.raises(asyncssh.ChannelOpenError):
            near.process_open(PEERS, WINDOW, 1, cast("Opening", passage))
        assert stage.far.said == []
        assert len(stage.relay.channels) == 0


@pytest.mark.parametrize("answer", ["opens", "refuses", "says nothing"])
@on_both
async def test_caller_vanishes(plane: DataPlane, answer: str) -> None:
    """A caller that is lost before the agent has answered leaves nothing behind once it has, or has been lost."""
    with Stage(plane) as stage:
        _, far = stage.asked()
        stage.near.lose()
        if answer == "opens":
            far.process_open_confirmation(PEERS, WINDOW, PACKET)
            assert stage.far.said == ["open", "close"]
            far.got_close()
        elif answer == "refuses":
            far.process_open_failure(2, "no", "en")
        else:
            stage.far.lose()
        assert len(stage.relay.channels) == 0


@on_both
async def test_agent_never_answers(plane: DataPlane) -> None:
    """A caller whose agent says nothing in time is refused; a late answer is taken back."""
    with Stage(plane) as stage:
        _, far = stage.asked()
        assert stage.far.expected == [far]
        far.abandon()
        assert stage.near.said == ["refusal"]
        far.process_open_confirmation(PEERS, WINDOW, PACKET)
        assert stage.far.said == ["open", "close"]
        far.got_close()


@on_both
async def test_who_is_gone_is_promised_nothing(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the caller has gone no window is held for its connections, whether the agent has answered, or ends its side, or not.

    Else an agent that says nothing would use up what the hub may promise to all owners.
    """
    monkeypatch.setattr(module, "END_SECONDS", 0.01)
    with Stage(plane) as stage:
        before = plane.budget.left
        stage.asked()
        stage.near.lose()
        assert plane.budget.left == before
    with Stage(plane) as stage:
        before = plane.budget.left
        stage.open()
        stage.near.lose()
        await becomes(lambda: plane.budget.left == before, 1, "the window is given back")
        assert stage.relay._accounts == {}


async def hears(connection: FakeConnection, word: str) -> None:
    await becomes(lambda: connection.said[-1] == word, PATIENCE)


@on_both
async def test_agent_that_does_not_end(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent has a while to end its side when the caller has gone, and is then told that it is over; so is a caller."""
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    for goes in ("near", "far"):
        with Stage(plane) as stage:
            stage.open()
            gone, stays = (stage.near, stage.far) if goes == "near" else (stage.far, stage.near)
            gone.lose()
            await hears(stays, "eof")
            assert len(stage.relay.channels) > 0
            await hears(stays, "close")
            assert (len(stage.relay.channels), stage.relay._accounts) == (0, {})


@on_both
async def test_slow_reader_is_bounded(plane: DataPlane) -> None:
    """For a caller that does not read, the hub holds a window's worth and what is on its way, and no more."""
    with Stage(plane) as stage:
        near, passage = stage.relay.request(server(stage.near), agent(), CAS, NOTHING_REVOKED, "backend", 22)
        near.process_open(PEERS, 0, PACKET, cast("Opening", passage))
        (far,) = stage.far.channels
        far.process_open_confirmation(PEERS, WINDOW, PACKET)
        assert far._window
        sent = 0
        while far._window.left:
            piece = bytes(min(far._window.left, PACKET))
            far.data(memoryview(piece))
            sent += len(piece)
            await asyncio.sleep(0)
        assert sent < 4 * far._window.size
        with pytest.raises(asyncssh.ProtocolError):
            far.data(memoryview(b"x"))
        near.adjust(10 * sent)
        await becomes(lambda: len(stage.near.sent) == sent, PATIENCE)


STEPS = ["data", "eof", "close", "abort", "lose", "adjust"]
scripts = st.lists(st.tuples(st.sampled_from(["near", "far"]), st.sampled_from(STEPS), st.booleans()), max_size=12)
"""Which side does what, and whether others have their turn before the next step."""


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(script=scripts, answer=st.integers(0, 3), patience=st.booleans())
def test_nothing_is_left(kind: str, script: list[tuple[str, str, bool]], answer: int, patience: bool) -> None:
    """Whatever caller and agent do in whatever order, once both are gone no channel, window, buffer or descriptor is held."""

    async def tell(plane: DataPlane) -> None:
        with Stage(plane) as stage:
            near, far = stage.asked()
            for number, (side, step, waits) in enumerate(script):
                if number == answer:
                    with suppress(asyncssh.ProtocolError):
                        far.process_open_confirmation(PEERS, WINDOW, PACKET)
                channel, connection = (near, stage.near) if side == "near" else (far, stage.far)
                with suppress(asyncssh.ProtocolError):
                    match step:
                        case "data":
                            channel.data(memoryview(b"x" * 1000))
                        case "eof":
                            channel.got_eof()
                        case "close":
                            channel.got_close()
                        case "adjust":
                            channel.adjust(1000)
                        case "abort":
                            channel.abort()
                        case _:
                            connection.lose()
                if waits:
                    await asyncio.sleep(0)
            if patience:
                far.abandon()

    run_on(kind, tell)


@on_both
async def test_drained_when_idle(plane: DataPlane) -> None:
    """To wait for the end of what is relayed is to wait until both channels are gone."""
    with Stage(plane) as stage:
        near, far = stage.open()
        waiting = asyncio.ensure_future(stage.relay.wait_idle())
        near.got_eof()
        far.got_eof()
        await stage.say(near=["eof", "close"], far=["eof", "close"])
        near.got_close()
        await asyncio.sleep(0)
        assert not waiting.done()
        far.got_close()
        async with asyncio.timeout(PATIENCE):
            await waiting
