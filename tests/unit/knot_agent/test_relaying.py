"""Both ends of a relayed connection: what an agent asks of the hub, and what the hub asks of it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, cast

import asyncssh
import pytest
from asyncssh.packet import SSHPacket

from knot_agent import relaying as module
from knot_agent.credentials import Credentials
from knot_agent.relaying import Inlet, Relay
from knot_keys.connections import ClientConnection, Credential, WrongHost
from knot_keys.keyfiles import new_key
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel, Opening
from knot_ssh.dataplane.limits import PACKET
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import Unavailable
from knot_ssh.names import SpaceId
from tests.support.reactors import on_both
from tests.support.waiting import becomes
from tests.unit.knot_agent.conftest import Office
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, PEERS, WINDOW, FakeConnection, fake_connection

TARGET = SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
HUB = Address("hub.example", 2222)


class FakeHub(FakeConnection):
    """A connection to the hub, which says nothing by itself."""

    def __init__(self, plane: DataPlane, sock: socket.socket) -> None:
        super().__init__(plane, sock)
        self.lost = self.is_silent = False

    @property
    def is_idle(self) -> bool:
        return not self.channels

    async def wait_idle(self) -> None:
        await becomes(lambda: self.is_idle, PATIENCE)

    def abort(self) -> None:
        self.lost = True
        self.lose()

    async def wait_gone(self) -> None:
        assert self.lost


@dataclass
class Scene:
    """A relay, and the hub's connections that it has made."""

    plane: DataPlane
    credentials: Credentials
    made: list[FakeHub] = field(default_factory=list)
    error: Exception | None = None
    sockets: list[socket.socket] = field(default_factory=list)

    async def connect(self, plane: DataPlane, address: Address, login: str, *_: Any, **__: Any) -> ClientConnection:
        assert (address, login) == (HUB, "knot")
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        self.sockets.append(socket.socket())
        self.made.append(FakeHub(plane, self.sockets[-1]))
        return cast("ClientConnection", self.made[-1])

    async def asked(self, number: int = 0, count: int = 1) -> list[Channel]:
        """Wait until a connection was asked for so many channels; gives those that wait for an answer."""
        await becomes(lambda: len(self.made) > number and len(self.made[number].channels) == count, PATIENCE)
        return list(self.made[number].channels)


@asynccontextmanager
async def relaying(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Relay, Scene]]:
    """At the end every connection has ended, and every window was given back."""
    before = plane.budget.left
    nothing = Credential(new_key("test"))
    scene = Scene(plane, Credentials(office.membership(), nothing, nothing))
    monkeypatch.setattr(module, "connect", scene.connect)
    relay = Relay(plane, HUB, scene.credentials)
    try:
        yield relay, scene
    finally:
        await relay.close()
        for sock in scene.sockets:
            sock.close()
    assert all(hub.lost for hub in scene.made)
    assert plane.budget.left == before


def opening(relay: Relay) -> asyncio.Task[socket.socket]:
    return asyncio.ensure_future(relay.open(TARGET))


