"""What agents say of themselves, added up as it comes, so that reading it takes no longer for a large fleet.

How things stand is the sum of what each connected agent said last. What was carried only grows: agents send increments,
and those of agents that have gone stay counted. Numbers are whole and of any size; a report may add so much and no more.
"""

from __future__ import annotations

from knot_ssh.wire import AgentReport, Carried, ForwardStates, LinkModes


class Fleet:
    """The sums."""

    def __init__(self) -> None:
        self.forwards = dict.fromkeys(ForwardStates.model_fields, 0)
        self.links = dict.fromkeys(LinkModes.model_fields, 0)
        self.open = 0
        self.carried = dict.fromkeys(Carried.model_fields, 0)

    def take(self, before: AgentReport | None, report: AgentReport) -> None:
        """An agent's report, which replaces what it said before."""
        if before:
            self.forget(before)
        self._stand(report, 1)
        for name, increment in report.carried:
            self.carried[name] += increment

    def forget(self, report: AgentReport) -> None:
        """This no longer stands; what was carried stays carried."""
        self._stand(report, -1)

    def _stand(self, report: AgentReport, sign: int) -> None:
        for state, count in report.forwards:
            self.forwards[state] += sign * count
        for mode, count in report.links:
            self.links[mode] += sign * count
        self.open += sign * report.open
