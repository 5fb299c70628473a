"""The table of threats leaves none out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.figures import SHEETS, THREATS, Row

TESTS = Path(__file__).parents[1]
TOLD = TESTS / "unit" / "test_told_limits.py"
"""Tests that the documentation tells what cannot be stopped."""
NOT_STOPPED = {8, 15, 23}
"""A server that is taken over, other users of a forward's local port, agents that cannot be told of a revocation."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Marked(NamedTuple):
    """A test with the number of its row."""

    file: Path
    test: Function
    number: object

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(TESTS)}:{self.test.lineno}"


def marked() -> Iterator[Marked]:
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, Function):
                for mark in filter(is_threat, node.decorator_list):
                    assert isinstance(mark, ast.Call)
                    yield Marked(file, node, ast.literal_eval(mark.args[0]))


def is_threat(decorator: ast.expr) -> bool:
    return isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.threat"


def test_every_threat_has_a_test() -> None:
    """No row is without a test, and no test has a row that does not exist."""
    assert {found.number for found in marked()} == set(THREATS)


def test_every_test_of_a_threat_takes_down_a_figure() -> None:
    """Each has something to say besides its verdict."""
    assert not [found.place for found in marked() if "figure" not in {argument.arg for argument in found.test.args.args}]


def test_what_is_not_stopped_is_told() -> None:
    """For what cannot be stopped there is a test that the documentation says so."""
    assert {found.number for found in marked() if found.file == TOLD} == NOT_STOPPED


def row(number: int, variant: str = "", verdict: str = "holds") -> Row:
    return Row((str(number), "attack", "bound"), variant, "-", verdict)


def printed(rows: list[Row], *, whole: bool) -> list[tuple[str, ...]]:
    _, threats = SHEETS
    _, *lines = threats.lines(rows, whole=whole)
    return lines


def test_rows_are_sorted_by_number() -> None:
    """10 comes after 9."""
    assert [line[0] for line in printed([row(10), row(9)], whole=False)] == ["9", "10"]


def test_none_is_left_out() -> None:
    """When all were asked for, a number that nothing was run for has a line that says so."""
    lines = printed([row(number) for number in THREATS if number != 7], whole=True)
    assert [line[0] for line in lines] == [str(number) for number in THREATS]
    assert lines[6][-1] == "NOT RUN"


def test_variants_are_told_together() -> None:
    """Variants with the same result have one line; one that differs has its own."""
    lines = printed([row(1, " [a]"), row(1, " [b]"), row(1, " [c]", "DOES NOT HOLD")], whole=False)
    assert [(line[1], line[-1]) for line in lines] == [("attack [2 variants]", "holds"), ("attack [c]", "DOES NOT HOLD")]


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.marker)
def test_columns(sheet: object) -> None:
    """Each line has a cell for each heading."""
    assert isinstance(sheet, type(SHEETS[0]))
    [headings, line] = sheet.lines([Row(tuple("1" for _ in sheet.columns), "", "-", "holds")], whole=False)
    assert len(headings) == len(line)
