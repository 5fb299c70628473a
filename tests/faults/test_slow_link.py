"""A slow cable between agents: a hundred writers cost neither agent nor server more memory than the bound."""

from __future__ import annotations

import pytest

from tests.faults.beds import FULL, meter
from tests.faults.sites import Site, place_of
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.measures import MIB, Growth, Meter
from tests.support.networks import Network
from tests.support.waiting import until

WRITERS = 100
RATE = "8mbit"
PASSED = 20_000_000 if FULL else 5_000_000
"""Bytes that have come through before memory is looked at."""
BOUND = 64 * MIB
PATIENCE = 90


@pytest.mark.timeout(240)
@pytest.mark.fault(f"slow link ({RATE}), {WRITERS} writers", f"memory < {BOUND // MIB} MiB")
@pytest.mark.parametrize("path", ["direct", "relay"])
def test_slow_link(networked: Site, net: Network, figure: Figure, path: str) -> None:
    """A hundred connections write as fast as they can towards a target behind a slow cable, then all of them end whole."""
    own = networked
    name = {"direct": "far", "relay": "off"}[path]
    near, target = place_of(own.near), own.agents[name]
    with Ledger() as ledger:
        local = own.forward(name, ledger.service(place_of(target)).port, path=path)
        server = own.system.server
        assert server
        meters = [meter("source", own.near), meter("target", target), Meter("server", server.process.pid)]
        growths = [Growth(each) for each in meters]
        net.slow_down(name, RATE)
        try:
            lines = [ledger.open(local, Stream(), Stream(0), place=near) for _ in range(WRITERS)]
            until(lambda: sum(line.up.received for line in lines) > PASSED, PATIENCE, "bytes have come through")
            held = [growth.peak for growth in growths]
        finally:
            net.speed_up(name)
        ledger.finish(lines, PATIENCE)
        sent = sum(line.up.sent for line in lines)
        names = ", ".join(f"{each.name} {peak / MIB:.0f}" for each, peak in zip(meters, held, strict=True))
        figure(f"{names} MiB; {sent / 1e6:.0f} MB arrived in the end")
        assert max(held) < BOUND
