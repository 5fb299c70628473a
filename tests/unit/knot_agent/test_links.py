"""Links, as far as they can be told without a target: what the hub's answers make of them."""

from __future__ import annotations

import asyncio

from knot_agent.credentials import Credentials
from knot_agent.links import Down, Link
from knot_agent.relaying import Relay
from knot_keys.connections import Credential
from knot_keys.keyfiles import new_key
from knot_ssh.addresses import Address
from knot_ssh.errors import NotFound
from knot_ssh.names import Owner, SpaceId, SpaceName, Zone
from knot_ssh.wire import Target
from tests.support.planes import stock_plane
from tests.unit.knot_agent.conftest import Office

TARGET = Target(
    id=SpaceId.new(), name=SpaceName("gone"), owner=Owner("alice"), zone=Zone("eu"), addresses=["127.0.0.1:1"], running=True
)


async def test_deleted_target_is_asked_for_once(office: Office) -> None:
    """When the hub says that a target was deleted the link says so and asks no more, also with news pending."""
    asked = 0

    async def locate(space_id: SpaceId) -> Target:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        link.update(TARGET)  # news that came while the hub was asked
        raise NotFound

    nothing = Credential(new_key("test"))
    credentials = Credentials(office.membership(), nothing, nothing)
    link = Link(stock_plane(), TARGET, credentials, locate, Relay(stock_plane(), Address("127.0.0.1", 1), credentials))
    for _ in range(200):
        await asyncio.sleep(0)
    assert link.state == Down("target gone", gone=True)
    assert asked == 1
    await link.close()
