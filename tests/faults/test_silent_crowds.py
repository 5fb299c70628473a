"""Thousands of connections that never log in, or only ask for keys, at an endpoint and at the hub: who has a certificate is let
in all the same."""

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
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

CROWD = 5_000
LULL = 2
"""Seconds of flood before the first good login."""
LOGINS = 50 if FULL else 10
SOON = 1
"""Seconds, from the table."""
MEMORY = {"endpoint": 128 * MIB, "hub": 256 * MIB}
"""What the crowd may cost whoever it besets, who keeps 256 and 1,024 of it at a time, and collects the rest as garbage."""
FLOOD = {"endpoint": 200, "hub": 500}
"""Connections that the flood holds at a time: half of those who may wait, or more."""
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


@pytest.mark.fault("flood of key exchanges", f"a good login from elsewhere takes < {SOON} s")
@pytest.mark.parametrize("where", ["endpoint", "hub"])
@steadily
def test_good_login_beside_key_exchanges(beset: Bed, system: System, figure: Figure, where: str) -> None:
    """Whoever asks for key exchanges as fast as they can waits for their turn, and who comes from another address does not."""
    assert system.server
    hub = Address.parse(system.hub)
    address = beset.endpoint if where == "endpoint" else (hub.host, hub.port)
    meter = beset.meters[1] if where == "endpoint" else Meter("server", system.server.process.pid)
    growth = Growth(meter)
    times = []
    with Load("exchanges", "127.0.0.2", address[0], str(address[1]), str(FLOOD[where])) as crowd:
        crowd.line()
        flooding = time.monotonic()
        until(lambda: time.monotonic() > flooding + LULL, what="the flood has used what it may at once")
        for _ in range(LOGINS):
            began = time.monotonic()
            with RawSSH.login(address, beset.key):
                times.append(time.monotonic() - began)
        peak = growth.peak
        lasted = time.monotonic() - flooding
        made = crowd.finish()["made"]
    figure(
        f"{made / lasted:.0f} connections a second that ask for keys: login {1000 * percentile(times, 0.5):.0f} ms, at most "
        f"{1000 * max(times):.0f} ms, memory {peak / MIB:.0f} of {MEMORY[where] // MIB} MiB"
    )
    in_time(max(times), SOON)
    assert peak < MEMORY[where]
