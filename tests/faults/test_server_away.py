"""The server restarts, or is gone for longer than a certificate lives: what that does to streams, direct and relayed."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.beds import FULL
from tests.faults.sites import Site, certified_until, renewed, site, status
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(400)

LIFETIME = 30 if FULL else 10
"""Seconds that certificates live."""
REKEY_BYTES = 1024**2
"""The least there is: a stream of a few MiB goes across several exchanges."""
SETTINGS = {"rekey_bytes": REKEY_BYTES, "connect_timeout": 3}
LINES = 12 if FULL else 4
"""Connections that watch."""
TRANSFER_RATE = 60e6 if FULL else 20e6
"""Bytes a second."""
DRAINED = 6
"""Seconds after which those have ended that a server lets go on when it is told to stop, and some."""
BACK = 2
RECOVERED = 5
RESET = 1
"""Seconds, from the table."""
ENDS = ["restart", "kill"]
"""The server goes in order, or by kill -9."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = ("--certificate-lifetime", str(LIFETIME))
    with site(tmp_path_factory.mktemp("away"), *options, settings=SETTINGS) as made:
        yield made


@pytest.mark.fault(
    "server restarts, relayed", f"killed: reset <= {RESET} s, told to stop: <= {DRAINED} s; new ones <= {BACK} s after"
)
@pytest.mark.parametrize("end", ENDS)
@steadily
def test_restart_resets_relayed_connections(own: Site, figure: Figure, end: str) -> None:
    """Relayed streams are reset at both ends as the server goes; once it is back, new connections are served."""
    with Ledger() as ledger:
        local = own.forward("relay", ledger.service().port)
        lines = [ledger.served(local) for _ in range(LINES)]
        assert status(own.near, local)["mode"] == "relay"
        with ledger.probing(local) as probes:
            gone = own.stop_server(kill=end == "kill")
            until(lambda: all(line.is_reset for line in lines), what="every relayed line is reset")
            seconds = max(line.over_at for line in lines) - gone
            ready = own.start_server()
            until(lambda: any(line.is_whole and line.over_at > ready for line in probes.lines), what="one is served")
            again = probes.first_good(ready)
        figure(f"reset after {seconds:.2f} s, served after {again:.2f} s")
        in_time(seconds, RESET if end == "kill" else DRAINED)
        in_time(again, BACK)
        probes.settled()


@pytest.mark.fault("server restarts, direct", "no connection closed, new ones served meanwhile")
@pytest.mark.parametrize("end", ENDS)
def test_restart_leaves_direct_connections_alone(own: Site, figure: Figure, end: str) -> None:
    """While the server restarts, direct streams flow on, and every new connection is served."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port)
        lines = [ledger.served(local) for _ in range(LINES)]
        with ledger.probing(local) as probes:
            own.restart_server(kill=end == "kill")
            until(own.near.is_running, what="the source is back")
        lost = probes.settled().lost()
        closed = [line for line in lines if not line.is_live]
        figure(f"{len(closed)} of {LINES} closed, {len(lost)} of {len(probes.lines)} new ones lost")
        assert not closed
        assert not lost
        ledger.finish(lines)


@pytest.mark.fault(
    "server away for longer than a certificate lives",
    f"streams go on across >= 2 rekeys, new ones refused with a reason, all well <= {RECOVERED} s after",
)
@steadily
def test_certificates_run_out(own: Site, figure: Figure) -> None:
    """Direct streams outlive the certificates that they began with; nothing new begins, and `port list` says why."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port)
        lines = [ledger.served(local, rate=2 * REKEY_BYTES) for _ in range(LINES)]
        own.stop_server(kill=True)
        end = max(map(certified_until, own.agents.values()))
        until(lambda: time.time() > end, LIFETIME + 10, "certificates have run out")
        before = sum(line.down.received for line in lines)
        until(lambda: sum(line.down.received for line in lines) - before > 4 * REKEY_BYTES, what="keys were exchanged twice")
        refused = ledger.open(local)
        until(lambda: refused.is_over, what="the new connection has an answer")
        assert refused.is_reset
        assert not refused.is_served
        reason = status(own.near, local)["reason"]
        assert reason
        closed = [line for line in lines if not line.is_live]
        with ledger.probing(local) as probes:
            ready = own.start_server()
            until(lambda: any(line.is_whole and line.over_at > ready for line in probes.lines), what="all is well again")
            again = probes.first_good(ready)
            figure(f"{len(closed)} of {LINES} closed; refused: {reason!r}; well after {again:.2f} s")
        assert not closed
        in_time(again, RECOVERED)
        ledger.finish(lines)
        probes.settled()


@pytest.mark.fault(
    "server restarts, then is away past a certificate's life, during a transfer", "all bytes, in order, and the end"
)
def test_transfer_goes_on_without_the_server(own: Site, figure: Figure) -> None:
    """A direct transfer lasts through a renewal, a restart, a kill for longer than certificates live, and another renewal."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port)
        began = time.monotonic()
        line = ledger.open(local, Stream(0), Stream(rate=TRANSFER_RATE))
        since = certified_until(own.near)
        until(lambda: renewed(own.near, since), LIFETIME + 10, "the first renewal")
        own.restart_server(kill=False)
        until(own.near.is_running, what="the source is back")
        own.stop_server(kill=True)
        gone = max(map(certified_until, own.agents.values()))
        until(lambda: time.time() > gone, LIFETIME + 10, "certificates have run out")
        own.start_server()
        until(lambda: renewed(own.near, gone), LIFETIME + 10, "the renewal afterwards")
        ledger.finish([line])
        seconds = time.monotonic() - began
        figure(f"{line.down.received / 1e6:.0f} MB whole, {line.down.received / seconds / 1e6:.0f} MB/s for {seconds:.0f} s")


@pytest.mark.fault("agents restart while the server is away", "persistent forwards restored, known peers reached directly")
def test_agents_restart_without_the_server(own: Site, figure: Figure) -> None:
    """Both agents are started anew while the server is away, and the persistent forward carries connections."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        ledger.finish([ledger.served(local)])
        own.stop_server(kill=True)
        try:
            for name in ("direct", "near"):
                own.agents[name].kill()
            started = max(own.start(name) for name in ("direct", "near"))
            line = ledger.served(local)
            figure(f"served {line.served_at - started:.2f} s after the start")
            ledger.finish([line])
        finally:
            own.start_server()
