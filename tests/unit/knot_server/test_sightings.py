"""What an agent may say for the audit record: a hostile one speaks for nobody else, and fills no store."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from knot_keys.certificates import read_certificate, serial_of
from knot_keys.keyfiles import new_key
from knot_server.actor import Actor
from knot_server.hub.sightings import EACH_AGENT, Sightings
from knot_server.store.schema import Space
from knot_server.usecases import audit as auditing
from knot_ssh.names import Port, SpaceId
from knot_ssh.wire import SEEN_MAX, AuditReport, ForwardSeen, LinkSeen, RefusalSeen
from tests.unit.knot_server.conftest import ALICE, BOB, EU, World


class Agent:
    """An agent of alice's, and what is recorded of what it says."""

    def __init__(self, world: World, space: Space) -> None:
        self.world = world
        self.space = space
        self.actor = Actor(ALICE.owner, zone=EU, space=space.space_id, space_name=space.name, address="10.0.0.7")
        self.sightings = Sightings(world.database, world.audit, space.space_id)

    async def says(self, *seen: Any, left_out: int = 0) -> list[dict[str, Any]]:
        """Tell this over the wire; gives what is recorded of it."""
        before = len(self.records())
        said = AuditReport(seen=list(seen), left_out=left_out).model_dump_json()
        await self.sightings.take(self.actor, AuditReport.model_validate_json(said))
        await self.world.audit.flush()
        return self.records()[before:]

    def records(self) -> list[dict[str, Any]]:
        rows = self.world.sql(
            "SELECT event, actor, owner, space_id, fields FROM audit WHERE fields LIKE '%reported%' ORDER BY id"
        )
        return [dict(zip(("event", "actor", "owner", "space_id"), row, strict=False)) | json.loads(str(row[4])) for row in rows]


@pytest.fixture
async def agent(world: World) -> Agent:
    return Agent(world, await world.space(ALICE, "backend"))


async def serial(world: World, actor: Actor, name: str) -> tuple[SpaceId, str]:
    """A space of this owner, and the serial of its agent's certificate."""
    space, token = await world.invited(actor, name)
    key = new_key("agent")
    await world.enrolment.redeem(token.id, key)
    issued = await world.certified(space, key, new_key("host"))
    return space.space_id, str(serial_of(read_certificate(issued.client)))


async def test_links(agent: Agent) -> None:
    """Whose certificate it was is looked up in the store: the agent says its serial alone."""
    source, number = await serial(agent.world, ALICE, "frontend")
    [record] = await agent.says(LinkSeen(serial=number, mode="direct", address="10.0.0.9", ago=7.5))
    assert (record["event"], record["actor"], record["source_id"]) == ("link opened", "agent frontend", source)
    assert (record["space_id"], record["owner"], record["seconds_ago"]) == (agent.space.id, "alice", 7.5)


async def test_certificates_of_others(agent: Agent) -> None:
    """A serial that another owner's certificate has, or none, is nobody's; an agent cannot have others named."""
    _, bobs = await serial(agent.world, BOB, "frontend")
    for number in (bobs, "0", "9" * 20):
        [record] = await agent.says(LinkSeen(serial=number, mode="relay", address="relay"))
        assert (record["actor"], record["owner"]) == ("a stranger", "alice")
        assert record.keys().isdisjoint({"key_id", "source_id"})


async def test_certificates_of_hosts(agent: Agent) -> None:
    """Nobody logs in with a host's certificate, so that none is whose: an agent cannot have its owner named by its own."""
    await serial(agent.world, ALICE, "frontend")
    for (number,) in agent.world.sql("SELECT serial FROM certificates WHERE key_id LIKE 'host/%'"):
        [record] = await agent.says(LinkSeen(serial=str(number), mode="direct", address="10.0.0.9"))
        assert record["actor"] == "a stranger"


async def test_who_is_refused_a_channel(agent: Agent) -> None:
    """Who is refused a channel has logged in, and is named; who is refused a login has only shown a certificate."""
    _, own = await serial(agent.world, ALICE, "frontend")
    channel = RefusalSeen(
        door="channel", reason="address not allowed", address="10.0.0.9", serial=own, host="10.0.0.1", port=80
    )
    login = RefusalSeen(door="endpoint", reason="revoked", address="10.0.0.9", serial=own)
    told = await agent.says(channel, login, channel.model_copy(update={"serial": None}))
    assert [record["actor"] for record in told] == ["agent frontend", "a stranger", "a stranger"]


async def test_reasons(agent: Agent) -> None:
    """Reasons are ours, or `other`; the record is about the agent's own space, whatever it says."""
    said = [RefusalSeen(door="endpoint", reason=reason, address="10.0.0.9") for reason in ("revoked", "\x1b[2J\n")]
    known, odd = await agent.says(*said)
    assert (known["reason"], odd["reason"]) == ("revoked", "other")
    assert {known["space_id"], odd["space_id"]} == {agent.space.id}


async def test_targets_of_others(agent: Agent) -> None:
    """A forward of the agent's file is recorded with its target's name, if that is of the same owner and zone."""
    own, others = await agent.world.space(ALICE, "frontend"), await agent.world.space(BOB, "frontend")
    seen = [
        ForwardSeen(what="forward made", by="file", local_port=Port(1), remote_port=Port(2), target_id=target.space_id)
        for target in (own, others)
    ]
    known, unknown = await agent.says(*seen)
    assert (known["target"], known["target_id"]) == ("frontend", own.id)
    assert unknown.keys().isdisjoint({"target", "target_id"})


async def test_flood(agent: Agent) -> None:
    """An agent that tells without end has as much recorded as its allowance, and the rest is counted."""
    number, batches = 0, 40
    for _ in range(batches):
        seen = [LinkSeen(serial=str(number), mode="direct", address="10.0.0.9")] * SEEN_MAX
        await agent.sightings.take(agent.actor, AuditReport(seen=seen))
    agent.world.audit.leave_out(0)
    await agent.world.audit.close()
    recorded = len(agent.records())
    assert recorded <= min(EACH_AGENT.burst, auditing.SIGHTS_BY_SOURCE.burst) + 60
    ((left_out,),) = agent.world.sql("SELECT sum(json_extract(fields, '$.count')) FROM audit WHERE event = 'left out'")
    assert left_out == batches * SEEN_MAX - recorded


@pytest.mark.parametrize(
    "said",
    [
        {"seen": [{"what": "link opened", "serial": "x", "mode": "direct", "address": ""}]},
        {"seen": [{"what": "link opened", "serial": "1", "mode": "direct", "address": "x" * 65}]},
        {"seen": [{"what": "link opened", "serial": "1", "mode": "direct", "address": "", "ago": -1}]},
        {"seen": [{"what": "link opened", "serial": "1", "mode": "direct", "address": "", "owner": "bob"}]},
        {"seen": [{"what": "user deleted"}]},
        {"seen": [{"what": "refused", "door": "http", "reason": "revoked", "address": ""}]},
        {"seen": [{"what": "refused", "door": "channel", "reason": "revoked", "address": "", "port": 1 << 32}]},
        {"seen": [{"what": "link opened", "serial": "1", "mode": "direct", "address": ""}] * (SEEN_MAX + 1)},
        {"seen": [], "left_out": -1},
    ],
)
def test_nonsense(said: dict[str, Any]) -> None:
    """What is no such report is refused as a whole."""
    with pytest.raises(ValidationError):
        AuditReport.model_validate(said)
