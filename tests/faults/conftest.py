"""Agents to attack: one pair of each data plane, started when first needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.beds import FULL, Bed, Beds
from tests.faults.victims import SOON, SOON_STOCK, Victim
from tests.support.load import echo_service
from tests.support.system import System

PLANES = ["fast", "stock"]
ATTACKED = PLANES if FULL else PLANES[:1]
"""The stock data plane has to keep the bounds; whether it endures every attack is looked at in full runs."""


@pytest.fixture(scope="session")
def beds(system: System, tmp_path_factory: pytest.TempPathFactory) -> Beds:
    return Beds(system, tmp_path_factory.mktemp("beds"))


@pytest.fixture(params=PLANES)
def bed(request: pytest.FixtureRequest, beds: Beds) -> Bed:
    """Two connected agents, with each data plane in turn."""
    plane: str = request.param
    return beds.bed(plane, {"data_plane": plane})


@pytest.fixture(scope="session")
def echo() -> Iterator[int]:
    """The port of an echo service in a process of its own."""
    with echo_service() as port:
        yield port


@pytest.fixture(scope="session")
def forwards() -> dict[str, int]:
    """Local ports of forwards that stay, by the name of their bed."""
    return {}


@pytest.fixture(params=ATTACKED)
def victim(request: pytest.FixtureRequest, beds: Beds, forwards: dict[str, int], echo: int) -> Victim:
    """A target to attack."""
    name = f"hostile-{request.param}"
    bed = beds.bed(name, Victim.settings(request.param))
    local = forwards.setdefault(name, 0) or bed.forward(echo)
    forwards[name] = local
    return Victim(bed, local, echo, SOON if request.param == "fast" else SOON_STOCK)
