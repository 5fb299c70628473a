"""Links, with targets and a relay that do as the test says: what is tried, what serves, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import asyncssh
import pytest

from knot_agent import links as module
from knot_agent.credentials import Credentials
from knot_agent.linklife import Path
from knot_agent.links import CONNECTING, Down, Link, Links, Up
from knot_agent.relaying import Relay
from knot_keys.certificates import CertificateRefused
from knot_keys.connections import ClientConnection, Credential
from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_keys.revocation import RevocationList
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.errors import NotFound, Unavailable
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import Target
from tests.support.planes import stock_plane
from tests.support.waiting import becomes
from tests.unit.knot_agent.conftest import PRINCIPAL, SPACE, SPACE_ID, Office

ONE, TWO = "10.0.0.1:2022", "10.0.0.2:2022"
HUB = Address("hub.example", 2222)
TARGET = Target(
    id=SpaceId.new(), name=SpaceName("backend"), owner=Owner("alice"), zone=Zone("eu"), addresses=[ONE], running=True
)
AWAY = TARGET.model_copy(update={"addresses": [], "running": False})


class FakeChannel:
    """A channel that nobody has answered; `asked` are the connections it was asked for on."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.owner = self
        self.unanswered = 0

    def ask(self, connection: FakeConnection, host: str, port: int) -> None:
        assert (host, port) == ("localhost", 3000)
        self.asked.append(connection)
        connection.idle.clear()
        connection.waiting.append(self)

    def withdraw(self) -> object:
        return self

    def channel_unanswered(self, channel: FakeChannel, sock: object) -> None:
        assert channel is sock is self
        self.unanswered += 1

    @property
    def real(self) -> Channel:
        return cast("Channel", self)


