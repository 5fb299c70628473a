"""SIGTERM in the middle of transfers: what can end in time ends whole, the rest is reset at the deadline."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.faults.sites import PATHS, Site, site
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Line, Stream
from tests.support.services import is_free
from tests.support.system import Running
from tests.support.waiting import until

LINES = 3
RATE = 1e6
SHORT = 2_000_000
"""Bytes of a stream that can end in time: two seconds."""
DEADLINE = 5
"""Seconds that a process drains."""
SLACK = 1.5
"""Seconds beyond it on a machine that has much else to do."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("draining")) as made:
        yield made


class Transfers:
    """On each path some that end by themselves in time, and some that never do."""

    def __init__(self, own: Site, ledger: Ledger, paths: Sequence[str] = PATHS) -> None:
        port = ledger.service().port
        self.local = {path: own.forward(path, port) for path in paths}
        self.short: list[Line] = []
        self.endless: list[Line] = []
        for local in self.local.values():
            self.endless += [ledger.served(local, rate=RATE) for _ in range(LINES)]
            self.short += [ledger.open(local, Stream(SHORT, RATE), Stream(SHORT, RATE)) for _ in range(LINES)]
        until(lambda: all(stream.received for line in self.short for stream in line.streams), what="bytes flow")

    def wait_over(self) -> str:
        """Wait until all have ended, and judge how; gives the figure."""
        until(lambda: all(line.is_over for line in self.short + self.endless), what="every line ends")
        whole = sum(line.is_whole for line in self.short)
        reset = sum(line.is_reset for line in self.endless)
        assert whole == len(self.short), self.short
        assert reset == len(self.endless), self.endless
        return f"{whole} whole, {reset} endless ones reset"


def end(*processes: Running) -> float:
    """SIGTERM to each; gives the moment."""
    for running in processes:
        running.process.send_signal(signal.SIGTERM)
    return time.monotonic()


def seconds_until_gone(moment: float, *processes: Running) -> float:
    for running in processes:
        assert running.wait() == 0
    return time.monotonic() - moment


@pytest.mark.fault("SIGTERM of the source agent", f"streams end whole or are reset, gone after {DEADLINE} s, port free at once")
@steadily
def test_source_drains(own: Site, figure: Figure) -> None:
    """The source accepts nothing more, lets streams end for a while, and resets those that do not."""
    assert own.near.running
    with Ledger() as ledger:
        transfers = Transfers(own, ledger)
        moment = end(own.near.running)
        until(lambda: all(map(is_free, transfers.local.values())), 1, "the ports are free")
        words = transfers.wait_over()
        seconds = seconds_until_gone(moment, own.near.running)
        figure(f"{words}; gone after {seconds:.2f} s")
        in_time(seconds, DEADLINE + SLACK)
    own.start("near")
    own.wait_connected()


@pytest.mark.fault(
    "SIGTERM of the target agents", f"streams end whole or are reset, gone after {DEADLINE} s, none lost after a restart"
)
@steadily
def test_targets_drain(own: Site, figure: Figure) -> None:
    """The targets let streams end; a connection that is made meanwhile is served by their next start or reset, never cut."""
    running = [agent.running for name in PATHS if (agent := own.agents[name]).running]
    assert len(running) == len(PATHS)
    with Ledger() as ledger:
        transfers = Transfers(own, ledger)
        moment = end(*running)
        words = transfers.wait_over()
        seconds = seconds_until_gone(moment, *running)
        figure(f"{words}; gone after {seconds:.2f} s")
        in_time(seconds, DEADLINE + SLACK)
        for path in PATHS:
            own.start(path)
        ledger.finish(ledger.served(local) for local in transfers.local.values())


@pytest.mark.fault(
    "SIGTERM of the server", f"relayed streams end whole or are reset, gone after {DEADLINE} s, direct ones go on"
)
@steadily
def test_server_drains(own: Site, figure: Figure) -> None:
    """The server lets relayed streams end for a while; direct ones notice nothing."""
    assert own.system.server
    with Ledger() as ledger:
        beside = Transfers(own, ledger, ("direct",))
        relayed = Transfers(own, ledger, ("relay",))
        moment = end(own.system.server)
        words = relayed.wait_over()
        seconds = seconds_until_gone(moment, own.system.server)
        own.start_server()
        figure(f"{words}; gone after {seconds:.2f} s; {sum(line.is_live for line in beside.endless)} direct ones go on")
        until(lambda: all(line.is_over for line in beside.short), what="direct streams end")
        assert all(line.is_whole for line in beside.short)
        ledger.finish(beside.endless)
        in_time(seconds, DEADLINE + SLACK)
