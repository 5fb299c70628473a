"""An agent's hello: it is entered in the roster and welcomed, or nothing has happened."""

from __future__ import annotations

from typing import Any, cast

import pytest

from knot_keys.connections import ServerConnection
from knot_keys.keyfiles import new_key
from knot_server.hub.control import Control
from knot_server.hub.doorkeeper import Member, Session
from knot_server.usecases.lastseen import LastSeen
from knot_ssh.errors import StoreUnavailable
from knot_ssh.names import Port
from knot_ssh.rpc import Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Hello, StoppedForward, Welcome
from tests.support.waiting import becomes
from tests.unit.conversations import serving, streams
from tests.unit.knot_server.conftest import ALICE, Line, World


async def test_agent_that_cannot_be_welcomed(world: World) -> None:
    """While the store fails nobody is displaced by a newcomer; once it works again the newcomer takes the place."""
    space, token = await world.invited(ALICE, "frontend")
    key = new_key("agent").convert_to_public()
    await world.enrolment.redeem(token.id, key)
    gone = StoppedForward(local_port=Port(1), target_id=space.space_id, remote_port=Port(1))
    hello = Hello(version="1", addresses=[], stopped=[gone])
    last_seen, tasks = LastSeen(world.database), Tasks()
    control = Control(
        world.database, last_seen, world.roster, world.enrolment, world.forwarding, world.revocations, world.audit
    )
    async with world.running(space), streams() as (ours, theirs), streams() as (again, others):
        before = world.roster.get(space.space_id)
        for reader, writer in (theirs, others):
            member = Member(space.space_id, key)
            opened = Session(cast("ServerConnection", Line()), cast(Any, reader), cast(Any, writer), cast(Any, None))
            tasks.start(control.serve_member(member, opened))
        world.sql(f"INSERT INTO forwards VALUES ('{space.id}', 1, '{space.id}', 'backend', 1, '')")
        world.break_store("DELETE")
        peer = Peer(*ours, {})
        async with serving(peer):
            with pytest.raises(StoreUnavailable):
                await peer.call("agent.hello", hello)
        assert world.roster.get(space.space_id) is before
        world.sql("DROP TRIGGER no_DELETE")
        peer = Peer(*again, {})
        async with serving(peer):
            Welcome.model_validate(await peer.call("agent.hello", hello))
            assert world.roster.get(space.space_id) not in (None, before)
        await becomes(lambda: not len(tasks))
    await last_seen.close()