@on_both
async def test_opening(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is asked for the space, port 22; the socket that comes of it leads into the channel."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        (channel,) = await scene.asked()
        packet = SSHPacket(scene.made[0].asked)
        assert packet.get_string() == b"direct-tcpip"
        for _ in range(3):
            packet.get_uint32()
        assert (packet.get_string(), packet.get_uint32()) == (TARGET.encode(), 22)
        assert not task.done()
        channel.process_open_confirmation(PEERS, WINDOW, PACKET)
        with closing(await task) as sock:
            sock.send(b"there")
            await becomes(lambda: bytes(scene.made[0].sent) == b"there", PATIENCE)
            channel.data(memoryview(b"back"))
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(sock, 100) == b"back"
        await becomes(lambda: scene.made[0].said[-1] == "eof", PATIENCE)


@on_both
async def test_refused(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub says against it is the reason."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        (channel,) = await scene.asked()
        channel.process_open_failure(2, "no such space", "en")
        with pytest.raises(Unavailable, match=r"^relay: no such space$"):
            await task
        assert channel.is_gone


@on_both
async def test_hub_is_lost(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the hub is lost before it has answered that is the reason, and the next attempt connects anew."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        await scene.asked()
        scene.made[0].abort()
        with pytest.raises(Unavailable, match=r"^relay: the hub was lost$"):
            await task
        task = opening(relay)
        (channel,) = await scene.asked(1)
        channel.process_open_confirmation(PEERS, WINDOW, PACKET)
        (await task).close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (asyncssh.PermissionDenied("no"), "the hub refused our certificate"),
        (WrongHost("that is not the host we want"), "that is not the host we want"),
        (Unavailable("nobody is there"), "nobody is there"),
    ],
)
@on_both
async def test_no_hub(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    """A hub that is away, is another, or does not let us in is told as such; the next attempt connects anew."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        scene.error = error
        with pytest.raises(Unavailable, match=reason):
            await relay.open(TARGET)
        scene.error = None
        task = opening(relay)
        (channel,) = await scene.asked()
        channel.process_open_failure(1, "no", "en")
        with pytest.raises(Unavailable):
            await task


@on_both
async def test_no_descriptors(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors it says so, as of any other obstacle."""

    def exhausted() -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, "Too many open files")

    async with relaying(plane, office, monkeypatch) as (relay, _):
        monkeypatch.setattr(module, "joined_pair", exhausted)
        with pytest.raises(Unavailable, match="too many open files"):
            await relay.open(TARGET)
        await asyncio.sleep(0)


@on_both
async def test_closed_at_once(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay that is closed in the very moment in which its connection is made ends that, too."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await relay.close()
        assert scene.made[0].lost
        with pytest.raises(Unavailable):
            await task


@pytest.mark.parametrize("answer", ["opens", "refuses", "nothing"])
@on_both
async def test_given_up(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Who is not interested any more leaves nothing behind, whatever the hub still answers."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        (channel,) = await scene.asked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert channel.sock is None
        if answer == "opens":
            channel.process_open_confirmation(PEERS, WINDOW, PACKET)
            assert scene.made[0].said == ["open", "close"]
            channel.got_close()
        elif answer == "refuses":
            channel.process_open_failure(1, "no", "en")
        assert channel.is_gone == (answer != "nothing")


@on_both
async def test_one_connection_for_all(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """All channels go over one connection, also those that are wanted while it is being made; not over a silent one."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        tasks = [opening(relay) for _ in range(5)]
        channels = await scene.asked(count=5)
        scene.made[0].is_silent = True
        tasks.append(opening(relay))
        channels += await scene.asked(1)
        for channel in channels:
            channel.process_open_confirmation(PEERS, WINDOW, PACKET)
        for task in tasks:
            (await task).close()
        assert len(scene.made) == 2


@on_both
async def test_new_certificate(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a new certificate the next channel goes over a new connection; what goes through the old one still does."""
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        tasks = [opening(relay)]
        (first,) = await scene.asked()
        first.process_open_confirmation(PEERS, WINDOW, PACKET)
        await becomes(tasks[0].done, PATIENCE)
        scene.credentials.replace(scene.credentials.identity, scene.credentials.host)
        tasks.append(opening(relay))
        (second,) = await scene.asked(1)
        second.process_open_confirmation(PEERS, WINDOW, PACKET)
        assert not first.is_gone
        for task in tasks:
            (await task).close()


@on_both
async def test_idle_connection_ends(plane: DataPlane, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection ends once nothing goes through it, and not before; it gets a while for its first channel."""
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    async with relaying(plane, office, monkeypatch) as (relay, scene):
        task = opening(relay)
        (channel,) = await scene.asked()
        channel.process_open_confirmation(PEERS, WINDOW, PACKET)
        sock = await task
        await asyncio.sleep(0.1)
        assert not scene.made[0].lost
        sock.close()
        await becomes(lambda: scene.made[0].said[-1] == "eof", PATIENCE)
        channel.got_eof()
        channel.got_close()
        await becomes(lambda: scene.made[0].lost, PATIENCE)
        task = opening(relay)
        (channel,) = await scene.asked(1)
        channel.process_open_failure(1, "no", "en")
        with pytest.raises(Unavailable):
            await task


# The target's side


@on_both
async def test_inlet(plane: DataPlane) -> None:
    """A channel that the hub opens is joined to a socket, which the endpoint gets; each end is the other's."""
    got: list[socket.socket] = []
    with fake_connection(plane) as hub:
        inlet = Inlet(plane, cast("ClientConnection", hub), got.append)
        inlet.channel.process_open(PEERS, WINDOW, PACKET, cast("Opening", inlet))
        assert hub.said == ["confirmation"]
        with got[0] as sock:
            sock.send(b"hello")
            await becomes(lambda: bytes(hub.sent) == b"hello", PATIENCE)
            inlet.channel.got_eof()
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
        await becomes(lambda: hub.said[-2:] == ["eof", "close"], PATIENCE)
        inlet.channel.got_close()
        await becomes(lambda: inlet.channel.is_gone, PATIENCE)


@on_both
async def test_inlet_without_descriptors(plane: DataPlane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors the hub is told so, and nothing is given to the endpoint."""

    def exhausted() -> tuple[socket.socket, socket.socket]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(module, "joined_pair", exhausted)
    got: list[socket.socket] = []
    with fake_connection(plane) as hub:
        inlet = Inlet(plane, cast("ClientConnection", hub), got.append)
        inlet.channel.process_open(PEERS, WINDOW, PACKET, cast("Opening", inlet))
        assert hub.said == ["refusal"]
        assert hub.answer[1:] == (asyncssh.OPEN_RESOURCE_SHORTAGE, "too many open files")
        assert inlet.channel.is_gone
    assert got == []
