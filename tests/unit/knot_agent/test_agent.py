"""The agent as a whole: what the hub orders comes after what it said at the welcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from knot_agent.agent import Agent
from knot_agent.home import Home
from knot_agent.settings import AgentSettings
from knot_ssh.addresses import Address
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import ForwardOrder, Revoked, StopRequest, Target, Welcome
from tests.support.planes import stock_plane
from tests.support.ports import free_ports
from tests.support.services import free_port
from tests.unit.knot_agent.conftest import Office

TOKEN = "0123456789ab"
TARGET = Target(id=SpaceId.new(), name=SpaceName("other"), owner=Owner("alice"), zone=Zone("eu"), addresses=[], running=False)


def order(port: int) -> ForwardOrder:
    return ForwardOrder(local_port=Port(port), target=TARGET, remote_port=Port(3000), persistent=True)


def welcome(office: Office, *forwards: ForwardOrder) -> Welcome:
    return Welcome(membership=office.membership(), forwards=list(forwards), revoked=Revoked(serials=[], keys=[]), spread=0)


@asynccontextmanager
async def joined(office: Office, folder: Path) -> AsyncIterator[Agent]:
    """An agent that has joined, and whose hub is the test."""
    home = Home(folder)
    home.key_for(TOKEN)
    home.joined(TOKEN, office.membership())
    agent = Agent(stock_plane(), home, Address("127.0.0.1", 1), office.membership(), AgentSettings(), None)
    try:
        yield agent
    finally:
        await agent._forwards.close()
        await agent._links.close()
        home.close()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_orders_come_after_the_welcome(office: Office, tmp_path: Path) -> None:
    """An order that overtakes the welcome is carried out after it: the welcome, which knows nothing of it, does not undo it."""
    port = free_port()
    async with joined(office, tmp_path / "agent") as agent:
        agent._hello("127.0.0.1")
        starting = asyncio.ensure_future(agent._start(order(port)))
        await turns()
        assert not starting.done()
        await agent._welcomed(welcome(office))
        await starting
        assert agent._forwards.get(Port(port)) == order(port)
        assert agent._memory.forwards == [order(port)]


async def test_stops_come_after_the_welcome(office: Office, tmp_path: Path) -> None:
    """A stop that overtakes the welcome is carried out after it: what the welcome still names does not come back."""
    port = free_port()
    async with joined(office, tmp_path / "agent") as agent:
        await agent._forwards.restore([order(port)])
        agent._hello("127.0.0.1")
        stopping = asyncio.ensure_future(agent._stop(StopRequest(local_port=Port(port))))
        await turns()
        assert not stopping.done()
        await agent._welcomed(welcome(office, order(port)))
        await stopping
        assert agent._forwards.get(Port(port)) is None


async def test_names_come_after_the_welcome(office: Office, tmp_path: Path) -> None:
    """News of names that overtake the welcome count for more than what it says: it was written before them."""
    port = free_port()
    async with joined(office, tmp_path / "agent") as agent:
        await agent._forwards.restore([order(port)])
        agent._hello("127.0.0.1")
        target = asyncio.ensure_future(agent._target_changed(TARGET.model_copy(update={"name": SpaceName("third")})))
        own = asyncio.ensure_future(agent._membership_changed(office.membership("renamed")))
        await turns()
        said = welcome(office, order(port)).model_copy(update={"names": {TARGET.id: SpaceName("second")}})
        await agent._welcomed(said)
        assert agent._forwards.list().forwards[0].space == "second"
        await target
        await turns()
        assert agent._forwards.list().forwards[0].space == "third"
        assert agent._credentials.membership == office.membership("renamed")
        own.cancel()  # it waits for a certificate


async def test_stopped_while_the_welcome_was_on_its_way(office: Office, tmp_path: Path) -> None:
    """What was stopped alone after the hello stays stopped, and is told at the next one; what was told is not told again."""
    early, late = free_ports(2)
    async with joined(office, tmp_path / "agent") as agent:
        await agent._forwards.restore([order(early), order(late)])
        await agent._forwards.stop_alone(StopRequest(local_port=Port(early)))
        said = agent._hello("127.0.0.1").stopped
        assert [int(gone.local_port) for gone in said] == [early]
        await agent._forwards.stop_alone(StopRequest(local_port=Port(late)))
        await agent._welcomed(welcome(office, order(late)))
        assert agent._forwards.list().forwards == []
        assert [int(gone.local_port) for gone in agent._hello("127.0.0.1").stopped] == [late]
