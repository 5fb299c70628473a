"""The hub's doorkeeper: who enters, and who may be relayed to under which name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

import asyncssh
import pytest
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import read_certificate
from knot_keys.connections import ServerConnection
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import new_key
from knot_server.hub import doorkeeper
from knot_server.hub.doorkeeper import REGISTRATIONS_MAX, HubDoorkeeper, Joiner, Lobby
from knot_server.hub.relay import Relay
from knot_server.store.schema import Space
from knot_server.usecases.lastseen import LastSeen
from knot_server.usecases.registration import Registrations
from knot_ssh.names import Principal, SpaceId, SpaceName
from tests.support.planes import stock_plane
from tests.support.waiting import becomes
from tests.unit.knot_server.conftest import ALICE, EU, World

KEY, OTHER_KEY = new_key("enrolled"), new_key("other")
NAME = "backend.alice.eu.knot"


class FakeLine:
    """A connection, as far as a doorkeeper cares."""

    def __init__(self) -> None:
        self.lost = False
        self.closed = 0

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "192.0.2.1", 1

    def count_try(self) -> None:
        """It is the first."""

    def stop_reading(self, _why: str) -> None:
        """Nothing comes."""

    go_on_reading = stop_reading

    def close(self) -> None:
        self.closed += 1

    def disconnect(self, _code: int, _reason: str) -> None:
        self.closed += 1

    def abort(self) -> None:
        self.lost = True


@dataclass
class Hub:
    """The lobby, and who is at the door. `space` is alice's `backend`, joined with KEY."""

    world: World
    lobby: Lobby
    space: Space
    last_seen: LastSeen

    @property
    def relay(self) -> Relay:
        return self.lobby.relay

    def door(self, line: FakeLine | None = None) -> HubDoorkeeper:
        """A doorkeeper of a new connection."""
        keeper = HubDoorkeeper(self.lobby)
        keeper.connection = cast("ServerConnection", line or FakeLine())
        self.lobby.keepers.add(keeper)
        return keeper

    def member(self, line: FakeLine | None = None, space: Space | None = None) -> HubDoorkeeper:
        """One of a connection on which the enrolled key of a space was proved."""
        keeper = self.door(line)
        keeper.entered(str((space or self.space).id), KEY)
        return keeper

    def caller(self, line: FakeLine | None = None) -> HubDoorkeeper:
        """One of a connection on which a client certificate was."""
        keeper = self.door(line)
        keeper.entered("knot", self.certificate())
        return keeper

    def certificate(self, key: asyncssh.SSHKey = KEY) -> SSHOpenSSHCertificate:
        """A client certificate of `backend` for this key."""
        identity = Identity.agent(Principal(ALICE.owner, EU), SpaceName("backend"), self.space.space_id)
        return read_certificate(self.lobby.authority.certify_client(key.convert_to_public(), identity, 3600).line)

    def host_certificate(self) -> SSHOpenSSHCertificate:
        identity = HostIdentity(Principal(ALICE.owner, EU), SpaceName("backend"), self.space.space_id)
        return read_certificate(self.lobby.authority.certify_host(KEY.convert_to_public(), identity, 3600).line)

    def is_reachable(self, name: str = NAME) -> bool:
        """Whether alice would be relayed to a space."""
        return self.relay._find(ALICE.owner, name) is not None


async def asked(keeper: HubDoorkeeper, host: str = NAME, port: int = 22) -> asyncssh.SSHListener | None:
    """What comes of a request to be relayed to."""
    answer = keeper.server_requested(host, port)
    return await answer if asyncio.iscoroutine(answer) else answer or None


@pytest.fixture
async def hub(world: World) -> AsyncIterator[Hub]:
    space, token = await world.invited(ALICE, "backend")
    await world.enrolment.redeem(token.id, KEY.convert_to_public())
    last_seen = LastSeen(world.database)
    registrations = Registrations(world.roster, world.forwarding, last_seen)
    lobby = Lobby(world.authority, world.enrolment, world.revocations, Relay(stock_plane()), registrations, {})
    yield Hub(world, lobby, space, last_seen)
    await registrations.close()
    await last_seen.close()


# Who enters


async def test_enrolled_key_enters_under_its_space(hub: Hub) -> None:
    """Under a space's id its enrolled key alone enters."""
    other = await hub.world.space(ALICE, "other")
    keeper = hub.door()
    assert await keeper.welcomes(str(hub.space.id), KEY.convert_to_public())
    assert not await keeper.welcomes(str(hub.space.id), OTHER_KEY.convert_to_public())
    assert not await keeper.welcomes(str(other.id), KEY.convert_to_public())
    assert not await keeper.welcomes(str(SpaceId.new()), KEY.convert_to_public())


