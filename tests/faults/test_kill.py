"""kill -9 of either agent, at many moments of a transfer: application and service both see a reset, never a clean end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest

from tests.faults.bridges import Bridge, bridge
from tests.faults.streams import MOMENTS, break_off, moments
from tests.support.figures import Figure
from tests.support.system import System

pytestmark = pytest.mark.timeout(300)
BRIDGES = 2 if MOMENTS <= 8 else 4
"""They take turns: while one's agent starts again, the next one loses its."""


@pytest.fixture(scope="module")
def bridges(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Bridge]]:
    folder = tmp_path_factory.mktemp("bridges")
    with contextlib.ExitStack() as stack:
        planes = ("fast", "stock") * (BRIDGES // 2)
        made = [bridge(system, f"kill-{number}", plane, folder) for number, plane in enumerate(planes)]
        yield [stack.enter_context(one) for one in made]


@pytest.mark.fault("an agent killed at any moment of a transfer", "exact prefixes, reset at both ends")
def test_killed_agents(bridges: list[Bridge], figure: Figure) -> None:
    """At each moment the agent of one side is killed, in turns; after its restart the forward works again."""
    for number, moment in enumerate(moments("kill")):
        victim = ("source", "target")[number // len(bridges) % 2]
        one = bridges[number % len(bridges)]
        break_off(one, moment, partial(one.kill, victim))
        one.start(victim)
    figure(f"{MOMENTS} moments, source and target in turns")
