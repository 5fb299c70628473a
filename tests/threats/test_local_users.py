"""Another user of the same machine: the agent's socket, during its start too, and files that are loose for a moment."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import Pair
from tests.faults.beds import FULL
from tests.integration.test_local_socket import started
from tests.support.figures import Figure
from tests.support.system import AgentOf, Running, System
from tests.support.waiting import until

NOBODY = pwd.getpwnam("nobody")
SECRETS = ("journal", "host_ca", "user_ca", "hub_key", "store.db")[: None if FULL else 2]
TRIES = 50
"""Answers that the other user waits for: a start takes that many and more."""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

KNOCK = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[3]))
print("ready", flush=True)
knocks = served = 0
while not (knocks and os.path.exists(sys.argv[4])):
    knocks += 1
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        try:
            sock.connect(sys.argv[1])
            sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"port.list","params":{}}\\n')
            served += bool(sock.recv(1))
        except OSError:
            pass
print(knocks, served)
"""
"""Knocks at a socket all the time, until a file says that it is enough."""


@contextlib.contextmanager
def knocking(path: Path, enough: Path) -> Iterator[subprocess.Popen[str]]:
    """The user nobody, from a process that gives root up first."""
    command = [sys.executable, "-I", "-c", KNOCK, str(path), str(NOBODY.pw_gid), str(NOBODY.pw_uid), str(enough)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        enough.touch()
        process.wait(30)
        assert process.stdout
        process.stdout.close()


def opened_up(agent: AgentOf) -> None:
    """Let anybody pass the folder, as one that was there before the agent may be."""
    agent.folder.mkdir(parents=True, exist_ok=True)
    agent.folder.chmod(0o755)


@as_root
@pytest.mark.threat(14, "another user knocks at the agent's socket, from before its start on", "never served")
@pytest.mark.parametrize("folder", ["private", "open"])
def test_knocking_during_the_start(pair: Pair, tmp_path: Path, figure: Figure, folder: str) -> None:
    """At no moment of a start is another user served, though the folder was open to them before."""
    warm = started(pair, tmp_path, f"warm-{folder}", "")
    warm.stop()
    agent, enough = warm, Path("/tmp") / f"knot-enough-{os.getpid()}-{folder}"
    if folder == "open":
        opened_up(agent)
    try:
        with knocking(agent.folder / "agent.sock", enough) as process:
            agent.start()
            agent.forwards()
            enough.touch()
            assert process.stdout
            knocks, served = map(int, process.stdout.readline().split())
    finally:
        enough.unlink(missing_ok=True)
    figure(f"{knocks} knocks, {served} served")
    assert knocks > TRIES
    assert served == 0


@as_root
@pytest.mark.threat(14, "a user who is named in the settings", "served")
def test_configured_user(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """That another user is served where the settings say so shows that the refusals are for who it is."""
    agent = started(pair, tmp_path, "shared-for-nobody", "socket_users: [nobody]\n")
    enough = Path("/tmp") / f"knot-enough-{os.getpid()}-shared"
    try:
        with knocking(agent.folder / "agent.sock", enough) as process:
            until(lambda: agent.running and agent.forwards() == [], what="it serves its own user")
            enough.touch()
            assert process.stdout
            knocks, served = map(int, process.stdout.readline().split())
    finally:
        enough.unlink(missing_ok=True)
    figure(f"{knocks} knocks, {served} served")
    assert served == knocks > 0


# Loose files


def loose(folder: Path) -> list[str]:
    """What others could read, write or pass, below this folder and it itself; public halves and sockets among them."""
    return [f"{path} {stat.S_IMODE(path.lstat().st_mode):04o}" for path in [folder, *folder.rglob("*")] if is_loose(path)]


def is_loose(path: Path) -> bool:
    return bool(stat.S_IMODE(path.lstat().st_mode) & 0o077) and not path.is_symlink()


class Looking:
    """Looks at these folders again and again, from a thread, for anything that is loose for a moment."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.looks = 0
        self.found: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            for folder in self._folders:
                with contextlib.suppress(FileNotFoundError):  # drafts come and go
                    self.found.update(loose(folder))
            self.looks += 1


def running(system: System, *words: str, log: Path, env: dict[str, str]) -> Running:
    """Start `knot` under umask 000."""
    command = ["sh", "-c", 'umask 000; exec "$@"', "sh", sys.executable, "-m", "knot_ssh", *words]
    process = Running(command, log, system.environment(env))
    system.processes.append(process)
    return process


@pytest.mark.threat(20, "umask 000 for server and agent", "no file but 0600, no folder but 0700, at any moment")
def test_umask_000(tmp_path: Path, figure: Figure) -> None:
    """Keys, certificates, store with `-wal` and `-shm`, journal, locks, socket: none is ever open to others."""
    system = System(tmp_path)
    server, agent = tmp_path / "server", tmp_path / "agent"
    try:
        with umask(0), Looking(server, agent) as looking:
            (tmp_path / "home").mkdir(mode=0o700)
            system.tokens["admin"] = system.knot("server", "init", "--data", str(server))
            system.program = ["sh", "-c", 'umask 000; exec "$@"', "sh", *system.program]
            system.start()
            made = system.api("admin").post("api", "spaces", body={"name": "x", "zone": "eu"})
            words = ("agent", "run", "--data", str(agent), "--server", system.hub, "--listen", "127.0.0.1:0")
            one = running(system, *words, log=tmp_path / "agent.log", env={"KNOT_JOIN_TOKEN": made["join_token"]})
            one.wait_for("endpoint open")
            found = [path for folder in (server, agent) for path in (folder, *folder.rglob("*"))]
    finally:
        system.close()
    left = loose(server) + loose(agent)
    names = {path.name for path in found}
    figure(f"{looking.looks} looks at {len(found)} files and folders: {len(looking.found | {*left})} open to others")
    assert {"store.db-wal", "store.db-shm", "lock", "journal", "user_ca", "host_key", "agent.json"} <= names
    assert (looking.found, left) == (set(), [])


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.threat(20, "CA keys, hub key, store and journal made loose", "refused at start, with the way to mend it")
def test_loose_files_of_the_server(tmp_path: Path, figure: Figure) -> None:
    """A server does not start on what others could have read or changed."""
    system, server = System(tmp_path), tmp_path / "server"
    (tmp_path / "home").mkdir()
    system.knot("server", "init", "--data", str(server))
    for name in SECRETS:
        (server / name).chmod(0o640)
        result = system.run("server", "run", "--data", str(server), "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0")
        assert (result.returncode, result.stdout) == (1, "")
        assert f"chmod 600 {server / name}" in result.stderr
        (server / name).chmod(0o600)
    figure(f"{len(SECRETS)} of {len(SECRETS)} refused, with `chmod 600`")