class FakeConnection:
    """A connection to the target, which the test may lose or have fall silent."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.tally = Tally()
        self.round_trip = 0.0
        self.lost = False
        self.host_certificate: Any = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.waiting: list[FakeChannel] = []
        self._closed = asyncio.Event()
        self._on_silence: Callable[[bool], None] = lambda silent: None

    def watch_silence(self, listener: Callable[[bool], None]) -> None:
        self._on_silence = listener

    def falls_silent(self, silent: bool = True) -> None:
        self._on_silence(silent)

    def unanswered(self) -> list[FakeChannel]:
        return self.waiting

    def abort(self) -> None:
        self.lost = True
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def wait_gone(self) -> None:
        await self._closed.wait()

    async def wait_idle(self) -> None:
        await self.idle.wait()


@dataclass
class World:
    """Who answers: `answers` are the addresses at which the target does, `relay` whether the hub relays to it."""

    answers: set[str] = field(default_factory=set)
    relay: bool = False
    located: Target | None = None
    """What the hub says where the target is; without it the hub is away."""
    gone: bool = False
    stuck: bool = False
    """Whether dialling takes for ever."""
    tried: list[str] = field(default_factory=list)
    made: list[FakeConnection] = field(default_factory=list)
    asked: int = 0

    async def connect(self, _plane: object, address: Address, *_: object, **__: object) -> ClientConnection:
        self.tried.append(str(address))
        if self.stuck:
            await asyncio.Event().wait()
        if str(address) not in self.answers:
            raise Unavailable(f"{address}: nobody is there")
        return self._made(str(address))

    async def log_in(self, _plane: object, sock: socket.socket, where: str, *_: object, **__: object) -> ClientConnection:
        sock.close()
        return self._made(where)

    async def open(self, space_id: SpaceId) -> socket.socket:
        assert space_id == TARGET.id
        self.tried.append("relay")
        if not self.relay:
            raise Unavailable("relay: no")
        return socket.socket()

    async def locate(self, space_id: SpaceId) -> Target:
        assert space_id == TARGET.id
        self.asked += 1
        if self.gone:
            raise NotFound
        if self.located is None:
            raise Unavailable
        return self.located

    @property
    def hub(self) -> Address:
        return HUB

    async def close(self) -> None:
        """There is nothing to close."""

    def _made(self, where: str) -> ClientConnection:
        self.made.append(FakeConnection(where))
        return cast("ClientConnection", self.made[-1])

    @property
    def alive(self) -> list[str]:
        """The connections that have not ended."""
        return [connection.address for connection in self.made if not connection.lost]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(module, "connect", made.connect)
    monkeypatch.setattr(module, "log_in", made.log_in)
    monkeypatch.setattr(module, "HEAD_START", 0.001)
    monkeypatch.setattr(module, "RELAY_HEAD_START", 0.002)
    return made


@pytest.fixture
def credentials(office: Office) -> Credentials:
    key, host = new_key("agent"), new_key("host")
    now = time.time()
    return Credentials(office.membership(), office.certified(key, 3600, now), office.host(host, 3600, now))


@contextlib.asynccontextmanager
async def linked(world: World, credentials: Credentials, target: Target = TARGET) -> AsyncIterator[Link]:
    """A link; every connection of it has ended at the end, and none of its tasks is left."""
    link = Link(stock_plane(), target, credentials, world.locate, cast("Relay", world))
    try:
        yield link
    finally:
        await link.close()
    assert world.alive == []
    assert not len(link._tasks)


async def up(link: Link, path: Path) -> FakeConnection:
    """Wait until the link is up by this path; gives its connection."""
    await becomes(lambda: isinstance(link.state, Up) and link.state.path == path, what=f"{path}, but {link.state}")
    assert isinstance(link.state, Up)
    return cast("FakeConnection", link.state.connection)


DIRECT, OTHER, RELAY = Path("direct", ONE), Path("direct", TWO), Path("relay", str(HUB))


# Getting a connection


async def test_direct(world: World, credentials: Credentials) -> None:
    """The target's address is tried, and what is wanted is asked for on the connection."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        heard: list[object] = []
        link.on_state.add(lambda: heard.append(link.state))
        assert link.state is CONNECTING
        channel = FakeChannel()
        assert not link.carry(channel.real, Port(3000))
        connection = await up(link, DIRECT)
        assert heard == [link.state]
        assert link.carry(channel.real, Port(3000))
        assert channel.asked == [connection]
        assert connection.tally is link.tally
        assert world.tried == [ONE]


async def test_hub_knows_better(world: World, credentials: Credentials) -> None:
    """What is known is tried first, and then the hub asked where the target is, once; what it says is passed on."""
    world.answers = {TWO}
    world.located = TARGET.model_copy(update={"addresses": [TWO]})
    async with linked(world, credentials) as link:
        heard: list[Target] = []
        link.on_target = heard.append
        connection = await up(link, OTHER)
        assert heard == [world.located]
        connection.abort()
        await becomes(lambda: len(world.made) == 2)
        await up(link, OTHER)
        assert (world.tried, world.asked) == ([ONE, TWO, TWO], 1)


async def test_what_worked_comes_first(world: World, credentials: Credentials) -> None:
    """Of several addresses the one that has worked is tried first from then on."""
    world.answers = {TWO}
    both = TARGET.model_copy(update={"addresses": [ONE, TWO]})
    async with linked(world, credentials, both) as link:
        (await up(link, OTHER)).abort()
        await becomes(lambda: len(world.made) == 2)
        assert link.target.addresses == [TWO, ONE]
        link.update(both)
        assert link.target.addresses == [TWO, ONE]


async def test_relay_where_nothing_else_works(world: World, credentials: Credentials) -> None:
    """A target that cannot be dialled is reached by the relay; then direct paths alone are tried, and taken."""
    world.relay, world.located = True, TARGET
    async with linked(world, credentials) as link:
        connection = await up(link, RELAY)
        await becomes(lambda: world.tried.count(ONE) == 2)
        assert world.tried.count("relay") == 1
        world.answers = {ONE}
        link.update(TARGET)
        await up(link, DIRECT)
        await becomes(lambda: connection.lost)
        assert world.tried.count("relay") == 1


