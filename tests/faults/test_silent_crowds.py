"""Thousands of connections that never log in, at an endpoint and at the hub: who has a certificate is let in all the same."""

from __future__ import annotations

import time

import pytest

from knot_ssh.addresses import Address
from tests.faults.beds import FULL, Bed, Beds
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.load import DESCRIPTORS_BESIDES, Load, raise_descriptor_limit
from tests.support.measures import MIB, Growth, Meter, percentile
from tests.support.rawssh import RawSSH
from tests.support.system import System

pytestmark = pytest.mark.timeout(300)

CROWD = 5_000
LOGINS = 50 if FULL else 10
SOON = 1
"""Seconds, from the table."""
MEMORY = {"endpoint": 128 * MIB, "hub": 256 * MIB}
"""What the crowd may cost whoever it besets, who keeps 256 and 1,024 of it at a time, and collects the rest as garbage."""
SOURCES = {"own-address": "127.0.0.1", **({"other-address": "127.0.0.2"} if FULL else {})}
"""The crowd's address; the good login comes from the first."""


@pytest.fixture(scope="module")
def beset(beds: Beds) -> Bed:
    if raise_descriptor_limit() < CROWD + DESCRIPTORS_BESIDES:
        pytest.skip(f"the hard limit of open files is below {CROWD + DESCRIPTORS_BESIDES}")
    return beds.bed("beset", {})


@pytest.mark.threat(11, f"{CROWD} silent sockets, from the good login's own address too", f"login < {SOON} s")
@pytest.mark.fault(f"{CROWD} silent connections", f"a good login takes < {SOON} s")
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
@pytest.mark.parametrize("where", ["endpoint", "hub"])
@steadily
def test_good_login(beset: Bed, system: System, figure: Figure, where: str, source: str) -> None:
    """Whoever holds all places without logging in loses them to newcomers, whatever address these come from."""
    assert system.server
    hub = Address.parse(system.hub)
    address = beset.endpoint if where == "endpoint" else (hub.host, hub.port)
    meter = beset.meters[1] if where == "endpoint" else Meter("server", system.server.process.pid)
    growth = Growth(meter)
    times = []
    began = time.monotonic()
    with Load("silent", source, address[0], str(address[1]), str(CROWD)) as crowd:
        crowd.line()
        there = time.monotonic() - began
        for _ in range(LOGINS):
            began = time.monotonic()
            with RawSSH.login(address, beset.key):
                times.append(time.monotonic() - began)
        peak = growth.peak
        made = crowd.finish()["made"]
    figure(
        f"{made} connections, {there:.1f} s to come: login {1000 * percentile(times, 0.5):.0f} ms, at most "
        f"{1000 * max(times):.0f} ms, memory {peak / MIB:.0f} of {MEMORY[where] // MIB} MiB"
    )
    in_time(max(times), SOON)
    assert peak < MEMORY[where]
