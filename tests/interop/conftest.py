"""What the tests with stock clients share: one desk with ~/.ssh/knot, and both ways to backend-api."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.support.plainssh import WAYS, Desk, Way, set_up
from tests.support.sshdsite import Site, joined
from tests.support.system import running_system
from tests.support.waiting import until


@pytest.fixture(scope="session")
def desk(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """alice's desk, set up once frontend and backend-api were there."""
    if not shutil.which("ssh"):
        pytest.skip("OpenSSH's ssh is not installed")
    return set_up(pair.system, tmp_path_factory.mktemp("desk"), "alice")


@pytest.fixture(scope="session", params=WAYS)
def way(request: pytest.FixtureRequest, desk: Desk, pair: Pair) -> Way:
    """The way from alice's desk to backend-api."""
    return WAYS[request.param](desk, pair.backend)


@pytest.fixture
def shared(way: Way) -> Iterator[Way]:
    """The same way over one connection that stays, made by ControlMaster and ControlPersist.

    With ControlPersist ssh closes the jump's stderr; without it, what reads that of `ssh -f` would wait for its end. Its socket
    lies in a folder of short name: to 40 digits for %C ssh adds 17 characters, and the whole may have 107 (unix(7)).
    """
    with tempfile.TemporaryDirectory(prefix="knot-") as folder:
        control = ("-o", f"ControlPath={folder}/%C")
        result = way.run("-fN", *control, "-o", "ControlMaster=auto", "-o", "ControlPersist=60")
        assert result.returncode == 0, result.stderr
        yield Way(way.desk, way.host, (*way.options, *control))
        way.run(*control, "-O", "exit")
        until(lambda: not any(Path(folder).iterdir()), what="the shared connection has ended")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A system with a machine that has an ordinary sshd, one for each module that needs it."""
    folder = tmp_path_factory.mktemp("sshd")
    with running_system(folder) as system, joined(system, folder / "machine", system.space("frontend"), "db") as site:
        yield site
