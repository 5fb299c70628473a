"""Fixtures: one running system a session for all tests that leave its shared spaces alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.figures import Figure, register, take_down
from tests.support.services import free_port
from tests.support.system import AgentOf, System, running_system


def pytest_configure(config: pytest.Config) -> None:
    register(config)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored, down to what we start
    if work := getattr(config, "workerinput", None):
        shorten(config, work["workerid"])


def shorten(config: pytest.Config, worker: str) -> None:
    """Give a worker of pytest-xdist a temporary folder with a short name: agents' sockets lie in it, whose paths may have 107
    bytes, see unix(7)."""
    config.option.basetemp = str(Path(config.option.basetemp).with_name(worker.removeprefix("gw")))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Takes down what a test has measured, for the tables of faults and threats."""
    return take_down(request)


@dataclass(frozen=True, slots=True)
class Pair:
    """alice's `frontend` and `backend-api`, both running in zone eu. Tests use ports of their own and stop nothing."""

    system: System
    frontend: AgentOf
    backend: AgentOf

    def forward(self, remote_port: int, *options: str) -> int:
        """Forward a free port of frontend to this port of backend-api, from inside; gives the local port."""
        local = free_port()
        self.frontend.knot("port", "forward", str(local), "backend-api", str(remote_port), *options)
        return local


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("knot")) as system:
        yield system


@pytest.fixture(scope="session")
def pair(system: System) -> Pair:
    return Pair(system, system.space("frontend"), system.space("backend-api"))
