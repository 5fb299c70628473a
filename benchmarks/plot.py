"""Draw round trip and new connection against the number of open connections. Needs matplotlib (extra `bench`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from benchmarks import comparing
from benchmarks.errors import Missing
from benchmarks.measuring import Results
from benchmarks.rows import LEVELS, PRODUCT, curve

PANELS = (("round-trip", "round trip"), ("connection", "new connection: connect, one byte, close"))
INCHES = (11, 4.5)


def draw(results: Results, peers: list[str], file: Path) -> None:
    """Write an SVG. Raises Missing where matplotlib is not installed."""
    try:
        # not an `import` statement: types must hold with and without it
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise Missing("matplotlib is not installed (extra `bench`): no plot") from None
    figure = figures.Figure(figsize=INCHES, layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for peer in peers:
            _line(axes, results, name, peer)
        _dress(axes, title)
    figure.savefig(file, format="svg", metadata={"Date": None})


def points(results: Results, name: str, peer: str) -> list[tuple[int, float]]:
    """Connections and microseconds, as far as a peer got."""
    found = ((count, comparing.value(results, curve(name, count), peer)) for count in LEVELS)
    return [(count, each.middle) for count, each in found if each]


def _line(axes: Any, results: Results, name: str, peer: str) -> None:
    line = points(results, name, peer)
    if line:
        counts, times = zip(*line, strict=True)
        axes.plot(counts, times, marker="o", label=peer, linewidth=2.5 if peer == PRODUCT else 1.2)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=-1)
    axes.set_xticks(LEVELS, [f"{count:,}" for count in LEVELS])
    axes.set_yscale("log")
    axes.set_xlabel("idle connections through the forward")
    axes.set_ylabel("µs, median")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
