"""An agent, a server and a command line whose environment was prepared by somebody else."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.figures import Figure
from tests.support.services import answering, ask, free_port, serving
from tests.support.system import System
from tests.support.waiting import until

TRAPS = (
    "config",
    "known_hosts",
    "known_hosts2",
    "authorized_keys",
    "id_ed25519",
    "id_ed25519-cert.pub",
    "id_rsa",
    "environment",
)
"""What stock ssh looks for in `~/.ssh`."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose `~/.ssh` holds named pipes: whoever opens one to read it hangs, see fifo(7)."""
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / ".ssh").mkdir(mode=0o700)
    for name in TRAPS:
        os.mkfifo(folder / ".ssh" / name, 0o600)
    return folder


def opened(home: Path) -> list[str]:
    """Which of the pipes have a reader, who waits in vain."""
    return [name for name in TRAPS if has_reader(home / ".ssh" / name)]


def has_reader(pipe: Path) -> bool:
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def test_traps_work(home: Path) -> None:
    """Whoever opens one of these files is noticed."""
    reader = threading.Thread(target=(home / ".ssh" / "known_hosts").read_bytes)
    reader.start()
    until(lambda: opened(home) == ["known_hosts"], what="it is noticed")
    reader.join()


@contextlib.contextmanager
def key_agent(folder: Path) -> Iterator[socket.socket]:
    """A socket that is said to be an ssh-agent's."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "agent"))
        listener.listen()
        listener.setblocking(False)
        yield listener


def callers(listener: socket.socket) -> int:
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            count += 1
    return count


@pytest.mark.threat(25, "poisoned ~/.ssh/config, known_hosts, keys, SSH_AUTH_SOCK, SSH_ASKPASS", "nothing read, none called")
def test_poisoned_home(tmp_path: Path, home: Path, figure: Figure) -> None:
    """Server, two agents and the command line do their work; nothing in `~/.ssh` is opened, and no ssh-agent is called."""
    trap = tmp_path / "called"
    with key_agent(tmp_path) as listener:
        poison = {
            "HOME": str(home),
            "SSH_AUTH_SOCK": str(tmp_path / "agent"),
            "SSH_ASKPASS": f"touch {trap}",
            "SSH_ASKPASS_REQUIRE": "force",
            "DISPLAY": ":0",
        }
        with poisoned(tmp_path / "system", poison) as system, serving(answering(b"through")) as port:
            source = system.space("source")
            system.space("target")
            local = free_port()
            source.knot("port", "forward", str(local), "target", str(port))
            answer = ask(local)
            readers = opened(home)
        calls = callers(listener)
    figure(f"{len(readers)} of {len(TRAPS)} files opened, {calls} calls of the ssh-agent")
    assert answer == b"through"
    assert (readers, calls, trap.exists()) == ([], 0, False)


class Poisoned(System):
    """A system whose processes all have this in their environment."""

    poison: dict[str, str]

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        return super().environment(extra) | self.poison


@contextlib.contextmanager
def poisoned(folder: Path, poison: dict[str, str]) -> Iterator[System]:
    folder.mkdir()
    system = Poisoned(folder)
    system.poison = poison
    try:
        system.start()
        yield system
    finally:
        system.close()
