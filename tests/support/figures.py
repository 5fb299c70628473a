"""The table of faults: what must hold, what was measured, and the verdict, of each test that is marked with its row.

    @pytest.mark.fault("server restarts", "no direct connection closed")
    def test_...(figure: Figure) -> None:
        figure("0 of 12 closed")

The verdict is the test's own. A row that is skipped says why.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

MARKER = "fault"
PROPERTY = "figure"
VERDICTS = {"passed": "holds", "failed": "DOES NOT HOLD", "skipped": "skipped"}
HEADINGS = ("fault", "bound", "measured", "verdict")
NOTHING = "-"
COLUMN = 80
"""Characters of a column that later ones are aligned to."""

Figure = Callable[[object], None]
"""Takes down what a test has measured, in words."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    bound: str
    measured: str
    verdict: str

    def cells(self) -> tuple[str, ...]:
        return self.fault, self.bound, self.measured, self.verdict

    def __str__(self) -> str:
        return " | ".join(self.cells())


class FaultTable:
    """A plugin for pytest: rows as tests end where output is shown at once, and the whole table at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: list[Row] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        marker = item.get_closest_marker(MARKER)
        if marker and (report.when == "call" or (report.when == "setup" and not report.passed)):
            fault, bound = marker.args
            variant = f" [{item.callspec.id}]" if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
            report.user_properties.append((MARKER, [fault + variant, bound]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = next((value for name, value in report.user_properties if name == MARKER), None)
        if not isinstance(found, list | tuple) or report.when == "teardown":
            return
        fault, bound = found
        figures = [str(value) for name, value in report.user_properties if name == PROPERTY]
        verdict = VERDICTS[report.outcome]
        if report.skipped and isinstance(report.longrepr, tuple):
            verdict += ": " + report.longrepr[2].removeprefix("Skipped: ")
        row = Row(str(fault), str(bound), "; ".join(figures) or NOTHING, verdict)
        self._rows.append(row)
        if self._config.option.capture == "no":
            print(f"\n{row}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._rows:
            return
        terminalreporter.section("faults")
        rows = [HEADINGS, *(row.cells() for row in self._rows)]
        widths = [min(COLUMN, max(len(row[column]) for row in rows)) for column in range(len(HEADINGS))]
        for row in rows:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            terminalreporter.write_line(" | ".join(padded).rstrip())


def take_down(request: pytest.FixtureRequest) -> Figure:
    """What the fixture `figure` gives."""

    def taken(measured: object) -> None:
        request.node.user_properties.append((PROPERTY, str(measured)))

    return taken


def register(config: pytest.Config) -> None:
    """Make the marker known and have the table kept."""
    config.addinivalue_line("markers", f"{MARKER}(fault, bound): the row of the table of faults that this test shows")
    config.pluginmanager.register(FaultTable(config), "fault-table")
