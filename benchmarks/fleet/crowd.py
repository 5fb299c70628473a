"""The processes in which the agents live, as those see them who measure."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.errors import Failed
from benchmarks.processes import ROOT, python

STOP_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Return:
    """How all agents were welcomed."""

    first: float
    last: float
    """Moments on the monotonic clock."""
    spreads: list[float]
    """Seconds over which each agent would spread now, as the hub has told it."""
    notified: int
    """Messages about other spaces that all have had so far."""


class Crowd:
    """Agents in one or several processes, which end with the context."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        folder.mkdir()
        self._folder = folder
        self._processes = [_start(folder / f"agents-{number}.log") for number in range(processes)]
        self._welcomes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # there is nothing to be ended in order
            process.communicate(timeout=STOP_SECONDS)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def join(self, hub: str, spaces: Mapping[str, str]) -> float:
        """Have an agent join each of these spaces with its token; gives the seconds until the last one is certified."""
        names = list(spaces)
        share = math.ceil(len(names) / len(self._processes))
        parts = [names[start : start + share] for start in range(0, len(names), share)]
        orders = [{"folder": str(self._folder), "hub": hub, "spaces": {name: spaces[name] for name in part}} for part in parts]
        self._welcomes = 1
        return max(float(answer["seconds"]) for answer in self._ask("join", orders))

    def wait(self) -> Return:
        """Wait until all have come back once more."""
        self._welcomes += 1
        return self.state()

    def state(self) -> Return:
        """How they came back the last time, and what they have heard since."""
        answers = self._ask("wait", [{"welcomes": self._welcomes}] * len(self._processes))
        moments = [float(moment) for answer in answers for moment in answer["moments"]]
        spreads = [float(spread) for answer in answers for spread in answer["spreads"]]
        return Return(min(moments), max(moments), spreads, sum(int(answer["notified"]) for answer in answers))

    def renew(self) -> float:
        """Have all certificates renewed, some at a time; gives the seconds."""
        return max(float(answer["seconds"]) for answer in self._ask("renew", [{}] * len(self._processes)))

    def forget(self) -> None:
        """Have every agent without certificates."""
        self._ask("forget", [{}] * len(self._processes))

    def _ask(self, do: str, orders: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Tell each process, then wait for all. Raises Failed."""
        asked = list(zip(self._processes, orders, strict=False))
        for process, order in asked:
            assert process.stdin
            process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            process.stdin.flush()
        return [_answer(process, do) for process, _ in asked]


def _start(log: Path) -> subprocess.Popen[str]:
    with log.open("ab") as file:
        return subprocess.Popen(
            python("benchmarks.fleet.agents"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
        )


def _answer(process: subprocess.Popen[str], do: str) -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    if not line:
        raise Failed(f"the agents ended at {do!r}")
    answer: dict[str, Any] = json.loads(line)
    return answer
