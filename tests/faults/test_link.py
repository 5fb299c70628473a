"""The connection between two agents is cut in between: every stream over it is reset at both ends, and the link comes back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from tests.faults.bridges import Bridge, bridge
from tests.faults.streams import MOMENTS, break_off, moments
from tests.support.figures import Figure
from tests.support.system import System


@pytest.fixture(scope="module", params=["fast", "stock"])
def relayed(system: System, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Bridge]:
    with bridge(system, f"link-{request.param}", request.param, tmp_path_factory.mktemp("link"), relayed=True) as made:
        yield made


@pytest.mark.fault("the connection between agents cut at any moment", "exact prefixes, reset at both ends")
@pytest.mark.parametrize("how", ["reset", "fin"])
def test_cut_link(relayed: Bridge, how: str, figure: Figure) -> None:
    """Whether TCP tells of a reset or of an end between the agents: no stream may end, only break."""
    assert relayed.relay
    for moment in moments(how):
        break_off(relayed, moment, partial(relayed.relay.cut, how))
        relayed.ask()
    figure(f"{MOMENTS} moments, by {how}")
