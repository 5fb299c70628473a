"""A clock that is wrong is told of: once, and again when it has changed."""

from __future__ import annotations

import pytest
import structlog
from structlog.typing import EventDict

from knot_agent.clock import SKEW, Clock
from knot_keys.keyfiles import new_key
from tests.unit.knot_agent.conftest import Office

NOW = 1_800_000_000


def told(office: Office, *skews: float) -> list[EventDict]:
    """What is logged when our clock is ahead by these seconds, one after the other."""
    issued = office.certified(new_key("x"), 3600, NOW).certificate
    assert issued
    clock = Clock()
    with structlog.testing.capture_logs() as logs:
        for skew in skews:
            clock.compare(issued, NOW + skew)
    return logs


@pytest.mark.parametrize("skew", [0, SKEW, -SKEW])
def test_small_difference(office: Office, skew: float) -> None:
    """What back-dating makes good is no news."""
    assert told(office, skew) == []


@pytest.mark.parametrize(("skew", "direction"), [(31, "ahead of"), (-31, "behind"), (86400, "ahead of"), (-86400, "behind")])
def test_difference(office: Office, skew: float, direction: str) -> None:
    """A difference is told with its size and direction, however often it is seen once."""
    [warning] = told(office, skew, skew, skew + 5)
    assert (warning["log_level"], warning["seconds"]) == ("warning", abs(skew))
    assert f"ours is {direction} the server's" in warning["reason"]


def test_changes(office: Office) -> None:
    """Another difference is told, and so is that it is gone."""
    logs = told(office, 100, 600, 600, 0, 0, -100)
    assert [entry.get("seconds", entry["event"]) for entry in logs] == [100, 600, "clock agrees with the server's again", 100]
