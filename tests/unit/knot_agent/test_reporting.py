"""What the hub is told for its metrics: everything once, nothing twice, and nothing when there is nothing new."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import cast

import pytest
from pydantic import BaseModel

from knot_agent import reporting as module
from knot_agent.control import ControlLink
from knot_agent.forwards import Forwards
from knot_agent.links import Links
from knot_agent.reporting import Reporter
from knot_ssh.dataplane.counters import Tally
from knot_ssh.wire import INCREMENT_MAX, AgentReport, Carried, ForwardStates
from tests.support.waiting import becomes


@dataclass
class Agent:
    """What a reporter looks at, and whom it tells."""

    spread: float = 0
    connected: bool = True
    told: list[AgentReport] = field(default_factory=list)
    standing: Counter[str] = field(default_factory=Counter)
    total: Tally = field(default_factory=Tally)

    def reporter(self) -> Reporter:
        return Reporter(cast("ControlLink", self), cast("Forwards", self), cast("Links", self))

    async def tell(self, method: str, message: BaseModel) -> bool:
        assert method == "agent.report"
        if self.connected:
            self.told.append(cast("AgentReport", message))
        return self.connected

    def states(self) -> Counter[str]:
        return self.standing

    def carried(self) -> Tally:
        return self.total

    def modes(self) -> Counter[str]:
        return Counter(direct=1)


class Deaf(Agent):
    """Its hub reads nothing."""

    async def tell(self, method: str, message: BaseModel) -> bool:
        await asyncio.get_running_loop().create_future()
        return True


@contextlib.asynccontextmanager
async def running(reporter: Reporter) -> AsyncIterator[None]:
    """The reporter runs meanwhile."""
    task = asyncio.ensure_future(reporter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are short."""
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.05)


async def test_increments() -> None:
    """Each report holds what was carried since the one before, and the state as it is."""
    agent = Agent(standing=Counter(listening=2))
    reporter = agent.reporter()
    for sent in (100, 100, 130):
        agent.total = Tally(sent=sent, received=2 * sent, opened=sent, closed=sent - 1, refused=3)
        await reporter.report()
    assert [report.carried for report in agent.told] == [
        Carried(sent=100, received=200, opened=100, refused=3),
        Carried(sent=30, received=60, opened=30),
    ]
    assert (agent.told[-1].forwards, agent.told[-1].open) == (ForwardStates(listening=2), 1)


async def test_nothing_is_lost_while_the_hub_is_away() -> None:
    """What is carried without a hub is told once there is one, and how things stand is told anew."""
    agent = Agent()
    reporter = agent.reporter()
    agent.total = Tally(sent=5)
    await reporter.report()
    agent.connected = False
    agent.total = Tally(sent=7)
    await reporter.report()
    agent.connected = True
    reporter.begin()
    await reporter.report()
    reporter.begin()
    await reporter.report()
    assert [report.carried.sent for report in agent.told] == [5, 2, 0]


async def test_more_than_a_report_may_hold() -> None:
    """What is more than one report may add is told in several."""
    agent = Agent(total=Tally(sent=2 * INCREMENT_MAX + 1))
    reporter = agent.reporter()
    for _ in range(5):
        await reporter.report()
    assert [report.carried.sent for report in agent.told] == [INCREMENT_MAX, INCREMENT_MAX, 1, 0][:3]


@pytest.mark.usefixtures("quick")
async def test_change_is_told_soon() -> None:
    """A change of states is told at once, what is only carried at the next turn, and nothing is told twice."""
    agent = Agent()
    reporter = agent.reporter()
    async with running(reporter):
        reporter.begin()
        await becomes(lambda: len(agent.told) == 1)
        agent.standing = Counter(waiting=1)
        reporter.changed()
        await becomes(lambda: len(agent.told) == 2)
        agent.total = Tally(sent=1)
        await becomes(lambda: len(agent.told) == 3)
        reporter.changed()
        agent.total = Tally(sent=3)
        await becomes(lambda: len(agent.told) == 4)
    assert [(report.forwards.waiting, report.carried.sent) for report in agent.told] == [(0, 0), (1, 0), (1, 1), (1, 2)]


async def test_large_fleets_are_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a hub with a large fleet hears is spread as the fleet is when it comes back."""
    pauses: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        pauses.append((low, high))
        return 0

    monkeypatch.setattr("random.uniform", uniform)
    agent = Agent(spread=100)
    reporter = agent.reporter()
    async with running(reporter):
        reporter.changed()
        await becomes(lambda: agent.told)
    assert pauses == [(0, 100)]


async def test_last_word() -> None:
    """The last word comes without delay, and a hub that takes nothing does not hold up the end."""
    agent = Agent(total=Tally(sent=1))
    await agent.reporter().last_word()
    assert agent.told[0].carried.sent == 1


async def test_last_word_to_the_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that takes nothing does not hold up the end."""
    monkeypatch.setattr(module, "LAST_WORD_SECONDS", 0.01)
    await Deaf().reporter().last_word()
