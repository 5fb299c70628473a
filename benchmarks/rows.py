"""The rows of the table: what is measured, in which unit, and what is to be reached.

Loopback and a shared machine give no absolute figures worth keeping. A goal is therefore a ratio wherever it can be: to
OpenSSH in the same round, or to the product's own value without idle connections in the same round.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from benchmarks import probes
from benchmarks.bed import Setup
from benchmarks.probes import Probe

PRODUCT = "knot"
REFERENCE = "openssh"

LEVELS = (0, 10, 100, 1000, 5000)
"""Idle connections at which round trip and new connection are measured for the plot."""
MANY = LEVELS[-1]
FAR = 25.0
"""Milliseconds each way: 50 ms there and back is Europe to the American east coast, nearly."""


class Against(Enum):
    """What a goal compares the product with."""

    REFERENCE = "x OpenSSH"
    OWN = "x own empty value"
    NOTHING = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for the product's value or ratio."""

    sense: str
    """≥, ≤ or <."""
    bound: float
    against: Against = Against.REFERENCE

    def is_met(self, value: float) -> bool:
        if self.sense == "≥":
            return value >= self.bound
        return value < self.bound if self.sense == "<" else value <= self.bound


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, or one point of the plot."""

    name: str
    """As in `--rows`."""
    title: str
    unit: str
    probe: Probe
    setup: Setup
    goal: Goal | None = None
    empty: str = ""
    """The row that measures the same without idle connections; for goals against the own value."""
    once: bool = False
    """Measured in the first round alone: memory has no noise, and a second time it would be in use already."""
    tried: str = ""
    """For a goal that was missed on the machines we know: what was tried, and what stands in the way."""
    shown: bool = True
    """Whether it stands in the table; a point of the plot does not."""

    def unit_of(self, goal: Goal) -> str:
        """What follows the goal's number."""
        return goal.against.value or self.unit


def at_least(bound: float) -> Goal:
    return Goal("≥", bound)


def at_most(bound: float, against: Against = Against.REFERENCE) -> Goal:
    return Goal("≤", bound, against)


def below(bound: float, against: Against) -> Goal:
    return Goal("<", bound, against)


EMPTY = Setup("near")
LOGINS = Setup("logins")
LONG_LINE = Setup("far", delay=FAR)
RELAYED = Setup("relayed", relayed=True)


def holding(count: int) -> Setup:
    """With so many idle connections."""
    return Setup("idle", open=count)


