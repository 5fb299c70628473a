"""When agents were last here."""

from __future__ import annotations

import time

from knot_server.usecases.lastseen import LastSeen
from knot_ssh.names import SpaceId
from tests.support.waiting import becomes
from tests.unit.knot_server.conftest import ALICE, World


async def test_notes_are_written_soon(world: World) -> None:
    """What is noted is in the store some moments later, for many spaces in one transaction; one that is gone does no harm."""
    spaces = [await world.space(ALICE, f"space-{number}") for number in range(3)]
    last_seen = LastSeen(world.database)
    before = int(time.time())
    for space_id in [*(space.space_id for space in spaces), SpaceId.new()]:
        last_seen.note(space_id)
    await becomes(lambda: _moments(world) >= [before] * 3)
    await last_seen.close()


async def test_notes_are_written_at_the_end(world: World) -> None:
    """Nothing that was noted is lost when the server ends in order."""
    space = await world.space(ALICE, "frontend")
    last_seen = LastSeen(world.database)
    last_seen.note(space.space_id)
    await last_seen.close()
    assert _moments(world)[0] >= int(time.time()) - 5


async def test_store_that_fails(world: World) -> None:
    """A store that does not take them costs the notes, and nothing else."""
    space = await world.space(ALICE, "frontend")
    world.break_store("UPDATE", table="spaces")
    last_seen = LastSeen(world.database)
    last_seen.note(space.space_id)
    await last_seen.close()
    assert _moments(world) == [0]


def _moments(world: World) -> list[int]:
    return [int(str(moment or 0)) for (moment,) in world.sql("SELECT last_seen FROM spaces")]
