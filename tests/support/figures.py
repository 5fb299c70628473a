"""The tables of faults and threats: what must hold, what was measured, and the verdict, of each test that is marked with a row.

    @pytest.mark.fault("server restarts", "no direct connection closed")
    @pytest.mark.threat(7, "the relay alters bytes", "no altered byte delivered")
    def test_...(figure: Figure) -> None:
        figure("0 of 12 closed")

The verdict is the test's own. A row that is skipped, or is known not to hold yet, says why. `pytest -m threat` prints every
number there is, also those that nothing was run for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import pytest

PROPERTY = "figure"
VERDICTS = {"passed": "holds", "failed": "DOES NOT HOLD", "skipped": "skipped"}
NOT_YET = "does not hold yet"
NOT_RUN = "NOT RUN"
NOTHING = "-"
COLUMN = 80
"""Characters of a column that later ones are aligned to."""
THREATS = range(1, 26)
"""The numbers of all threats."""

Figure = Callable[[object], None]
"""Takes down what a test has measured, in words."""
Cells = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: what its marker says, which of several variants it is, and what came of it."""

    given: Cells
    variant: str
    measured: str
    verdict: str

    @property
    def alike(self) -> tuple[Cells, str, str]:
        """Variants that agree in this are told in one line."""
        return self.given, self.measured, self.verdict

    def cells(self) -> Cells:
        *first, bound = self.given
        return *first[:-1], f"{first[-1]}{self.variant}", bound, self.measured, self.verdict

    def __str__(self) -> str:
        return " | ".join(self.cells())


@dataclass(frozen=True, slots=True)
class Sheet:
    """A kind of table: the marker of its tests, and its first columns, of which the last but one tells variants apart."""

    marker: str
    columns: Cells

    @property
    def signature(self) -> str:
        return f"{self.marker}({', '.join(self.columns)})"

    def headings(self) -> Cells:
        return *self.columns, "measured", "verdict"

    def lines(self, rows: Iterable[Row], *, whole: bool) -> Iterator[Cells]:
        """What is printed; `whole` when every test of the table was asked for."""
        yield self.headings()
        yield from (row.cells() for row in rows)


class ThreatSheet(Sheet):
    """By number, variants with one result in one line, and none left out."""

    def lines(self, rows: Iterable[Row], *, whole: bool) -> Iterator[Cells]:
        yield self.headings()
        found = [*_merged(rows)]
        if whole:
            missing = set(THREATS).difference(int(row.given[0]) for row in found)
            found += [Row((str(number), NOTHING, NOTHING), "", NOTHING, NOT_RUN) for number in missing]
        yield from (row.cells() for row in sorted(found, key=lambda row: int(row.given[0])))


SHEETS = (Sheet("fault", ("fault", "bound")), ThreatSheet("threat", ("number", "attack", "bound")))


class Tables:
    """A plugin for pytest: rows as tests end where output is shown at once, and the whole tables at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, list[Row]] = {sheet.marker: [] for sheet in SHEETS}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "call" or (report.when == "setup" and not report.passed):
            variant = f" [{item.callspec.id}]" if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ""
            for sheet in SHEETS:
                for marker in item.iter_markers(sheet.marker):
                    report.user_properties.append((sheet.marker, [variant, *map(str, marker.args)]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            return
        figures = "; ".join(str(value) for name, value in report.user_properties if name == PROPERTY)
        for name, value in report.user_properties:
            if name in self._rows and isinstance(value, list | tuple):
                variant, *given = value
                self._add(name, Row(tuple(given), str(variant), figures or NOTHING, _verdict(report)))

    def _add(self, name: str, row: Row) -> None:
        self._rows[name].append(row)
        if self._config.option.capture == "no":
            print(f"\n{row}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for sheet in SHEETS:
            if rows := self._rows[sheet.marker]:
                whole = self._config.option.markexpr == sheet.marker
                terminalreporter.section(f"{sheet.marker}s")
                _print([*sheet.lines(rows, whole=whole)], terminalreporter.write_line)


def _verdict(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return f"{NOT_YET}: {report.wasxfail}"
    verdict = VERDICTS[report.outcome]
    if report.skipped and isinstance(report.longrepr, tuple):
        verdict += ": " + report.longrepr[2].removeprefix("Skipped: ")
    return verdict


def _merged(rows: Iterable[Row]) -> Iterator[Row]:
    groups: dict[tuple[Cells, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.alike, []).append(row)
    for first, *others in groups.values():
        variant = f" [{1 + len(others)} variants]" if others else first.variant
        yield Row(first.given, variant, first.measured, first.verdict)


def _print(lines: list[Cells], write: Callable[[str], None]) -> None:
    widths = [min(COLUMN, max(map(len, column))) for column in zip(*lines, strict=True)]
    for line in lines:
        write(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def take_down(request: pytest.FixtureRequest) -> Figure:
    """What the fixture `figure` gives."""

    def taken(measured: object) -> None:
        request.node.user_properties.append((PROPERTY, str(measured)))

    return taken


def register(config: pytest.Config) -> None:
    """Make the markers known and have the tables kept."""
    for sheet in SHEETS:
        config.addinivalue_line("markers", f"{sheet.signature}: the row of the table of {sheet.marker}s that this test shows")
    config.pluginmanager.register(Tables(config), "tables-of-figures")
