"""One forward after another, each through every test of the contract."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.contract.variants import VARIANTS, Ciphers, Lab, Tells, Variant
from tests.support.doors import Doors, Line, Ports
from tests.support.openssh import SSHD
from tests.support.system import System

MISSING = {"ssh": not shutil.which("ssh"), "sshd": not SSHD}


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward to each of the doors, and what is known of it."""

    doors: Doors
    ports: Ports
    tells: Tells
    cipher: str
    ciphers_agreed: Ciphers | None

    def line(self, door: str = "ipv4") -> contextlib.AbstractContextManager[Line]:
        """A connection to this door."""
        return self.doors.line(self.ports, door)

    def lines(self, count: int) -> contextlib.AbstractContextManager[list[Line]]:
        """So many connections at once."""
        return self.doors.lines(self.ports, count)


@pytest.fixture(scope="session")
def lab(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    doors = Doors()
    yield Lab(system, doors, tmp_path_factory.mktemp)
    doors.close()


@pytest.fixture(scope="session", params=VARIANTS, ids=str)
def forward(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Forward]:
    variant: Variant = request.param
    program = variant.name.partition("-")[0]
    if MISSING.get(program):
        pytest.skip(f"OpenSSH's {program} is not installed")
    with variant.open(lab) as (ports, ciphers):
        yield Forward(lab.doors, ports, variant.tells, variant.cipher, ciphers)
