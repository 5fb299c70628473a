"""docs/forwards.md has the table that the tests hold the product to, cell by cell and word for word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.forwardtable import CELLS, RESULTS, TABLE, Result

PAGE = Path(__file__).parents[2] / "docs" / "forwards.md"
EXAMPLE = {
    "source": "frontend",
    "target": "backend-api",
    "zone": "eu",
    "target_zone": "us",
    "local_port": 8080,
    "remote_port": 3000,
}


def rows_below(first_heading: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading."""
    _, _, rest = PAGE.read_text().partition(f"| {first_heading} |")
    lines = rest.splitlines()[2:]
    end = next(number for number, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


def row_of(result: Result) -> list[str]:
    http = f"{result.status} `{result.code}`" if result.code else str(result.status)
    return [result.name, str(result.exit_code), http, result.in_apply, result.fault, result.sentence.format(**EXAMPLE)]


def test_the_page_has_every_cell() -> None:
    """Each source and target has its row, with the result for each pair of flags."""
    assert rows_below("source") == [[*spaces, *(result.name for result in results)] for spaces, results in TABLE.items()]


def test_the_page_explains_every_result() -> None:
    """Each result has its codes and its sentence."""
    assert rows_below("result") == [row_of(result) for result in RESULTS]


@pytest.mark.parametrize("result", [result for result in RESULTS if result.fault], ids=lambda result: result.name)
def test_the_sentence_begins_with_what_is_at_fault(result: Result) -> None:
    """Of the names in a sentence the first is the one at fault."""
    [first, *_] = re.findall(r"{(\w+)}", result.sentence)
    assert first == {"source": "source", "target": "target", "zones": "target", "port": "local_port"}[result.fault]


def test_every_result_of_the_table_is_explained() -> None:
    """No cell has a result that the page does not tell of."""
    assert {cell.result for cell in CELLS} <= set(RESULTS)
