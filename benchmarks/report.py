"""The results as text: the table on the terminal, and the same with everything around it as Markdown."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import comparing
from benchmarks.comparing import Spread
from benchmarks.measuring import Results
from benchmarks.peers import PEERS
from benchmarks.processes import ROOT
from benchmarks.rows import LEVELS, PRODUCT, ROWS, Row, curve

NONE = "-"


@dataclass(frozen=True)
class Report:
    """One run."""

    results: Results
    rows: list[Row]
    versions: dict[str, str]
    """What was run, by peer."""
    missing: dict[str, str]
    """Why a peer was not run."""
    rounds: int
    command: str

    def text(self) -> str:
        """For the terminal."""
        return "\n".join(part for part in (self._table(), self._notes(), self._memory()) if part)

    def markdown(self, plot: str | None) -> str:
        """For a file beside `plot`."""
        parts = [
            "# Results\n",
            f"`{self.command}`: {self.rounds} rounds, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {_machine()}.\n",
            "Medians of the rounds. Ratios are taken within each round; in parentheses the least and the greatest. The machine",
            "is shared: believe ratios, not figures. What stands around them: [README.md](README.md).\n",
            self._table(),
            self._notes(),
            self._missed(),
            "\n## What was run\n",
            self._peers(),
        ]
        for title, part in (("Memory", self._memory()), ("Idle connections", self._curves())):
            parts += [f"\n## {title}\n", part] if part else []
        parts += ["\n## How it was measured\n", self._methods()]
        if plot:
            parts.append(f"\n![Round trip and new connection against open connections]({plot})")
        return "\n".join(part for part in parts if part) + "\n"

    def _table(self) -> str:
        peers = list(self.versions)
        head = ["", "unit", *peers, f"{PRODUCT} / OpenSSH", "goal", "reached", "met"]
        lines = [self._line(row, peers) for row in self.rows if row.shown]
        return _markdown_table(head, lines)

    def _line(self, row: Row, peers: list[str]) -> list[str]:
        cells = [self._cell(row, peer) for peer in peers]
        ratio = _with_range(comparing.ratio(self.results, row.name), "x")
        return [row.title, row.unit, *cells, ratio, *self._goal(row)]

    def _cell(self, row: Row, peer: str) -> str:
        key = (row.name, peer)
        if key in self.results.failures:
            return f"failed [{self._footnotes().index(self.results.failures[key]) + 1}]"
        found = comparing.value(self.results, row.name, peer)
        return _number(found.middle) if found else NONE

    def _goal(self, row: Row) -> list[str]:
        goal = row.goal
        if goal is None:
            return ["", "", ""]
        found = comparing.reached(self.results, row, goal)
        text = f"{goal.sense} {goal.bound:g} {row.unit_of(goal)}"
        if found is None:
            return [text, NONE, NONE]
        return [text, f"{_number(found.middle)} {row.unit_of(goal).split()[0]}", "yes" if goal.is_met(found.middle) else "NO"]

    def _missed(self) -> str:
        """What was tried for the goals that were missed."""
        lines = [f"- {row.title}: {row.tried}" for row in self.rows if row.tried and self._goal(row)[2] == "NO"]
        return "\n## Goals that were missed\n\n" + "\n".join(lines) if lines else ""

    def _footnotes(self) -> list[str]:
        shown = {row.name for row in self.rows}
        return list(dict.fromkeys(reason for (row, _), reason in self.results.failures.items() if row in shown))

    def _notes(self) -> str:
        notes = [f"[{number}] {reason}" for number, reason in enumerate(self._footnotes(), 1)]
        notes += [f"Not measured: {peer}: {reason}." for peer, reason in self.missing.items()]
        return "\n" + "\n\n".join(notes) + "\n" if notes else ""

    def _peers(self) -> str:
        lines = [[peer, version, PEERS[peer].about] for peer, version in self.versions.items()]
        return _markdown_table(["peer", "version", "how"], lines)

    def _methods(self) -> str:
        lines = [f"- {row.title}: {(row.probe.__doc__ or '').strip()}" for row in self.rows if row.shown]
        return "\n".join(lines)

    def _memory(self) -> str:
        """KB for each idle connection, by process."""
        lines = [
            [peer, f"{count:,}", *(_number(each) for each in (ends["client"], ends["server"], sum(ends.values())))]
            for (peer, count), ends in sorted(self.results.memory.items())
            if count >= 1000
        ]
        head = ["KB per idle connection", "connections", "client end", "server end", "both"]
        return _markdown_table(head, lines) if lines else ""

    def _curves(self) -> str:
        """The points of the plot."""
        lines = [
            [f"{title}, {peer}", *(self._point(name, count, peer) for count in LEVELS)]
            for name, title in (("round-trip", "round trip"), ("connection", "new connection"))
            for peer in self.versions
        ]
        filled = any(cell != NONE for line in lines for cell in line[1:])
        return _markdown_table(["µs, with idle connections", *(f"{count:,}" for count in LEVELS)], lines) if filled else ""

    def _point(self, name: str, count: int, peer: str) -> str:
        return self._cell(ROWS[curve(name, count)], peer)


def _number(value: float) -> str:
    """Three significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def _with_range(found: Spread | None, unit: str) -> str:
    if found is None:
        return NONE
    middle = f"{_number(found.middle)} {unit}"
    return middle if found.least == found.most else f"{middle} ({_number(found.least)}-{_number(found.most)})"


def _markdown_table(head: list[str], lines: list[list[str]]) -> str:
    """Padded, so that it reads well as plain text too."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]

    def line(cells: list[str], pad: Callable[[str, int], str] = str.ljust) -> str:
        return "| " + " | ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(head), rule, *map(line, lines)])


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}, Linux {platform.release()}, Python {platform.python_version()}{_commit()}"


def _commit() -> str:
    """What is checked out, where there is git."""
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return f", commit {done.stdout.strip()}" if done.returncode == 0 else ""
