"""What a request for a forward comes to, for every source, target and pair of flags: the table of docs/forwards.md.

Words are those of that page. Sentences are whole, with the names put in by whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What comes of a request, through whichever door."""

    name: str
    exit_code: int
    status: int
    """Of `forward` over HTTP."""
    code: str
    in_apply: str
    """Where a list of one has it."""
    fault: str = ""
    sentence: str = ""
    """What is at fault is named before anything else."""


APPLIED, ENTRY, WHOLE = "in `applied`", "in `errors`", "the list is refused"

MADE = Result("made", 0, 200, "", APPLIED)
KEPT = Result("made and kept", 0, 200, "", APPLIED)
STORED = Result("kept for later", 0, 200, "", APPLIED)
TARGET_DOWN = Result(
    "target not running",
    1,
    409,
    "not_running",
    ENTRY,
    "target",
    "the target space '{target}' is not running; --force makes the forward all the same",
)
SOURCE_DOWN = Result(
    "source not running",
    1,
    409,
    "not_running",
    ENTRY,
    "source",
    "the space '{source}' is not running; --persistent keeps the forward for when it starts",
)
NO_TARGET = Result(
    "no such target",
    1,
    404,
    "not_found",
    WHOLE,
    "target",
    "there is no space '{target}' of yours; `knot space list` shows what there is",
)
NO_SOURCE = Result(
    "no such source",
    1,
    404,
    "not_found",
    WHOLE,
    "source",
    "there is no space '{source}' of yours; `knot space list` shows what there is",
)
OTHER_ZONE = Result(
    "other zone",
    1,
    409,
    "other_zone",
    WHOLE,
    "zones",
    "the space '{target}' is in zone '{target_zone}' and '{source}' in '{zone}'; forwards stay within one zone",
)
ITSELF = Result(
    "to itself",
    2,
    400,
    "bad_input",
    WHOLE,
    "source",
    "'{source}' cannot forward to itself: use port {remote_port} there directly",
)
PORT_TAKEN = Result(
    "port taken", 1, 409, "port_taken", ENTRY, "port", "port {local_port} is taken by another process on this space"
)
HELD = Result(
    "port held",
    1,
    409,
    "held_by_file",
    ENTRY,
    "port",
    "the forward on port {local_port} is made by the agent's settings file: change it there",
)

RESULTS = [MADE, KEPT, STORED, TARGET_DOWN, SOURCE_DOWN, NO_TARGET, NO_SOURCE, OTHER_ZONE, ITSELF, PORT_TAKEN, HELD]

FLAGS = [(False, False), (True, False), (False, True), (True, True)]
"""Persistent and force, in the order of the table's columns."""

RUNS, DOWN, NONE, ANOTHERS = "runs", "does not run", "there is none", "another owner's"
REMADE, DELETED, FAR, SELF = "deleted and made again", "deleted, named by its id", "in another zone", "the source itself"

TABLE: dict[tuple[str, str], tuple[Result, Result, Result, Result]] = {
    (RUNS, RUNS): (MADE, KEPT, MADE, KEPT),
    (RUNS, DOWN): (TARGET_DOWN, TARGET_DOWN, MADE, KEPT),
    (RUNS, REMADE): (TARGET_DOWN, TARGET_DOWN, MADE, KEPT),
    (RUNS, DELETED): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (RUNS, NONE): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (RUNS, ANOTHERS): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (RUNS, FAR): (OTHER_ZONE, OTHER_ZONE, OTHER_ZONE, OTHER_ZONE),
    (RUNS, SELF): (ITSELF, ITSELF, ITSELF, ITSELF),
    (DOWN, RUNS): (SOURCE_DOWN, STORED, SOURCE_DOWN, STORED),
    (DOWN, DOWN): (SOURCE_DOWN, TARGET_DOWN, SOURCE_DOWN, STORED),
    (DOWN, REMADE): (SOURCE_DOWN, TARGET_DOWN, SOURCE_DOWN, STORED),
    (DOWN, DELETED): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (DOWN, NONE): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (DOWN, ANOTHERS): (NO_TARGET, NO_TARGET, NO_TARGET, NO_TARGET),
    (DOWN, FAR): (OTHER_ZONE, OTHER_ZONE, OTHER_ZONE, OTHER_ZONE),
    (DOWN, SELF): (ITSELF, ITSELF, ITSELF, ITSELF),
    (NONE, RUNS): (NO_SOURCE, NO_SOURCE, NO_SOURCE, NO_SOURCE),
    (NONE, NONE): (NO_SOURCE, NO_SOURCE, NO_SOURCE, NO_SOURCE),
    (ANOTHERS, RUNS): (NO_SOURCE, NO_SOURCE, NO_SOURCE, NO_SOURCE),
    (ANOTHERS, NONE): (NO_SOURCE, NO_SOURCE, NO_SOURCE, NO_SOURCE),
}
"""By source and target; a result for each of FLAGS."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, and what it comes to."""

    source: str
    target: str
    persistent: bool
    force: bool
    result: Result

    def __str__(self) -> str:
        flags = "-p" * self.persistent + "-f" * self.force
        return f"{self.source} > {self.target} {flags or 'plain'}"


CELLS = [
    Cell(source, target, *flags, result)
    for (source, target), results in TABLE.items()
    for flags, result in zip(FLAGS, results, strict=True)
]