async def test_key_that_is_revoked_while_the_store_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the store still knew as the enrolled one does not enter when it has been revoked since."""
    ask = hub.lobby.enrolment.enrolled_key

    async def slow(space_id: SpaceId) -> asyncssh.SSHKey | None:
        found = await ask(space_id)
        await hub.world.spaces.delete(ALICE, "backend")
        return found

    monkeypatch.setattr(hub.lobby.enrolment, "enrolled_key", slow)
    assert not await hub.door().welcomes(str(hub.space.id), KEY.convert_to_public())


async def test_who_joins_does_not_stay(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shows a join token, used up or not, has a moment to join in, and is sent away then."""
    monkeypatch.setattr(doorkeeper, "JOIN_SECONDS", 0)
    token = await hub.world.token(ALICE, hub.space)
    line = FakeLine()
    keeper = hub.door(line)
    keeper.begin_auth("join")
    assert await keeper.validate_password("join", str(token))
    await becomes(lambda: line.lost)


async def test_certificate_does_not_enter_under_a_space(hub: Hub) -> None:
    """Under a space's id no certificate enters, not even one for the enrolled key."""
    assert not await hub.door().welcomes(str(hub.space.id), hub.certificate())


async def test_client_certificate_enters_under_any_other_name(hub: Hub) -> None:
    """Under every other name a good client certificate enters, and neither a plain key nor a host certificate."""
    keeper = hub.door()
    for login in ("knot", "root", "", "backend", "Join", "x" * 10_000, "\0"):
        assert await keeper.welcomes(login, hub.certificate())
        assert not await keeper.welcomes(login, KEY.convert_to_public())
        assert not await keeper.welcomes(login, hub.host_certificate())


async def test_deleted_space_is_out(hub: Hub) -> None:
    """Once its space was deleted neither the enrolled key nor its certificates enter, and who is in is sent away."""
    issued = await hub.world.certified(hub.space, KEY.convert_to_public(), OTHER_KEY)
    certificate = read_certificate(issued.client)
    lines = [FakeLine(), FakeLine(), FakeLine()]
    hub.member(lines[0])
    hub.door(lines[1]).entered("knot", certificate)
    hub.door(lines[2])

    def drop() -> None:
        for keeper in list(hub.lobby.keepers):
            keeper.leave_if_revoked()

    hub.world.revocations.on_change.append(drop)
    await hub.world.spaces.delete(ALICE, "backend")
    assert not await hub.door().welcomes(str(hub.space.id), KEY.convert_to_public())
    assert not await hub.door().welcomes("knot", certificate)
    await becomes(lambda: [line.closed or line.lost for line in lines] == [True, 1, False])


# Who may do what


async def test_nobody_relays_without_a_certificate(hub: Hub) -> None:
    """Who has not logged in, or did so as an agent or with a join token, opens no channel."""
    joiner = hub.door()
    joiner._visitor = Joiner("token")
    await asked(hub.member())
    for keeper in (hub.door(), joiner, hub.member()):
        with pytest.raises(asyncssh.ChannelOpenError) as caught:
            keeper.connection_requested(NAME, 22, "127.0.0.1", 1)
        assert caught.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
    channel, _ = hub.caller().connection_requested(NAME, 22, "127.0.0.1", 1)
    channel.abort()


async def test_only_members_are_relayed_to(hub: Hub) -> None:
    """Who has not logged in, or did so with a certificate or a join token, is not relayed to."""
    joiner = hub.door()
    joiner._visitor = Joiner("token")
    for keeper in (hub.door(), joiner, hub.caller()):
        assert await asked(keeper) is None
    assert not hub.is_reachable()


async def test_nothing_else_is_forwarded(hub: Hub) -> None:
    """There are no unix sockets and tunnels, and callers hear that there are no sessions."""
    for keeper in (hub.member(), hub.caller(), hub.door()):
        assert not keeper.unix_connection_requested("/tmp/x")
        assert not keeper.unix_server_requested("/tmp/x")
        assert not keeper.tun_requested(0)
        assert not keeper.tap_requested(0)
    for keeper in (hub.caller(), hub.door()):
        with pytest.raises(asyncssh.ChannelOpenError, match="no shell, commands or files"):
            keeper.session_requested()