async def test_nothing_works(world: World, credentials: Credentials) -> None:
    """When no path works the link says what each attempt has met, and is tried again."""
    world.located = TARGET
    async with linked(world, credentials) as link:
        await becomes(lambda: isinstance(link.state, Down) and "nobody is there" in link.state.reason)
        assert isinstance(link.state, Down)
        assert "relay: no" in link.state.reason
        world.answers = {ONE}
        link.look_again()
        await up(link, DIRECT)


async def test_target_that_does_not_run(world: World, credentials: Credentials) -> None:
    """Of a target that is not running that is the reason, and the addresses that were known are tried nevertheless."""
    async with linked(world, credentials) as link:
        world.located = AWAY
        link.update(AWAY)
        await becomes(lambda: link.state == Down("the target is not running"))
        assert link.target.addresses == [ONE]
        link.update(TARGET.model_copy(update={"addresses": []}))
        assert link.target.addresses == []


async def test_without_a_certificate(world: World, office: Office) -> None:
    """Without a valid certificate nothing is dialled; with one it is, at once."""
    world.answers = {ONE}
    nothing = Credential(new_key("test"))
    credentials = Credentials(office.membership(), nothing, nothing)
    async with linked(world, credentials) as link:
        await becomes(lambda: isinstance(link.state, Down) and "no valid certificate" in link.state.reason)
        assert world.tried == []
        now = time.time()
        credentials.replace(office.certified(new_key("a"), 3600, now), office.host(new_key("b"), 3600, now))
        link.renew()
        await up(link, DIRECT)


async def test_deleted_target_is_asked_for_once(world: World, credentials: Credentials) -> None:
    """When the hub says that a target was deleted the link says so and asks no more, also with news pending."""
    world.gone = True
    locate = world.locate

    async def with_news(space_id: SpaceId) -> Target:
        await asyncio.sleep(0)
        link.update(TARGET)  # news that came while the hub was asked
        return await locate(space_id)

    link = Link(stock_plane(), TARGET, credentials, with_news, cast("Relay", world))
    await becomes(lambda: link.state == Down("target gone", gone=True))
    for _ in range(100):
        await asyncio.sleep(0)
    assert (world.asked, world.tried) == (1, [ONE])
    await link.close()


async def test_told_that_the_target_was_deleted(world: World, credentials: Credentials) -> None:
    """What the hub has said of a target that does not run is forgotten when it says that the target was deleted."""
    async with linked(world, credentials) as link:
        world.located = AWAY
        link.update(AWAY)
        await becomes(lambda: link.state == Down("the target is not running"))
        world.gone = True
        link.update(AWAY.model_copy(update={"gone": True}))
        await becomes(lambda: link.state == Down("target gone", gone=True))


