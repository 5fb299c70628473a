"""What of the audit record is dropped, and what is not."""

from __future__ import annotations

from collections import Counter

import pytest

from knot_server.usecases import auditkeeping
from knot_server.usecases.audit import Event
from knot_server.usecases.auditkeeping import DAY, Group, Keeping, surpluses
from knot_ssh.errors import StoreUnavailable
from tests.unit.knot_server.conftest import World

NOW = 1_800_000_000.0
MOST = 1000


def fill(world: World, event: Event, count: int, *, age: float = 0, owner: str | None = None) -> None:
    """Add so many records of this age in days."""
    at = int((NOW - age * DAY) * 1000)
    world.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
        "INSERT INTO audit (at, event, actor, owner, fields) SELECT ?, ?, 'a stranger', ?, '{}' FROM n",
        count,
        at,
        str(event),
        owner,
    )


def held(world: World) -> Counter[object]:
    return Counter(event for (event,) in world.sql("SELECT event FROM audit"))


@pytest.fixture
def keeping(world: World) -> Keeping:
    world.sql("DELETE FROM audit")
    return Keeping(world.database, days=10, most=MOST, now=lambda: NOW)


async def test_old_records_go(world: World, keeping: Keeping) -> None:
    """What is older than so many days goes, in as many steps as it takes; what is younger stays."""
    fill(world, Event.SPACE_MADE, 2 * auditkeeping.STEP + 7, age=10.1)
    fill(world, Event.SPACE_MADE, 5, age=9.9)
    await keeping.keep()
    assert held(world) == {"space made": 5}


async def test_the_oldest_go_first(world: World, keeping: Keeping) -> None:
    """Of more records than there may be the newest stay."""
    fill(world, Event.SPACE_MADE, MOST, age=2)
    fill(world, Event.USER_MADE, 30)
    await keeping.keep()
    assert held(world) == {"space made": MOST - 30, "user made": 30}


async def test_refusals_push_out_nothing_else(world: World, keeping: Keeping) -> None:
    """However many refusals there are, they take up their quarter; with the daily work they take up three quarters."""
    fill(world, Event.SPACE_MADE, 200, age=5)
    for _ in range(3):
        fill(world, Event.CERTIFIED, MOST)
        fill(world, Event.REFUSED, MOST)
        await keeping.keep()
    assert held(world) == {"space made": 200, "refused": MOST // 4, "certificate issued": MOST // 2}


async def test_nobody_pushes_out_what_others_did(world: World, keeping: Keeping) -> None:
    """Whoever makes forwards without end, or has certificates issued, loses their own records; old ones of others stay."""
    fill(world, Event.REVOKED, 10, age=5, owner="bob")
    fill(world, Event.ROTATED, 10, age=5)
    fill(world, Event.CERTIFIED, 10, age=5, owner="bob")
    for _ in range(3):
        fill(world, Event.FORWARD_MADE, MOST, owner="mallory")
        fill(world, Event.CERTIFIED, MOST, owner="mallory")
        fill(world, Event.REFUSED, MOST)
        await keeping.keep()
    assert held(world).total() == MOST
    assert world.sql("SELECT event, count(*) FROM audit WHERE owner = 'bob' GROUP BY event ORDER BY event") == [
        ("certificate issued", 10),
        ("revoked", 10),
    ]
    assert held(world)["rotated"] == 10


async def test_much_at_once(world: World, keeping: Keeping, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look has not dropped is told, so that the next one comes soon."""
    monkeypatch.setattr(auditkeeping, "LOOK", 100)
    fill(world, Event.FORWARD_MADE, MOST + 150, owner="mallory")
    assert [await keeping.keep() for _ in range(3)] == [True, False, False]
    assert held(world).total() == MOST


@pytest.mark.parametrize(
    ("sizes", "too_many", "given"),
    [
        ([10], 3, [3]),
        ([10, 2], 3, [3]),
        ([10, 9, 1], 3, [2, 1]),
        ([10, 10, 1], 3, [2, 2]),
        ([5, 5], 100, [5, 5]),
        ([], 1, []),
    ],
)
def test_who_gives_up_what(sizes: list[int], too_many: int, given: list[int]) -> None:
    """The largest groups are cut down to one level."""
    groups: dict[Group, int] = {(str(number), False): size for number, size in enumerate(sizes)}
    assert list(surpluses(groups, too_many).values()) == given


async def test_a_store_that_fails(world: World, keeping: Keeping) -> None:
    """Nothing is lost of it while the store fails."""
    fill(world, Event.SPACE_MADE, 5, age=11)
    world.break_store("DELETE", table="audit")
    with pytest.raises(StoreUnavailable):
        await keeping.keep()
    assert held(world) == {"space made": 5}
