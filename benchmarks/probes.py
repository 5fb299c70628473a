"""How each figure is taken: one measurement on one peer in operation."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import tools
from benchmarks.bed import SETTLE_SECONDS, Bed
from benchmarks.errors import NotApplicable
from benchmarks.processes import memory
from benchmarks.sizes import Sizes

Probe = Callable[[Bed, Sizes], float]

STREAMS = 8
LEAD = 0.3
"""Seconds that bulk streams run before they, or something beside them, are measured."""
KB = 1000


def download(bed: Bed, sizes: Sizes) -> float:
    """One stream of 1 GB (with --quick 250 MB) from the service to the client, from the request to the last byte."""
    return tools.call("download", bed.port, size=sizes.transfer)["mb_s"]


def upload(bed: Bed, sizes: Sizes) -> float:
    """One stream of 1 GB (with --quick 250 MB) from the client to the service, until the service says that it has it."""
    return tools.call("upload", bed.port, size=sizes.transfer)["mb_s"]


def streams(bed: Bed, sizes: Sizes) -> float:
    """Eight streams to the client at once: what arrives in some seconds, all together."""
    return tools.call("streams", bed.port, count=STREAMS, seconds=sizes.bulk_seconds)["mb_s"]


def stream(bed: Bed, sizes: Sizes) -> float:
    """One stream to the client: what arrives in some seconds, once it is under way."""
    return tools.call("stream", bed.port, seconds=sizes.bulk_seconds, warm=LEAD)["mb_s"]


def cpu_download(bed: Bed, sizes: Sizes) -> float:
    """User and system time of all processes of both ends around a download of 2 GB, for each GB."""
    return _cpu(bed, "download", sizes)


def cpu_upload(bed: Bed, sizes: Sizes) -> float:
    """The same around an upload."""
    return _cpu(bed, "upload", sizes)


def round_trip(bed: Bed, sizes: Sizes) -> float:
    """One byte there and back, the next as soon as it has returned; median."""
    return tools.call("round_trip", bed.port, seconds=sizes.seconds)["median_us"]


def paced(bed: Bed, sizes: Sizes) -> float:
    """One byte there and back, then a millisecond of sleep; median."""
    return tools.call("paced", bed.port, seconds=2 * sizes.seconds)["median_us"]


def messages(bed: Bed, sizes: Sizes) -> float:
    """Messages of 1 to 8 KiB, evenly spread, there and back, each when the last has returned; 99th percentile."""
    return tools.call("messages", bed.port, seconds=2 * sizes.seconds)["p99_us"] / 1000


def round_trip_beside_bulk(bed: Bed, sizes: Sizes) -> float:
    """As the round trip, while eight downloads run through the same forward; median."""
    longer = 2 * tools.CALL_SECONDS
    bulk = tools.background("streams", bed.port, bed.folder / "bulk.log", count=STREAMS, seconds=longer)
    try:
        time.sleep(LEAD)
        figures = tools.call("round_trip", bed.port, seconds=sizes.bulk_seconds)
        bulk.require()
    finally:
        bulk.stop()
    return figures["median_us"] / 1000


def connection(bed: Bed, sizes: Sizes) -> float:
    """Connect, one byte there and back, close, one after the other; median."""
    return tools.call("connections", bed.port, seconds=sizes.seconds)["median_us"]


def connections_at_once(bed: Bed, sizes: Sizes) -> float:
    """The same, sixteen at a time; how many are done in a second."""
    return tools.call("connections_at_once", bed.port, seconds=sizes.seconds)["per_s"]


def stream_far(bed: Bed, sizes: Sizes) -> float:
    """One stream to the client while a long line between the ends holds all bytes for 25 ms each way, once it is under way."""
    return tools.call("stream", bed.port, seconds=sizes.far_seconds, warm=sizes.far_warm)["mb_s"]


def memory_per_connection(bed: Bed, _sizes: Sizes) -> float:
    """What 5,000 open connections add to the proportional set size of one end, the larger; each has carried a byte."""
    return max(memory_by_end(bed).values())


def memory_by_end(bed: Bed) -> dict[str, float]:
    """KB that each idle connection adds to all processes of an end, by end."""
    before, after = bed.memory[0], bed.memory[bed.setup.open]
    return {end: (after[end] - before[end]) / bed.setup.open / KB for end in after}


def memory_per_login(bed: Bed, sizes: Sizes) -> float:
    """What 50 more SSH connections, logged in and idle, add to the proportional set size of the server end."""
    login = bed.peer.login()
    if login is None:
        raise NotApplicable("does not speak SSH")
    time.sleep(SETTLE_SECONDS)
    before = memory(bed.peer.pids("server"))
    clients = tools.logins(login.words(), sizes.logins, bed.folder / "logins.log")
    try:
        time.sleep(SETTLE_SECONDS)
        after = memory(bed.peer.pids("server"))
    finally:
        clients.stop()
    return (after - before) / sizes.logins / KB


def _cpu(bed: Bed, tool: str, sizes: Sizes) -> float:
    """Clock ticks are 10 ms: twice the usual bytes make them one in a hundred or less."""
    size = 2 * sizes.transfer
    before = bed.peer.cpu_seconds()
    tools.call(tool, bed.port, size=size)
    return (bed.peer.cpu_seconds() - before) / (size / 1e9)
