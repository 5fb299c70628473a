"""The interface of everything that is measured: two processes between a local port and a service."""

from __future__ import annotations

import abc
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.errors import Missing
from benchmarks.processes import Process, cpu_seconds, descendants, memory

Route = Callable[[int], int]
"""Gives the port that leads to a port: itself, or that of a relay in between."""


@dataclass(frozen=True, slots=True)
class Login:
    """How to log in at the peer's SSH server."""

    port: int
    user: str
    key: Path
    certificate: Path | None = None

    def words(self) -> list[str]:
        """As `load/logins.py` takes it."""
        return ["127.0.0.1", str(self.port), self.user, str(self.key), str(self.certificate or "")]


class Peer(abc.ABC):
    """One way to forward a port. Its ends are processes: `client`, where connections come in, and `server`."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What is run, in one line for the report."""
    tasks_per_connection: ClassVar[int] = 0
    """Processes or threads that each open connection takes, at both ends together."""
    can_relay: ClassVar[bool] = False
    """Whether its ends can talk through a third party, encrypted from end to end."""

    def __init__(self, folder: Path, route: Route = int, *, relayed: bool = False) -> None:
        """`folder` exists and is its own; `route` lies between client and server end, or, where `relayed`, a relay."""
        self.folder = folder
        self.route = route
        self.relayed = relayed
        self.ends: dict[str, Process] = {}

    @classmethod
    def version(cls) -> str:
        """What exactly is run. Raises Missing, with the reason, where it cannot run."""
        return ""

    @abc.abstractmethod
    def start(self) -> None:
        """Start what does not depend on the forward."""

    @abc.abstractmethod
    def forward(self, service_port: int) -> int:
        """Forward to the service; gives the local port. Called once, after `start`."""

    def login(self) -> Login | None:
        """How to log in at its SSH server; None where there is none."""
        return None

    def pids(self, end: str) -> list[int]:
        """All processes of an end now."""
        pid = self.ends[end].pid
        return [pid, *descendants(pid)]

    def cpu_seconds(self) -> float:
        """What both ends have used so far."""
        return sum(cpu_seconds(self.pids(end)) for end in self.ends)

    def memory(self) -> dict[str, int]:
        """Bytes by end."""
        return {end: memory(self.pids(end)) for end in self.ends}

    def require(self) -> None:
        """Raises Failed when an end has gone."""
        for process in self.ends.values():
            process.require()

    def stop(self) -> None:
        """End every process."""
        for process in self.ends.values():
            process.stop()

    def run(self, end: str, command: list[str], *, env: dict[str, str] | None = None) -> Process:
        """Start the process of an end."""
        self.ends[end] = Process(command, self.folder / f"{self.name}-{end}.log", env=env, cwd=self.folder)
        return self.ends[end]


def program(name: str) -> str:
    """Where a program is. Raises Missing."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if not found:
        raise Missing(f"`{name}` is not installed")
    return found


def line_with(words: str, *command: str) -> str:
    """The first line with these words that a command prints, on whichever stream."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    return next((line for line in (done.stdout + done.stderr).splitlines() if words in line), "version unknown")


def make_key(path: Path) -> Path:
    """A new Ed25519 key without passphrase; the public one lies beside it."""
    subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path