TABLE = (
    Row("download", "one stream, download", "MB/s", probes.download, EMPTY, at_least(1.3)),
    Row("upload", "one stream, upload", "MB/s", probes.upload, EMPTY, at_least(1.3)),
    Row("streams", "8 streams", "MB/s", probes.streams, EMPTY, at_least(1.0)),
    Row("cpu-download", "CPU per GB, both ends, download", "s", probes.cpu_download, EMPTY, at_most(0.8)),
    Row("cpu-upload", "CPU per GB, both ends, upload", "s", probes.cpu_upload, EMPTY, at_most(0.8)),
    Row(
        "round-trip",
        "round trip, back to back",
        "µs",
        probes.round_trip,
        EMPTY,
        at_most(0.5),
        tried="A round trip is four times a wake-up, a read, a cipher and a write. Staying inside the selector while only "
        "sockets are ready halved it, polling for 100 µs took another third. Where waking a process is cheap, OpenSSH is "
        "nearly as fast as two plain TCP hops (socat), and half of that leaves no time to wake up in.",
    ),
    Row(
        "round-trip-paced",
        "round trip, one byte a ms",
        "µs",
        probes.paced,
        EMPTY,
        at_most(1.1),
        tried="Between two bytes both agents fall asleep, and their code out of the caches. Asking for more during 1.5 ms "
        "instead reached the goal, at the price of a busy core each: no default for a laptop.",
    ),
    Row("messages-p99", "p99 at 1-8 KiB", "ms", probes.messages, EMPTY, below(0.5, Against.NOTHING)),
    Row("round-trip-bulk", "round trip beside 8 bulk streams", "ms", probes.round_trip_beside_bulk, EMPTY, at_most(0.33)),
    Row(
        "connection",
        "new connection",
        "µs",
        probes.connection,
        EMPTY,
        at_most(0.75),
        tried="No task, future or transport is made for a connection, and what opens and closes a channel is served where it "
        "was received: that took 100 µs in each agent instead of 500. What is left is spread over eight packets, two "
        "sockets and some thirty system calls, none of them above a tenth.",
    ),
    Row(
        "connections-16",
        "connections/s, 16 at once",
        "1/s",
        probes.connections_at_once,
        EMPTY,
        at_least(1.0),
        tried="As above: here the processor time of the busier agent, some 100 µs a connection, is what limits.",
    ),
    Row(
        "round-trip-idle",
        f"round trip with {MANY:,} idle connections",
        "µs",
        probes.round_trip,
        holding(MANY),
        below(1.3, Against.OWN),
        empty="round-trip@0",
    ),
    Row(
        "connection-idle",
        f"new connection with {MANY:,} idle",
        "µs",
        probes.connection,
        holding(MANY),
        below(1.3, Against.OWN),
        empty="connection@0",
    ),
    Row(
        "memory-idle",
        "memory per idle forwarded connection, one end",
        "KB",
        probes.memory_per_connection,
        holding(MANY),
        at_most(1.0, Against.NOTHING),
        once=True,
    ),
    Row(
        "memory-login",
        "memory per SSH connection on a server",
        "KB",
        probes.memory_per_login,
        LOGINS,
        at_most(30, Against.NOTHING),
        once=True,
    ),
    Row("far", f"one stream at {2 * FAR:g} ms", "MB/s", probes.stream_far, LONG_LINE, at_least(6)),
    Row(
        "relay-stream",
        "through the relay, one stream",
        "MB/s",
        probes.stream,
        RELAYED,
        at_least(1.3),
        tried="On two cores it is processor time that limits: every byte is encrypted or decrypted six times, as with "
        "`ssh -J`, and copied by the kernel twelve times. Keeping what waits for a socket in pieces instead of one long "
        "buffer gave a tenth. Smaller packets, more unsent bytes in the kernel, and joined ends without sockets gave nothing.",
    ),
    Row(
        "relay-round-trip",
        "through the relay, round trip",
        "µs",
        probes.round_trip,
        RELAYED,
        at_most(0.6),
        tried="There and back it is six processes that wake up one after the other, each for some 1,600 steps of the "
        "interpreter in 44 calls, of which none takes more than a fourteenth: 20 µs, where `sshd` takes 5. Joining the two "
        "sessions within the process, without sockets between, changed nothing, twice. Polling made it four times worse "
        "where all share two cores: the server does not poll, and agents try what pays.",
    ),
    Row(
        "relay-connection",
        "through the relay, new connection",
        "µs",
        probes.connection,
        RELAYED,
        at_most(0.8),
        tried="Two round trips as above, and in both agents what a new connection costs without a relay.",
    ),
)
"""What stands in the table, in its order."""

CURVES = tuple(
    Row(f"{name}@{count}", f"{title} with {count:,} idle", "µs", probe, holding(count), shown=False)
    for name, title, probe in (
        ("round-trip", "round trip", probes.round_trip),
        ("connection", "new connection", probes.connection),
    )
    for count in LEVELS
    if count != MANY
)
"""The points of the plot that are not rows of the table."""

LIGHT_MEMORY = Row(
    "memory@1000",
    "memory per idle forwarded connection, at 1,000",
    "KB",
    probes.memory_per_connection,
    holding(1000),
    once=True,
    shown=False,
)
"""Beside `memory-idle`: what buffers and tables grow by in steps shows as a difference between the two."""

ROWS = {row.name: row for row in (*TABLE, *CURVES, LIGHT_MEMORY)}


def chosen(names: list[str]) -> list[Row]:
    """These rows and what they are compared with; all where none is named. Raises KeyError with an unknown name."""
    if not names:
        return list(ROWS.values())
    rows = {name: ROWS[name] for name in names}
    rows |= {row.empty: ROWS[row.empty] for row in list(rows.values()) if row.empty}
    return list(rows.values())


def curve(name: str, count: int) -> str:
    """The row that holds a point of the plot: `round-trip` or `connection`, at so many idle connections."""
    return f"{name}-idle" if count == MANY else f"{name}@{count}"
