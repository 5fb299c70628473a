"""The server's store: full disk, locked, corrupt. Streams notice nothing, the API says so, and no CA is ever made anew."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE
from knot_server.store.database import STORE_FILE
from knot_ssh.errors import KnotError
from tests.faults.sites import OWNER, PATHS, Site, site
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.system import System, running_system
from tests.support.waiting import until

LINES = 2
"""On each path."""
DISK = "16m"
BALLAST = "ballast"
PIECE = bytes(64 * 1024)
REFUSED = 1
"""Exit code."""
NOT_AT_THE_MOMENT = {503, 507}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site whose server keeps its data on a small disk of its own, if this process may mount one."""
    folder = tmp_path_factory.mktemp("store")
    with small_disk(folder / "server"), site(folder) as made:
        yield made


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs on this folder; an ordinary one where none can be mounted."""
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "knot-test", str(folder)]
    if os.geteuid() == 0:
        subprocess.run(mount, capture_output=True, check=False)
    try:
        yield
    finally:
        if folder.is_mount():
            subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


class Untouched:
    """Lines on both paths that go on, and new ones that are served, whatever the store does."""

    def __init__(self, own: Site, ledger: Ledger) -> None:
        self._ledger = ledger
        port = ledger.service().port
        self._local = {path: own.forward(path, port) for path in PATHS}
        self._lines = [ledger.served(local) for local in self._local.values() for _ in range(LINES)]

    def check(self) -> str:
        """Gives the figure."""
        for local in self._local.values():
            self._ledger.finish([self._ledger.served(local)])
        alive = sum(line.is_live for line in self._lines)
        assert alive == len(self._lines), self._lines
        return f"{alive} of {len(self._lines)} streams go on, {len(self._local)} of {len(self._local)} new ones served"

    def finish(self) -> None:
        self._ledger.finish(self._lines)


def refusal(own: Site, name: str) -> KnotError:
    """How the API refuses to make a space."""
    with pytest.raises(KnotError) as caught:
        own.system.api(OWNER).post("api", "spaces", body={"name": name, "zone": "eu"})
    return caught.value


def make_space(own: Site, name: str) -> bool:
    """Whether the API makes a space."""
    try:
        own.system.api(OWNER).post("api", "spaces", body={"name": name, "zone": "eu"})
    except KnotError:
        return False
    return True


@pytest.mark.fault("disk of the store full", "data path untouched, API 503 or 507, well once there is room")
def test_full_disk(own: Site, figure: Figure) -> None:
    """With no byte left on the server's disk nothing new can be stored, and the API says so; everything else goes on."""
    disk = own.system.folder / "server"
    if not disk.is_mount():
        pytest.skip("only root can mount a small disk")
    ballast = disk / BALLAST
    with Ledger() as ledger:
        untouched = Untouched(own, ledger)
        fill(ballast)
        error = refusal(own, "while-full")
        words = untouched.check()
        ballast.unlink()
        assert make_space(own, "after-full")
        untouched.finish()
    figure(f"{words}; API {error.http_status}: {error}")
    assert error.http_status in NOT_AT_THE_MOMENT


@pytest.mark.fault("store locked", "data path untouched, API 503")
def test_locked_store(own: Site, figure: Figure) -> None:
    """While another process holds the store, the API gives up after a while and says so; streams and new ones go on."""
    with (
        Ledger() as ledger,
        contextlib.closing(sqlite3.connect(own.system.folder / "server" / STORE_FILE, isolation_level=None)) as store,
    ):
        untouched = Untouched(own, ledger)
        store.execute("BEGIN EXCLUSIVE")
        error = refusal(own, "while-locked")
        words = untouched.check()
        store.execute("ROLLBACK")
        until(lambda: make_space(own, "after-lock"), what="the store answers")
        untouched.finish()
    figure(f"{words}; API {error.http_status}: {error}")
    assert error.http_status in NOT_AT_THE_MOMENT


@pytest.mark.fault("store corrupt, or a CA missing", "refuses to start, nothing is made anew")
def test_damaged_data(tmp_path: Path, figure: Figure) -> None:
    """A server with damaged data says so and ends; what is there stays as it is, and with a copy put back it starts."""
    with running_system(tmp_path) as system:
        assert system.server
        assert system.server.stop() == 0
        data, copy = tmp_path / "server", tmp_path / "copy"
        shutil.copytree(data, copy)
        words = []
        for damaged in (STORE_FILE, USER_CA_FILE, HOST_CA_FILE):
            for how in ("missing", "empty", "half", "garbage"):
                damage(data / damaged, how)
                before = content(data)
                words.append(refuses(system))
                assert {**content(data), **before} == content(data), f"{damaged} {how}: the server has changed what was there"
                assert (data / damaged).exists() is (how != "missing"), f"{damaged} {how}: made anew"
                put_back(copy, data)
        system.start()
        figure(f"{len(words)} kinds of damage refused, such as {words[3]!r}")


def fill(ballast: Path) -> None:
    """Leave no byte on the disk."""
    with ballast.open("wb", buffering=0) as file:
        for piece in (PIECE, b"x" * 512, b"x"):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                write_on(file, piece)


def write_on(file: FileIO, piece: bytes) -> None:
    while True:
        file.write(piece)


def damage(file: Path, how: str) -> None:
    whole = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "half":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        file.write_bytes(bytes(255 - byte for byte in whole))


def refuses(system: System) -> str:
    """The one line with which the server refuses to start."""
    words = ("server", "run", "--data", str(system.folder / "server"), "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0")
    return system.knot(*words, code=REFUSED)


def content(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, but for SQLite's own beside the store."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(f"{STORE_FILE}-")}


def put_back(copy: Path, data: Path) -> None:
    shutil.rmtree(data)
    shutil.copytree(copy, data)
