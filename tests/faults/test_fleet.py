"""A server that is killed has its whole fleet back soon, since it has told every agent how far to spread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.server import Server
from knot_server.roster import SECONDS_A_LOGIN
from tests.faults.beds import FULL
from tests.support.figures import Figure

pytestmark = pytest.mark.timeout(240)
AGENTS = 500 if FULL else 60
"""All of one owner and one zone: that takes the most."""
BACK = 10.0
"""Seconds after which the last of 500 has to be back."""
SPREAD = AGENTS * SECONDS_A_LOGIN
"""Seconds over which they are to come."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("fleet")) as server:
        yield server


@pytest.fixture(scope="module")
def crowd(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """Agents that have joined, in one process."""
    folder: Path = tmp_path_factory.mktemp("agents") / "all"
    with Crowd(folder) as crowd:
        crowd.join(server.hub, server.spaces(AGENTS, owners=1))
        yield crowd


@pytest.mark.fault(f"kill -9 of the server of {AGENTS} agents", f"all back in {BACK:g} s, told how far to spread")
@pytest.mark.parametrize("certified", [True, False], ids=["certified", "certificates-run-out"])
def test_all_come_back(server: Server, crowd: Crowd, certified: bool, figure: Figure) -> None:
    """Every agent is connected and certified again some seconds after the server is, and knows how far to spread next time."""
    told = crowd.state().spreads
    assert min(told) > 0
    if not certified:
        crowd.forget()
    server.kill()
    ready = server.start()
    back = crowd.wait()
    seconds, cpu = back.last - ready, server.cpu()
    spreads = crowd.state().spreads
    figure(
        f"{AGENTS} agents back in {seconds:.1f} s, {cpu / AGENTS * 1000:.1f} ms of the server's CPU each; "
        f"spread {min(told):.2f} to {max(told):.2f} s"
    )
    assert seconds < BACK
    assert min(spreads) > 0
    assert max(spreads) == pytest.approx(SPREAD)
    if FULL:
        assert min(told) > SPREAD / 2, "the fleet has doubled since they were told"