# Registering


async def test_own_name(hub: Hub) -> None:
    """An agent is relayed to under its own full name, until it takes that back."""
    listener = await asked(hub.member())
    assert listener
    assert hub.is_reachable()
    assert hub.is_reachable("backend")
    listener.close()
    await listener.wait_closed()
    assert not hub.is_reachable()


PLACES = [
    *((host, 22) for host in ("", "localhost", "0.0.0.0", "backend", "backend.knot", NAME + ".", NAME.upper(), "x" * 100_000)),
    *((host, 22) for host in ("other.alice.eu.knot", "backend.bob.eu.knot", "backend.alice.us.knot")),
    *((NAME, port) for port in (0, 23, 2**32 - 1)),
    ("", 0),
]
"""What an agent of `backend` must not be relayed to under."""


async def test_no_other_name_or_port(hub: Hub) -> None:
    """No agent is relayed to under another's name, a name that is none, or on another port."""
    await hub.world.space(ALICE, "other")
    for host, port in PLACES:
        assert await asked(hub.member(), host, port) is None
    assert (hub.relay._by_id, hub.relay._by_name) == ({}, {})


async def test_asking_for_too_much(hub: Hub) -> None:
    """A connection that asks for other names again and again is not even looked up any more, whatever it asks for."""
    keeper = hub.member()
    for number in range(REGISTRATIONS_MAX):
        assert await asked(keeper, f"other-{number}") is None
    assert keeper.server_requested(NAME, 22) is False
    assert await asked(hub.member())


async def test_own_id_serves_as_well_as_the_name(hub: Hub) -> None:
    """Who asks for the space's id is relayed to, and hears of that id when a channel is opened, also after a rename."""
    renamed(hub)
    assert await asked(hub.member(), str(hub.space.id))
    await hub.world.renaming.rename(ALICE, "backend", SpaceName("new"))
    assert hub.is_reachable("new")
    assert [endpoint.registered for endpoint in hub.relay._by_id[hub.space.space_id]] == [str(hub.space.id)]


async def test_connection_that_is_lost_meanwhile(hub: Hub) -> None:
    """A connection that is lost while the store is asked is not relayed to: nobody would take it out again."""
    line = FakeLine()
    answer = hub.member(line).server_requested(NAME, 22)
    line.lost = True
    assert await answer is None
    assert not hub.is_reachable()


async def test_space_that_is_deleted(hub: Hub) -> None:
    """A deleted space's agent, should it still be connected, is not relayed to."""
    keeper = hub.member()
    await hub.world.spaces.delete(ALICE, "backend")
    assert await asked(keeper) is None


async def test_store_that_does_not_answer(hub: Hub) -> None:
    """When the store fails the agent is refused, and may ask again."""
    keeper = hub.member()
    hub.world.sql("ALTER TABLE spaces RENAME TO elsewhere")
    assert await asked(keeper) is None
    hub.world.sql("ALTER TABLE elsewhere RENAME TO spaces")
    assert await asked(keeper)


async def test_registering_twice(hub: Hub) -> None:
    """A connection that asks again and again is relayed to once: when it is lost nothing of it is left.

    asyncssh knows one listener for each name and port, the last it was given, and closes that alone.
    """
    keeper = hub.member()
    known = None
    for _ in range(5):
        known = await asked(keeper) or known
    assert known
    assert hub.is_reachable()
    known.close()
    assert not hub.is_reachable()
    assert hub.relay._by_id == {}


# An ordinary sshd

SSHD_KEY, HOST_KEY = new_key("registration"), new_key("host")


async def sshd(hub: Hub, line: FakeLine | None = None) -> HubDoorkeeper:
    """A connection with the registration key of an sshd that has taken the place of `backend`'s agent."""
    token = await hub.world.token(ALICE, hub.space)
    await hub.world.enrolment.redeem(token.id, SSHD_KEY.convert_to_public(), HOST_KEY.convert_to_public())
    keeper = hub.door(line)
    keeper.entered(str(hub.space.id), SSHD_KEY)
    return keeper


async def test_sshd_runs_while_it_is_registered(hub: Hub) -> None:
    """A space with an sshd runs from its first registration until its last has ended; an agent's registration is none."""
    runs = hub.world.roster.runs
    assert await asked(hub.member())
    assert not runs(hub.space.space_id)
    first = await asked(await sshd(hub), str(hub.space.id))
    assert runs(hub.space.space_id)
    second = await asked(await sshd(hub), NAME)
    assert first
    assert second
    first.close()
    assert runs(hub.space.space_id)
    second.close()
    assert not runs(hub.space.space_id)
    assert not hub.world.roster._registered


