"""What the hub is told of this agent's forwards and links, for its metrics: how they stand, and what they have carried.

Counters travel as increments, so neither side need know when the other was started. They are taken as told once they
are sent: what is on its way when a connection is lost is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

from knot_agent.control import ControlLink
from knot_agent.forwards import Forwards
from knot_agent.links import Links
from knot_ssh.dataplane.counters import Tally
from knot_ssh.wire import COUNT_MAX, INCREMENT_MAX, AgentReport, Carried, ForwardStates, LinkModes

REPORT_SECONDS = 15.0
"""Seconds between two reports at most, if there is anything new. A hub with a large fleet hears more rarely."""
SETTLE_SECONDS = 1.0
"""Seconds at most that a change of states waits for others to be told with it. In a large fleet it may wait for longer:
all may have links to the same target."""
LAST_WORD_SECONDS = 1.0
"""Seconds that the last report may take."""


class Reporter:
    """Tells the hub when there is something new to tell."""

    def __init__(self, control: ControlLink, forwards: Forwards, links: Links) -> None:
        self._control = control
        self._forwards = forwards
        self._links = links
        self._told = Tally()
        self._last: AgentReport | None = None
        self._news = asyncio.Event()
        self._reporting = asyncio.Lock()

    def changed(self) -> None:
        """A forward or a link may be in another state."""
        self._news.set()

    def begin(self) -> None:
        """The hub has just met us, and knows nothing."""
        self._last = None
        self._news.set()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            spread = self._control.spread
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(REPORT_SECONDS, spread)):
                    await self._news.wait()
                    await asyncio.sleep(random.uniform(0, max(SETTLE_SECONDS, spread)))
            self._news.clear()
            await self.report()

    async def last_word(self) -> None:
        """Report before the end, if the hub takes it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await self.report()

    async def report(self) -> None:
        """Tell the hub, if it is there, what it does not know yet."""
        async with self._reporting:
            report = self._made()
            if report != self._last and await self._control.tell("agent.report", report):
                carried = report.carried
                self._told.add(Tally(carried.sent, carried.received, carried.opened, refused=carried.refused))
                self._last = report.model_copy(update={"carried": Carried()})

    def _made(self) -> AgentReport:
        total, told = self._forwards.carried(), self._told
        return AgentReport(
            forwards=ForwardStates(**_bounded(self._forwards.states())),
            links=LinkModes(**_bounded(self._links.modes())),
            open=min(total.open, COUNT_MAX),
            carried=Carried(
                sent=min(total.sent - told.sent, INCREMENT_MAX),
                received=min(total.received - told.received, INCREMENT_MAX),
                opened=min(total.opened - told.opened, INCREMENT_MAX),
                refused=min(total.refused - told.refused, INCREMENT_MAX),
            ),
        )


def _bounded(counts: dict[str, int]) -> dict[str, int]:
    return {name: min(count, COUNT_MAX) for name, count in counts.items()}
