"""The view of what is revoked: put together from what the hub says, and how old it is by clocks that are set and machines that
sleep."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from knot_agent import revoked as module
from knot_agent.credentials import Credentials
from knot_agent.memory import Memory
from knot_agent.revoked import Freshness, RevokedView, remembered_age
from knot_keys.certificates import read_certificate
from knot_keys.connections import Credential
from knot_keys.keyfiles import new_key
from knot_ssh.wire import Revoked
from tests.support.waiting import becomes
from tests.unit.knot_agent.conftest import SPACE_ID, Office

DAY = 24 * 3600.0


def said(*serials: int, whole: bool = True) -> Revoked:
    return Revoked(serials=list(serials), keys=[], whole=whole)


class Scene:
    """A view by clocks that the test sets."""

    def __init__(self, office: Office, folder: Path, limit: float = math.inf, wall: float = 1e9) -> None:
        nothing = Credential(new_key("x"))
        self.credentials = Credentials(office.membership(), nothing, nothing)
        self.memory = Memory(folder, SPACE_ID)
        self.now, self.wall = 1000.0, wall
        self.view = RevokedView(self.credentials, self.memory, limit, lambda: self.now, lambda: self.wall)
        self.cuts = 0
        self.credentials.on_outdated.append(self.cut)

    def cut(self) -> None:
        self.cuts += 1

    @property
    def serials(self) -> set[int]:
        return set(self.credentials.revoked.serials)

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.view.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def turns() -> None:
    """Let whatever can happen now happen."""
    for _ in range(200):
        await asyncio.sleep(0)


@pytest.fixture
def scene(office: Office, tmp_path: Path) -> Scene:
    return Scene(office, tmp_path)


@pytest.fixture
def strict(office: Office, tmp_path: Path) -> Scene:
    return Scene(office, tmp_path, limit=300)


# The list


def test_list_in_parts(scene: Scene) -> None:
    """Parts take effect with the welcome, all together, and take the place of the list before."""
    scene.view.welcomed(said(1))
    scene.view.begin()
    scene.view.listed(said(2))
    scene.view.listed(said(3, whole=False))
    assert scene.serials == {1}
    scene.view.welcomed(said(4, whole=False))
    assert scene.serials == {2, 3, 4}
    assert scene.memory.revoked == said(2, 3, 4)


@pytest.mark.parametrize("whole", [True, False])
def test_news_while_the_list_comes(scene: Scene, whole: bool) -> None:
    """What is revoked between two parts counts at once, and is not lost with the welcome."""
    scene.view.begin()
    scene.view.listed(said(1))
    scene.view.heard(said(9, whole=whole))
    assert scene.serials == {9}
    scene.view.welcomed(said(2, whole=False))
    assert scene.serials == {1, 2, 9}


def test_list_that_breaks_off(scene: Scene) -> None:
    """Of a list that did not come whole nothing is kept, and nothing that was known before is lost."""
    scene.view.welcomed(said(1))
    scene.view.begin()
    scene.view.listed(said(2))
    scene.view.begin()
    scene.view.welcomed(said(3))
    assert scene.serials == {3}


def test_news(scene: Scene) -> None:
    """News add to the list, or are the list."""
    scene.view.welcomed(said(1))
    scene.view.heard(said(2, whole=False))
    assert scene.serials == {1, 2}
    scene.view.heard(said(3))
    assert scene.serials == {3}


def test_remembered(scene: Scene, office: Office, tmp_path: Path) -> None:
    """Another start decides by the list of before, at once."""
    scene.view.welcomed(said(1, 2**63 - 1))
    assert Scene(office, tmp_path).serials == {1, 2**63 - 1}


def test_own_certificates(scene: Scene, office: Office) -> None:
    """An agent one of whose certificates is revoked has none that is good."""
    credentials = scene.credentials
    issued = office.certificates(new_key("a").convert_to_public(), new_key("b").convert_to_public())
    certificates = [read_certificate(line) for line in (issued.client, issued.host)]
    for certificate in certificates:
        credentials.replace(*(Credential(new_key("x"), each) for each in certificates))
        scene.view.heard(said(5))
        assert credentials.certified
        scene.view.heard(said(int(certificate._serial)))
        assert credentials.is_void
        assert not credentials.certified


# Its age


def test_age() -> None:
    """None while the hub is heard, and from the last sign of life on when not; a limit that is reached is passed."""
    freshness = Freshness(300, 0, 1000)
    freshness.heard(1100)
    assert freshness.age(5000) == 0
    freshness.lost(5000, quiet=8)
    freshness.lost(5100, quiet=0)
    assert freshness.age(5100) == 108
    assert freshness.left(5100) == 192
    assert freshness.left(5291) == 1
    assert freshness.left(5292) == 0
    freshness.heard(6000)
    assert freshness.left(9000) == 300


def test_without_a_limit(scene: Scene) -> None:
    """An agent that is not strict lets people in by a view of any age, and of none."""
    assert scene.view.is_current()
    scene.view.alive(True, 0)
    scene.view.alive(False, 0)
    scene.passes(DAY)
    assert scene.view.is_current()
    assert scene.memory.revoked_at is None


AGES = [(None, 1e9, math.inf), (1e9, 1e9 + 5, 5), (1e9, 1e9, 0), (1e9, 1e9 - 1, math.inf), (1e9, 0, math.inf)]


@pytest.mark.parametrize(("kept_at", "now", "age"), AGES)
def test_remembered_age(kept_at: float | None, now: float, age: float) -> None:
    """By the wall clock; endless where nothing was noted, or the clock says less than it did."""
    assert remembered_age(kept_at, now) == age


@pytest.mark.parametrize(
    ("away", "is_current"), [(10, True), (299, True), (301, False), (-1, False), (-600, False), (-DAY, False), (DAY, False)]
)
def test_restart(strict: Scene, office: Office, tmp_path: Path, away: float, is_current: bool) -> None:
    """A start without the server lets people in only while the clock says that the limit is not reached; a clock that has gone
    backwards says nothing. Once the hub is heard all is well."""
    strict.view.alive(True, 0)
    strict.view.alive(False, 0)
    again = Scene(office, tmp_path, limit=300, wall=strict.wall + away)
    assert again.view.is_current() == is_current
    again.view.alive(True, 0)
    assert again.view.is_current()


def test_first_start(strict: Scene) -> None:
    """Without the server's word at any time nobody is let in."""
    assert not strict.view.is_current()


def test_sign_of_life_counts(strict: Scene) -> None:
    """From the last sign of life on, not from when the connection was found dead."""
    strict.view.alive(True, 0)
    strict.passes(1000)
    strict.view.alive(False, 16)
    strict.passes(283)
    assert strict.view.is_current()
    strict.passes(1)
    assert not strict.view.is_current()


async def test_what_is_open_ends(strict: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the view is too old what is open is ended, once for each time; also when the machine has slept meanwhile."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    strict.view.alive(True, 0)
    async with strict.running():
        for count in (1, 2):
            strict.view.alive(False, 0)
            strict.passes(299)
            await turns()
            assert strict.cuts == count - 1
            strict.passes(2)
            await becomes(lambda count=count: strict.cuts == count)  # type: ignore[misc]
            strict.passes(DAY)
            await turns()
            assert strict.cuts == count
            strict.view.alive(True, 0)


async def test_time_is_noted(strict: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the hub is heard it is noted every half minute, so that a start after a crash knows."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    strict.view.alive(True, 0)
    first = strict.memory.revoked_at
    async with strict.running():
        strict.passes(29)
        await turns()
        assert strict.memory.revoked_at == first
        strict.passes(2)
        await becomes(lambda: strict.memory.revoked_at == strict.wall)
