"""The audit record: with the change or not at all, complete or with the number of what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from dataclasses import dataclass, replace

import pytest

from knot_server.actor import Actor, Grant, Scope
from knot_server.usecases import audit as auditing
from knot_server.usecases.audit import Audit, Event
from knot_ssh.buckets import KEYS_MAX
from knot_ssh.errors import BadInput, StoreUnavailable
from knot_ssh.names import Owner, SpaceId
from tests.unit.knot_server.conftest import ALICE, World


@dataclass
class Clock:
    """A clock that stands until it is set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def count(world: World, event: str) -> int:
    """How many of these there are."""
    return [found for found, _ in events(world)].count(event)


def events(world: World) -> list[tuple[str, dict[str, object]]]:
    """What stands in the record."""
    return [(str(event), json.loads(str(fields))) for event, fields in world.sql("SELECT event, fields FROM audit ORDER BY id")]


async def test_with_the_change_or_not_at_all(world: World) -> None:
    """A record is committed with the transaction that it is about, and taken back with it."""
    with contextlib.suppress(ZeroDivisionError):
        async with world.database.writing() as session:
            world.audit.record(session, Event.REVOKED, "alice", key="taken back")
            raise ZeroDivisionError
    async with world.database.writing() as session:
        world.audit.record(session, Event.REVOKED, "alice", key="kept")
    assert ("revoked", {"key": "kept"}) in events(world)
    assert ("revoked", {"key": "taken back"}) not in events(world)


async def test_notes_survive_a_store_that_fails(world: World) -> None:
    """What could not be written is written later, in its order, and what there was no room for is counted."""
    audit = Audit(world.database)
    for number in range(auditing.QUEUE_MAX + 3):
        audit.note(Event.REFUSED, "stranger", number=number)
    world.break_store("INSERT", table="audit")
    with pytest.raises(StoreUnavailable):
        await audit.flush()
    world.sql("DROP TRIGGER no_INSERT")
    await audit.flush()
    refused = [fields["number"] for event, fields in events(world) if event == "refused"]
    assert refused == list(range(auditing.QUEUE_MAX))
    assert ("left out", {"count": 3}) in events(world)


async def test_hostile_names(world: World) -> None:
    """Whatever a name holds, the record is one line of ASCII."""
    world.audit.note(Event.REFUSED, "stranger", host='a"\n\x1b[2J\u202e\x00')
    await world.audit.flush()
    ((line,),) = world.sql("SELECT fields FROM audit WHERE event = 'refused'")
    assert str(line).isascii()
    assert str(line).isprintable()
    assert json.loads(str(line)) == {"host": 'a"\n\x1b[2J\u202e\x00'}


async def test_only_added_to(world: World) -> None:
    """The store refuses to change a record."""
    world.audit.note(Event.REFUSED, "stranger", reason="true")
    await world.audit.flush()
    with pytest.raises(sqlite3.IntegrityError, match="only added to"):
        world.sql("UPDATE audit SET fields = '{}'")
    assert ("refused", {"reason": "true"}) in events(world)


async def test_refusals_are_bounded_by_source(world: World) -> None:
    """One address has so many of its refusals recorded, the others are counted; another address is not concerned."""
    clock = Clock()
    audit = Audit(world.database, clock=clock)
    for _ in range(100):
        audit.refuse("http", "not_authenticated", "10.0.0.1")
    audit.refuse("http", "not_authenticated", "10.0.0.2")
    await audit.flush()
    most = int(auditing.REFUSALS_BY_SOURCE.burst)
    assert count(world, "refused") == most + 1
    assert ("left out", {"count": 100 - most}) in events(world)


async def test_refusals_are_bounded_in_all(world: World) -> None:
    """A flood from ever new addresses leaves so many records, and one in a minute that says how many it left out."""
    clock = Clock()
    audit = Audit(world.database, clock=clock)
    for second in range(120):
        clock.now += 1
        for number in range(50):
            audit.refuse("login", "unknown CA", f"2001:db8::{second:x}:{number:x}")
        await audit.flush()
    assert count(world, "refused") <= auditing.REFUSALS.burst + 120 * auditing.REFUSALS.rate
    assert count(world, "left out") <= 3
    await audit.close()
    told = sum(int(str(fields["count"])) for event, fields in events(world) if event == "left out")
    assert told + count(world, "refused") == 120 * 50


async def test_whose_it_is(world: World) -> None:
    """What is noted of a space alone concerns its owner; of a space that is not there, nobody."""
    space = await world.space(ALICE, "frontend")
    world.audit.refuse("login", "not the enrolled key", "10.0.0.1", space_id=space.id)
    world.audit.refuse("login", "not the enrolled key", "10.0.0.1", space_id="gone")
    await world.audit.flush()
    assert world.sql("SELECT owner FROM audit WHERE event = 'refused'") == [("alice",), (None,)]


async def test_tokens_once_an_hour(world: World) -> None:
    """The use of a token is recorded once in an hour for each address; what is remembered for that is bounded."""
    clock = Clock()
    audit = Audit(world.database, clock=clock)
    token = replace(ALICE, grant=Grant("5f0e", Scope.ALL), address="10.0.0.1")
    for _ in range(3):
        audit.used(token)
    audit.used(replace(token, address="10.0.0.2"))
    clock.now += 3600
    audit.used(token)
    await audit.flush()
    used = [fields["address"] for event, fields in events(world) if event == "token used"]
    assert used == ["10.0.0.1", "10.0.0.2", "10.0.0.1"]
    for number in range(KEYS_MAX + 5):
        audit.used(replace(token, grant=Grant(str(number), Scope.ALL)))
    assert len(audit._uses) == KEYS_MAX


async def test_long_words(world: World) -> None:
    """A text or list of any length, and half a surrogate pair, leave a record that is short and can be read everywhere."""
    world.audit.note(Event.REFUSED, "stranger", host="\ud800" + "x" * 100_000, names=["y" * 1000] * 1000)
    await world.audit.flush()
    ((line,),) = world.sql("SELECT fields FROM audit WHERE event = 'refused'")
    assert len(str(line)) < 20_000
    assert json.loads(str(line))["host"].encode()


async def test_a_change_at_the_agent_alone(world: World) -> None:
    """What an agent has done is recorded before it is answered; while the store fails it waits to be written."""
    await world.audit.write(Event.FORWARD_STOPPED, ALICE, local_port=1)
    assert ("forward stopped", {"local_port": 1}) in events(world)
    world.break_store("INSERT", table="audit")
    await world.audit.write(Event.FORWARD_STOPPED, ALICE, local_port=2)
    world.sql("DROP TRIGGER no_INSERT")
    await world.audit.flush()
    assert ("forward stopped", {"local_port": 2}) in events(world)


async def test_cancelled_while_writing(world: World) -> None:
    """A server that is stopped while it writes loses no note, and writes none twice."""
    for number in range(50):
        world.audit.note(Event.REFUSED, "stranger", number=number)
    writing = asyncio.ensure_future(world.audit.flush())
    await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await world.audit.close()
    assert [fields["number"] for event, fields in events(world) if event == "refused"] == list(range(50))


def test_no_user_is_called_like_the_others() -> None:
    """`the server`, `a stranger` and `agent frontend` are names that no user can have."""
    agent = Actor(Owner("alice"), space=SpaceId.new(), space_name="frontend")
    for name in (auditing.SERVER, auditing.STRANGER, str(agent)):
        with pytest.raises(BadInput):
            Owner(name)
