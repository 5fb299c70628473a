"""Targets that are away, refuse or reset: the application sees a reset, and nothing that was not sent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bridges import Bridge, bridge
from tests.faults.streams import DOWN, STEP, UP, moments
from tests.support.peers import Finish, Peer, converse, cut, moved
from tests.support.services import outcome
from tests.support.system import System


@pytest.fixture(scope="module")
def standing(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bridge]:
    with bridge(system, "target", "fast", tmp_path_factory.mktemp("target"), connect_timeout=1) as made:
        yield made


def test_service_that_resets(standing: Bridge) -> None:
    """A service that resets while bytes flow both ways: the application has a prefix and a reset, each time."""
    for moment in moments("service"):
        with standing.lines(1) as ((near, far),):
            client = Peer(near, UP, STEP, STEP, Finish.NEVER)
            service = Peer(far, DOWN, STEP, STEP, Finish.NEVER)
            service.leaves = moved(service, moment)
            converse(client, service)
        assert client.seen == cut(DOWN, client.received)


def test_service_that_refuses(standing: Bridge) -> None:
    """Where no service listens, every application sees a reset and no byte."""
    with standing.lines(1):  # both agents are there
        assert {outcome(standing.ports.nobody) for _ in moments("refused")} == {("reset", b"")}


def test_target_that_is_away(standing: Bridge) -> None:
    """While the target's agent is away an application is held, then reset; after the agent's return it is served."""
    with standing.lines(1):
        standing.kill("target")
    assert outcome(standing.ports.ipv4) == ("reset", b"")
    standing.start("target")
    with standing.lines(1):
        pass
