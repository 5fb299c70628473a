"""The audit record: with the change or not at all, complete or with the number of what is missing."""

from __future__ import annotations

import contextlib
import json

import pytest

from knot_server.usecases import audit as auditing
from knot_server.usecases.audit import Audit, Event
from knot_ssh.errors import StoreUnavailable
from tests.unit.knot_server.conftest import World


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
