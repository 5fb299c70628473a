"""What the figures say: medians, ratios round by round, and whether goals are met."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.measuring import Results
from benchmarks.rows import PRODUCT, REFERENCE, Against, Goal, Row


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some rounds, and their extremes."""

    middle: float
    least: float
    most: float


def spread(values: list[float]) -> Spread | None:
    """None where there are no values."""
    return Spread(median(values), min(values), max(values)) if values else None


def value(results: Results, row: str, peer: str) -> Spread | None:
    """A peer's figure."""
    return spread(list(results.of(row, peer).values()))


def ratio(results: Results, row: str, peer: str = PRODUCT) -> Spread | None:
    """A peer's figure divided by OpenSSH's in the same round."""
    return _quotient(results.of(row, peer), results.of(row, REFERENCE))


def to_own_empty(results: Results, row: Row, peer: str = PRODUCT) -> Spread | None:
    """A peer's figure divided by its own without idle connections in the same round."""
    return _quotient(results.of(row.name, peer), results.of(row.empty, peer))


def reached(results: Results, row: Row, goal: Goal) -> Spread | None:
    """What the goal's bound is compared with."""
    if goal.against is Against.REFERENCE:
        return ratio(results, row.name)
    return to_own_empty(results, row) if goal.against is Against.OWN else value(results, row.name, PRODUCT)


def _quotient(above: dict[int, float], below: dict[int, float]) -> Spread | None:
    return spread([above[number] / below[number] for number in sorted(above) if below.get(number)])
