"""Lists for people: plain aligned columns, through rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

WIDEST = 1000
"""Columns; a line is never broken, so that what is piped or copied stays whole."""


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout."""
    for line in table(columns, rows):
        click.echo(line)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; every cell as it is, nothing taken for markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False)
    for column in columns:
        grid.add_column(column, no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console = Console(width=WIDEST, color_system=None)
    with console.capture() as text:
        console.print(grid)
    return [line.rstrip() for line in text.get().splitlines()]