async def test_who_hears_of_an_sshd(hub: Hub) -> None:
    """Who has forwards to it hears when it registers and when it leaves; it counts as seen at both."""
    source = await hub.world.space(ALICE, "source")
    keeper = await sshd(hub)
    async with hub.world.running(source) as agent:
        present = hub.world.roster.get(source.space_id)
        assert present
        hub.world.roster.watch(present, [hub.space.space_id])
        listener = await asked(keeper)
        assert listener
        await agent.hears(1)
        listener.close()
        await agent.hears(2)
        assert [(target.name, target.running, target.addresses) for target in agent.targets] == [
            ("backend", True, []),
            ("backend", False, []),
        ]
    await hub.last_seen.close()
    assert hub.world.sql("SELECT last_seen > 0 FROM spaces WHERE id = ?", hub.space.id) == [(1,)]


async def test_sshd_that_comes_and_goes_without_end(hub: Hub) -> None:
    """A registration that flaps while somebody is slow to hear is told of once more when they have, and not each time."""
    source = await hub.world.space(ALICE, "source")
    keepers = [await sshd(hub) for _ in range(20)]
    async with hub.world.running(source) as agent:
        present = hub.world.roster.get(source.space_id)
        assert present
        hub.world.roster.watch(present, [hub.space.space_id])
        async with hub.world.roster.lock(hub.space.space_id):
            for keeper in keepers:
                listener = await asked(keeper)
                assert listener
                listener.close()
        await agent.hears(1)
        assert await asked(await sshd(hub))
        await agent.hears(2)
        assert [target.running for target in agent.targets] == [False, True]


async def test_sshd_of_a_deleted_space(hub: Hub) -> None:
    """Deleting the space sends its sshd away; that it leaves is then told to nobody as if it might come back."""
    line = FakeLine()
    keeper = await sshd(hub, line)
    listener = await asked(keeper)
    hub.world.revocations.on_change.append(keeper.leave_if_revoked)
    await hub.world.spaces.delete(ALICE, "backend")
    await becomes(lambda: line.lost)
    assert listener
    listener.close()
    await hub.lobby.registrations.close()
    assert not await hub.door().welcomes(str(hub.space.id), SSHD_KEY.convert_to_public())


# Renamed


def renamed(hub: Hub) -> None:
    """The relay follows renames, as in a running hub."""
    hub.world.renaming.on_change.append(hub.relay.change)


NEW_NAME = "new.alice.eu.knot"


async def test_registration_follows_the_space(hub: Hub) -> None:
    """A space that is renamed is relayed to under its new name, with nothing asked anew, and under the old one no more."""
    renamed(hub)
    listener = await asked(hub.member())
    await hub.world.renaming.rename(ALICE, "backend", SpaceName("new"))
    assert [hub.is_reachable(name) for name in (NAME, "backend")] == [False, False]
    assert [hub.is_reachable(name) for name in (NEW_NAME, "new", "new.knot", str(hub.space.id))] == [True] * 4
    assert listener
    listener.close()
    assert (hub.relay._by_id, hub.relay._by_name) == ({}, {})


async def test_agent_that_does_not_know_yet(hub: Hub) -> None:
    """An agent that asks for the name it had is refused; on the same connection it may ask for the new one then."""
    renamed(hub)
    await hub.world.renaming.rename(ALICE, "backend", SpaceName("new"))
    keeper = hub.member()
    assert await asked(keeper, NAME) is None
    assert await asked(keeper, NEW_NAME)
    assert hub.is_reachable(NEW_NAME)


@pytest.mark.parametrize("name", [NAME, NEW_NAME])
async def test_renamed_while_the_store_is_asked(hub: Hub, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks while the space is renamed is relayed to under the new name, or refused; never under the old one."""
    renamed(hub)
    ask = hub.lobby.enrolment.space

    async def slow(space_id: SpaceId) -> Space | None:
        found = await ask(space_id)
        monkeypatch.undo()
        await hub.world.renaming.rename(ALICE, "backend", SpaceName("new"))
        return found

    monkeypatch.setattr(hub.lobby.enrolment, "space", slow)
    assert bool(await asked(hub.member(), name)) == (name == NEW_NAME)
    assert not hub.is_reachable(NAME)
    assert hub.is_reachable(NEW_NAME) == (name == NEW_NAME)
