"""Who sees what of the audit record, and how it is paged."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from knot_server.actor import Actor
from knot_server.store.schema import Space
from knot_server.usecases.audit import Event
from knot_server.usecases.auditreading import Page, Wanted, read_audit
from knot_ssh.errors import NotFound
from knot_ssh.names import Owner, SpaceName
from tests.unit.knot_server.conftest import ALICE, BOB, ROOT, World


async def read(world: World, actor: Actor, **wanted: object) -> list[dict[str, object]]:
    return (await page(world, actor, **wanted)).records


async def page(world: World, actor: Actor, **wanted: object) -> Page:
    return await read_audit(world.database, actor, Wanted(**wanted))  # type: ignore[arg-type]


def owners(records: Sequence[dict[str, object]]) -> set[object]:
    return {record["owner"] for record in records}


@pytest.fixture
async def spaces(world: World) -> tuple[Space, Space]:
    """alice's and bob's, of one name."""
    return await world.space(ALICE, "frontend"), await world.space(BOB, "frontend")


async def test_rights(world: World, spaces: tuple[Space, Space]) -> None:
    """A user sees the records that concern them, whatever they ask for; an administrator sees all."""
    world.audit.refuse("http", "not_authenticated", "10.0.0.1")
    await world.audit.flush()
    assert owners(await read(world, ROOT)) == {"alice", "bob", None}
    assert owners(await read(world, BOB)) == {"bob"}
    assert await read(world, BOB, user=ALICE.owner) == []
    assert await read(world, BOB, space=spaces[0].id) == []
    assert await read(world, BOB, events=[Event.REFUSED]) == []


async def test_spaces(world: World, spaces: tuple[Space, Space]) -> None:
    """A name means one's own space; for an administrator the spaces of all, or of the user they ask for."""
    assert owners(await read(world, BOB, space="frontend")) == {"bob"}
    assert owners(await read(world, ROOT, space="frontend")) == {"alice", "bob"}
    assert owners(await read(world, ROOT, space="frontend", user=Owner("alice"))) == {"alice"}
    with pytest.raises(NotFound, match="by its id"):
        await read(world, BOB, space="nowhere")


async def test_names(world: World, spaces: tuple[Space, Space]) -> None:
    """A record says what the space was called then; a deleted one is found by its id."""
    await world.renaming.rename(ALICE, "frontend", SpaceName("web"))
    await world.spaces.delete(ALICE, "web")
    found = await read(world, ALICE, space=spaces[0].id)
    told = [(record["event"], record["space"]) for record in found]
    assert told == [("space made", "frontend"), ("token made", "frontend"), ("space changed", "web"), ("space deleted", "web")]


async def test_pages(world: World, spaces: tuple[Space, Space]) -> None:
    """Pages that follow each other hold every record once, in order; `last` is where to go on, also when none matched."""
    for number in range(25):
        world.audit.note(Event.REFUSED, "x", owner="alice" if number % 2 else "bob", number=number)
    await world.audit.flush()
    found, after = [], 0
    while (some := await page(world, ALICE, after=after, limit=5)).records:
        found += some.records
        after = some.last
    whole = await page(world, ALICE, limit=1000)
    assert found == whole.records
    assert [record["id"] for record in found] == sorted({record["id"] for record in found})
    assert after == whole.last
    newest = await page(world, ALICE, limit=3)
    assert newest.records == whole.records[-3:]
    assert newest.last == whole.last
    none = await page(world, ALICE, events=[Event.ROTATED], after=3)
    assert (none.records, none.last) == ([], whole.last)
    ahead = await page(world, ALICE, after=whole.last + 1000)  # of a store whose place an older one has taken
    assert (ahead.records, ahead.last) == ([], whole.last)


async def test_moments(world: World) -> None:
    """`since` is part of the time that is asked for, and `until` is not."""
    world.audit.now = lambda: 1_800_000_000.0
    world.audit.note(Event.ROTATED, "x", owner="alice")
    await world.audit.flush()
    then, later = (datetime.fromtimestamp(1_800_000_000 + more, UTC) for more in (0, 0.001))
    assert len(await read(world, ALICE, since=then, until=later)) == 1
    assert await read(world, ALICE, until=then) == []
    assert await read(world, ALICE, since=later) == []
