"""Take every row of every peer, round by round.

Within a round a row is measured on one peer after the other, so that all meet the same machine; the order turns with
the round, so that nobody always comes after the same neighbour.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bed import Bed, Setup
from benchmarks.errors import Failed, NotApplicable
from benchmarks.peers.peer import Peer
from benchmarks.probes import memory_by_end
from benchmarks.processes import end_everything
from benchmarks.rows import Row
from benchmarks.sizes import Sizes

Say = Callable[[str], None]
Key = tuple[str, str]
"""Names of a row and a peer."""


@dataclass
class Results:
    """What was measured. A value that is not there has a reason in `failures` or `inapplicable`."""

    values: dict[Key, dict[int, float]] = field(default_factory=dict)
    """By row and peer: the value of each round."""
    failures: dict[Key, str] = field(default_factory=dict)
    inapplicable: set[Key] = field(default_factory=set)
    memory: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)
    """KB for each idle connection by end; by peer and number of connections."""
    interrupted: bool = False

    def of(self, row: str, peer: str) -> dict[int, float]:
        """Values by round; none where it failed in any."""
        return {} if (row, peer) in self.failures else self.values.get((row, peer), {})

    def is_settled(self, row: str, peer: str) -> bool:
        """Whether measuring again would tell nothing new."""
        return (row, peer) in self.failures or (row, peer) in self.inapplicable


class Stage:
    """The peers in all setups that share a stage, and the rows that are measured there."""

    def __init__(
        self, peers: list[type[Peer]], rows: list[Row], sizes: Sizes, folder: Path, results: Results, say: Say
    ) -> None:
        self._peers = peers
        self._rows = rows
        self._sizes = sizes
        self._folder = folder
        self._results = results
        self._say = say
        self._beds: dict[tuple[str, Setup], Bed] = {}
        self._made = 0

    def run(self) -> None:
        """Start everything, measure all rounds, end everything."""
        try:
            self._start()
            for number in range(self._sizes.rounds):
                self._round(number)
        finally:
            end_everything()  # together: an agent may take seconds to end
            for bed in self._beds.values():
                bed.stop()

    def _start(self) -> None:
        for setup in dict.fromkeys(row.setup for row in self._rows):
            for peer in self._peers:
                if setup.relayed and not peer.can_relay:
                    self._results.inapplicable |= {(row.name, peer.name) for row in self._rows if row.setup == setup}
                else:
                    self._start_bed(peer, setup)

    def _start_bed(self, peer: type[Peer], setup: Setup) -> None:
        """Start one; when it cannot be, all its rows have failed."""
        self._made += 1
        folder = self._folder / f"{peer.name}-{self._made}"
        folder.mkdir()
        bed = Bed(peer, setup, folder)
        self._say(f"starting {peer.name}{_with(setup)}")
        begun = time.monotonic()
        try:
            bed.start()
        except Failed as failure:
            bed.stop()
            self._fail_all(peer, setup, str(failure))
            return
        except BaseException:
            bed.stop()
            raise
        self._beds[peer.name, setup] = bed
        if setup.open:
            self._say(f"  took {time.monotonic() - begun:.1f} s")
            self._results.memory[peer.name, setup.open] = memory_by_end(bed)

    def _fail_all(self, peer: type[Peer], setup: Setup, reason: str) -> None:
        reason = self._public(reason)
        self._say(f"  {peer.name} failed: {reason}")
        for row in self._rows:
            if row.setup == setup:
                self._results.failures.setdefault((row.name, peer.name), reason)

    def _round(self, number: int) -> None:
        turn = number % len(self._peers)
        order = self._peers[turn:] + self._peers[:turn]
        for row in self._rows:
            if number == 0 or not row.once:
                self._measure(row, order, number)

    def _measure(self, row: Row, order: list[type[Peer]], number: int) -> None:
        said = []
        for peer in order:
            if self._results.is_settled(row.name, peer.name):
                continue
            try:
                value = row.probe(self._beds[peer.name, row.setup], self._sizes)
            except NotApplicable:
                self._results.inapplicable.add((row.name, peer.name))
            except Failed as failure:
                said.append(f"{peer.name} failed")
                self._failed(row, peer, str(failure))
            else:
                self._results.values.setdefault((row.name, peer.name), {})[number] = value
                said.append(f"{peer.name} {value:.4g}")
        self._say(f"round {number + 1}/{self._sizes.rounds}  {row.name}: {', '.join(said)} {row.unit}")

    def _failed(self, row: Row, peer: type[Peer], reason: str) -> None:
        """Note the reason, and give the rows that follow a fresh start."""
        bed = self._beds.pop((peer.name, row.setup))
        try:
            bed.peer.require()
        except Failed as end:
            reason = f"{reason}; {end}"
        self._results.failures[row.name, peer.name] = self._public(reason)
        self._say(f"  {peer.name} failed: {self._public(reason)}")
        bed.stop()
        self._start_bed(peer, row.setup)

    def _public(self, reason: str) -> str:
        """Without the name of a folder that will be gone."""
        return reason.replace(f"{self._folder}/", "")


def _with(setup: Setup) -> str:
    """What makes a start take long, in words."""
    if setup.open:
        return f" with {setup.open:,} idle connections"
    return " with a relay" if setup.relayed else ""


def measure(peers: list[type[Peer]], rows: list[Row], sizes: Sizes, folder: Path, say: Say) -> Results:
    """Measure these rows of these peers. Ctrl-C ends it early, with what there is."""
    results = Results()
    try:
        for name in dict.fromkeys(row.setup.stage for row in rows):
            (folder / name).mkdir()
            Stage(peers, [row for row in rows if row.setup.stage == name], sizes, folder / name, results, say).run()
    except KeyboardInterrupt:
        say("interrupted: what follows is incomplete")
        results.interrupted = True
    return results
