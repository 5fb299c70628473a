"""Who attacks alice's spaces in zone eu: spaces of other owners, and of other zones."""

from __future__ import annotations

import pytest

from tests.conftest import Pair
from tests.support.system import AgentOf

OWNERS, ZONES = ("alice", "bob"), ("eu", "us")


@pytest.fixture(scope="session")
def strangers(pair: Pair) -> dict[tuple[str, str], AgentOf]:
    """A space of each owner in each zone, by both, that has been certified; alice's in eu is no stranger."""
    return {
        (owner, zone): pair.system.space(f"from-{owner}-{zone}", owner, zone)
        if (owner, zone) != ("alice", "eu")
        else pair.frontend
        for owner in OWNERS
        for zone in ZONES
    }