async def test_silent_hub(world: World, credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the hub says nothing each attempt ends soon, so that the known address is tried again and again."""
    monkeypatch.setattr(module, "LOCATE_PATIENCE", 0.01)
    world.relay = True
    link = Link(stock_plane(), TARGET, credentials, lambda _: asyncio.Event().wait(), cast("Relay", world))  # type: ignore[arg-type, return-value]
    await becomes(lambda: isinstance(link.state, Down) and "the server does not say" in link.state.reason)
    world.answers = {ONE}
    await up(link, DIRECT)
    assert "relay" not in world.tried
    await link.close()


async def test_news_while_dialling(world: World, credentials: Credentials) -> None:
    """When the target has moved what is being dialled is given up, and the new address tried."""
    world.stuck = True
    async with linked(world, credentials) as link:
        await becomes(lambda: ONE in world.tried)
        world.stuck, world.answers = False, {TWO}
        link.update(TARGET.model_copy(update={"addresses": [TWO]}))
        await up(link, OTHER)


async def test_fault_is_no_end(world: World, credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is logged, and the link tries again."""

    async def faulty(*_: object, **__: object) -> ClientConnection:
        raise ZeroDivisionError("fault")

    monkeypatch.setattr(module, "connect", faulty)
    async with linked(world, credentials) as link:
        await becomes(lambda: isinstance(link.state, Down) and link.state is not CONNECTING)
        monkeypatch.setattr(module, "connect", world.connect)
        world.answers = {ONE}
        link.look_again()
        await up(link, DIRECT)


async def test_refused_certificate(world: World, credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that does not let us in is named with that as the reason."""

    async def refusing(*_: object, **__: object) -> ClientConnection:
        raise asyncssh.PermissionDenied("no")

    monkeypatch.setattr(module, "connect", refusing)
    async with linked(world, credentials) as link:
        await becomes(lambda: isinstance(link.state, Down) and f"{ONE}: the target refused our" in link.state.reason)


# Waiting


async def test_waiting_for_it(world: World, credentials: Credentials) -> None:
    """Whoever waits goes on when the link is up, or is told why not when time is up."""
    async with linked(world, credentials) as link:
        waiting = asyncio.ensure_future(link.wait_up(10))
        with pytest.raises(Unavailable, match=r"backend: .*nobody is there"):
            await link.wait_up(0.05)
        world.answers = {ONE}
        link.look_again()
        await waiting


async def test_waiting_for_what_is_gone(world: World, credentials: Credentials) -> None:
    """Whoever waits when the target turns out to be deleted is told at once."""
    async with linked(world, credentials) as link:
        waiting = asyncio.ensure_future(link.wait_up(3600))
        await becomes(lambda: isinstance(link.state, Down) and link.state is not CONNECTING)
        world.gone = True
        link.look_again()
        async with asyncio.timeout(5):
            with pytest.raises(Unavailable, match="backend: target gone"):
                await waiting
            with pytest.raises(Unavailable, match="backend: target gone"):
                await link.wait_up(3600)


# Losing, doubting and replacing it


async def test_lost(world: World, credentials: Credentials) -> None:
    """A lost connection is replaced, and the link says that it is down in between."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        seen: list[object] = []
        link.on_state.add(lambda: seen.append(link.state))
        first.abort()
        await becomes(lambda: len(world.made) == 2)
        assert seen[0] == Down("connection lost")
        assert await up(link, DIRECT) is not first


async def test_lost_connection_carries_nothing(world: World, credentials: Credentials) -> None:
    """In the moment in which a connection is lost, and the link does not know yet, nothing is asked for on it."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        (await up(link, DIRECT)).lost = True
        assert not link.carry(FakeChannel().real, Port(3000))
        world.made[0].lost = False


async def test_silent_peer_is_escaped(world: World, credentials: Credentials) -> None:
    """While the peer is silent another path is sought; what it has not answered is then carried there, the rest stays."""
    world.answers, world.located = {ONE}, TARGET
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        channel = FakeChannel()
        link.carry(channel.real, Port(3000))
        world.answers, world.relay = set(), True
        first.falls_silent()
        await up(link, RELAY)
        assert channel.unanswered == 1
        assert not first.lost
        first.idle.set()
        await becomes(lambda: first.lost)


async def test_heard_in_time(world: World, credentials: Credentials) -> None:
    """A peer that is heard again keeps its link, and nothing is handed over."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        channel = FakeChannel()
        link.carry(channel.real, Port(3000))
        world.stuck = True
        first.falls_silent()
        await becomes(lambda: len(world.tried) > 1)
        first.falls_silent(False)
        assert await up(link, DIRECT) is first
        assert channel.unanswered == 0


async def test_renewed(world: World, credentials: Credentials) -> None:
    """With a new certificate a new connection takes over; the old one ends with its last channel, and hands nothing over."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        channel = FakeChannel()
        link.carry(channel.real, Port(3000))
        link.renew()
        await becomes(lambda: len(world.made) == 2)
        assert await up(link, DIRECT) is world.made[1]
        assert (first.lost, channel.unanswered) == (False, 0)
        first.idle.set()
        await becomes(lambda: first.lost)
        assert world.alive == [ONE]


async def test_expired(world: World, credentials: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the certificate of a connection ends it serves nothing new, and goes on for what is open."""
    world.answers = {ONE}
    monkeypatch.setattr(module, "expires_at", lambda certificate: time.time() + 0.05)
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        link.carry(FakeChannel().real, Port(3000))
        world.stuck = True
        await becomes(lambda: isinstance(link.state, Down) and "expired" in link.state.reason)
        assert not link.carry(FakeChannel().real, Port(3000))
        assert not first.lost
        first.idle.set()
        await becomes(lambda: first.lost)


async def test_revoked_host(world: World, credentials: Credentials, office: Office) -> None:
    """A connection to a host whose certificate was revoked is cut at once, whatever goes over it."""
    world.answers = {ONE}
    key = new_key("host")
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        first.host_certificate = office.host(key, 3600, time.time()).certificate
        link.carry(FakeChannel().real, Port(3000))
        link.cut_revoked()
        assert not first.lost
        credentials.revoke(RevocationList.of([], [fingerprint(key)]))
        link.cut_revoked()
        assert first.lost


# Renamed


CERTIFIED = Target(id=SPACE_ID, name=SPACE, owner=PRINCIPAL.owner, zone=PRINCIPAL.zone, addresses=[ONE], running=True)
"""The target that the office certifies hosts for."""


@pytest.mark.parametrize("name", [str(SPACE), "renamed"])
async def test_target_under_any_name(world: World, credentials: Credentials, office: Office, name: str) -> None:
    """The target is told by its id: it may have been renamed, and be certified under the earlier or the later name."""
    shown = office.host(new_key("host"), 3600, time.time(), name).certificate
    assert shown
    async with linked(world, credentials, CERTIFIED) as link:
        link._check(shown)


async def test_host_ca_that_was_retired(world: World, credentials: Credentials, office: Office) -> None:
    """A host certificate is taken while its CA is trusted, beside the next one; once that CA is retired, it is refused."""
    shown, following = office.host(new_key("host"), 3600, time.time()).certificate, public_line(new_key("next host CA"))
    assert shown
    before = credentials.membership
    async with linked(world, credentials, CERTIFIED) as link:
        credentials.enter(before.model_copy(update={"host_cas": [following, *before.host_cas]}))
        link._check(shown)
        credentials.enter(before.model_copy(update={"host_cas": [following]}))
        with pytest.raises(CertificateRefused, match="unknown CA"):
            link._check(shown)


@pytest.mark.parametrize("change", [{"id": SpaceId.new()}, {"owner": Owner("bob")}, {"zone": Zone("us")}])
async def test_other_space_of_the_same_name(
    world: World, credentials: Credentials, office: Office, change: dict[str, object]
) -> None:
    """A space that has the target's name and not its id, owner or zone is another one."""
    shown = office.host(new_key("host"), 3600, time.time()).certificate
    assert shown
    async with linked(world, credentials, CERTIFIED.model_copy(update=change)) as link:
        with pytest.raises(CertificateRefused, match="it is for "):
            link._check(shown)


async def test_new_name(world: World, credentials: Credentials) -> None:
    """A new name is taken over and passed on, by news or by itself; the connection stays, and nothing is dialled anew."""
    world.answers = {ONE}
    links = Links(stock_plane(), credentials, world.locate, cast("Relay", world))
    heard: list[str] = []
    links.on_target = lambda target: heard.append(target.name)
    link = links.hold(TARGET)
    connection = await up(link, DIRECT)
    links.update(TARGET.model_copy(update={"name": SpaceName("second")}))
    links.rename({TARGET.id: SpaceName("third"), SpaceId.new(): SpaceName("other")})
    assert heard == ["second", "third"]
    assert link.target == TARGET.model_copy(update={"name": SpaceName("third")})
    await asyncio.sleep(0.01)
    assert (await up(link, DIRECT) is connection, world.tried) == (True, [ONE])
    await links.close()


# The end


async def test_finishing(world: World, credentials: Credentials) -> None:
    """A link that nobody holds ends with its last channel, and is not made anew."""
    world.answers = {ONE}
    async with linked(world, credentials) as link:
        first = await up(link, DIRECT)
        link.carry(FakeChannel().real, Port(3000))
        finishing = asyncio.ensure_future(link.finish())
        await asyncio.sleep(0.01)
        assert not finishing.done()
        first.idle.set()
        await finishing
        assert (world.alive, len(world.made)) == ([], 1)


async def test_closing_while_dialling(world: World, credentials: Credentials) -> None:
    """A link that ends in the middle of an attempt leaves nothing of it."""
    world.stuck, world.located = True, TARGET
    async with linked(world, credentials):
        await becomes(lambda: len(world.tried) == 2)


async def test_one_link_for_a_target(world: World, credentials: Credentials) -> None:
    """Everybody who holds a target shares one link, which ends when the last one gives it back."""
    world.answers = {ONE}
    links = Links(stock_plane(), credentials, world.locate, cast("Relay", world))
    one, same = links.hold(TARGET), links.hold(TARGET)
    assert one is same
    assert links.targets() == [TARGET.id]
    await up(one, DIRECT)
    links.release(one)
    assert world.alive == [ONE]
    links.release(same)
    await becomes(lambda: world.alive == [])
    assert links.targets() == []
    again = links.hold(TARGET)
    assert again is not one
    await links.close()
    assert world.alive == []


async def test_many_orders_say_nothing_new(world: World, credentials: Credentials) -> None:
    """A thousand orders to one target do not dial a thousand times."""
    world.stuck = True
    links = Links(stock_plane(), credentials, world.locate, cast("Relay", world))
    link = links.hold(TARGET)
    await becomes(lambda: ONE in world.tried)
    for _ in range(1000):
        links.hold(TARGET)
    await asyncio.sleep(0.01)
    assert world.tried.count(ONE) == 1
    moved = TARGET.model_copy(update={"addresses": [TWO]})
    links.hold(moved)
    await becomes(lambda: TWO in world.tried)
    assert link.target == moved
    await links.close()


async def test_news_reach_their_link(world: World, credentials: Credentials) -> None:
    """News of a target reach its link, certificates and revocations every one; of targets without a link they are nothing."""
    world.answers = {ONE}
    links = Links(stock_plane(), credentials, world.locate, cast("Relay", world))
    link = links.hold(TARGET)
    await up(link, DIRECT)
    links.update(TARGET.model_copy(update={"id": SpaceId.new(), "addresses": [TWO]}))
    assert link.target == TARGET
    links.update(TARGET.model_copy(update={"addresses": [ONE, TWO]}))
    assert link.target.addresses == [ONE, TWO]
    credentials.replace(credentials.identity, credentials.host)
    await becomes(lambda: len(world.made) == 2)
    await links.close()


async def test_changes_are_told(world: World, credentials: Credentials) -> None:
    """How many links there are by mode is known, and every change of it is told: a link that comes, is up, is lost, or goes."""
    seen: list[dict[str, int]] = []
    links = Links(stock_plane(), credentials, world.locate, cast("Relay", world))
    links.on_change = lambda: seen.append(dict(links.modes()))
    world.answers = {ONE}
    link = links.hold(TARGET)
    assert seen == [{"down": 1}]
    connection = await up(link, DIRECT)
    assert seen[-1] == {"direct": 1}
    world.answers = set()
    connection.abort()
    await becomes(lambda: seen[-1] == {"down": 1})
    links.release(link)
    assert seen[-1] == {}
    await links.close()
