"""Agents to attack, one pair of each data plane, and a system in a network of its own; started when first needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.beds import FULL, Bed, Beds
from tests.faults.sites import Site, placed_site
from tests.faults.victims import SOON, SOON_STOCK, Victim
from tests.support.load import echo_service
from tests.support.networks import Network, network, reason_without_networks
from tests.support.placed import PlacedSystem
from tests.support.system import System

PLANES = ["fast", "stock"]
ATTACKED = PLANES if FULL else PLANES[:1]
"""The stock data plane has to keep the bounds; whether it endures every attack is looked at in full runs."""
HERE = Path(__file__).parent
UNHURRIED = ("half_close", "hostile_hub", "kill", "ledger", "link", "store", "target", "torn_files", "torn_lists")
"""Modules that measure neither time nor load, and may run beside others."""
BESIDE = [HERE / f"test_{name}.py" for name in UNHURRIED]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let all other tests of this folder have the machine for themselves."""
    for item in items:
        if HERE in item.path.parents and item.path not in BESIDE:
            item.add_marker(pytest.mark.alone)


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


@pytest.fixture(scope="session")
def net() -> Iterator[Network]:
    """A network with places for a server, a source and two targets, one of which the source cannot reach by itself."""
    reason = reason_without_networks()
    if reason:
        pytest.skip(reason)
    with network("server", "near", "far", "off") as made:
        made.part("near", "off")
        yield made


@pytest.fixture(scope="session")
def placed(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with placed_site(PlacedSystem(tmp_path_factory.mktemp("placed"), net), "near", "far", "off") as made:
        yield made


@pytest.fixture
def networked(net: Network, placed: Site) -> Iterator[Site]:
    """A system in that network. What a test has parted or pulled is mended after it."""
    yield placed
    for name in ("server", *placed.agents):
        net.plug(name)
    net.join("far")
    placed.stand_up()
    placed.stop_forwards()


@pytest.fixture(params=ATTACKED)
def victim(request: pytest.FixtureRequest, beds: Beds, forwards: dict[str, int], echo: int) -> Victim:
    """A target to attack."""
    name = f"hostile-{request.param}"
    bed = beds.bed(name, Victim.settings(request.param))
    local = forwards.setdefault(name, 0) or bed.forward(echo)
    forwards[name] = local
    return Victim(bed, local, echo, SOON if request.param == "fast" else SOON_STOCK)
