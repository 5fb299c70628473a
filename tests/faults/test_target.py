"""Targets that are away, refuse or reset: the application sees a reset, and nothing that was not sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bridges import Bridge, bridge
from tests.faults.streams import DOWN, MOMENTS, STEP, UP, moments
from tests.support.figures import Figure
from tests.support.peers import Finish, Peer, converse, cut, moved
from tests.support.services import outcome
from tests.support.system import System


@pytest.fixture(scope="module")
def standing(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with bridge(system, "target", "fast", tmp_path_factory.mktemp("target"), connect_timeout=1) as made:
        yield made


@pytest.mark.fault("a service resets at any moment", "exact prefix and reset at the application")
def test_service_that_resets(standing: Bridge, figure: Figure) -> None:
    """A service that resets while bytes flow both ways: the application has a prefix and a reset, each time."""
    for moment in moments("service"):
        with standing.lines(1) as ((near, far),):
            client = Peer(near, UP, STEP, STEP, Finish.NEVER)
            service = Peer(far, DOWN, STEP, STEP, Finish.NEVER)
            service.leaves = moved(service, moment)
            converse(client, service)
        assert client.seen == cut(DOWN, client.received)
    figure(f"{MOMENTS} moments")


def test_service_that_refuses(standing: Bridge) -> None:
    """Where no service listens, every application sees a reset and no byte."""
    with standing.lines(1):  # both agents are there
        assert {outcome(standing.ports.nobody) for _ in moments("refused")} == {("reset", b"")}


@pytest.mark.fault("the target's agent is away", "held, reset after the limit, served after its return")
def test_target_that_is_away(standing: Bridge, figure: Figure) -> None:
    """While the target's agent is away an application is held, then reset; after the agent's return it is served."""
    with standing.lines(1):
        standing.kill("target")
    assert outcome(standing.ports.ipv4) == ("reset", b"")
    standing.start("target")
    with standing.lines(1):
        figure("reset while it was away, served after its start")
