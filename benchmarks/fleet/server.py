"""The server under test, as an operator runs it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from benchmarks.errors import Failed
from benchmarks.ports import free_port
from benchmarks.processes import Process, cpu_seconds, memory, python
from knot_ssh.api import Api

ZONE = "bench"


class Server:
    """A new server in a folder. It may be killed, and started again on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.owners: dict[str, Api] = {}
        """The HTTP API as each owner of spaces."""
        self._folder = folder
        self._starts = 0
        self._http, self._ssh = (f"127.0.0.1:{free_port()}" for _ in range(2))  # none that the kernel gives who dials
        command = _knot("server", "init", "--data", str(folder / "server"))
        done = subprocess.run(command, env=_clean(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed((done.stderr.strip().splitlines() or ["without a word"])[-1])
        self._token = done.stdout.strip()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def hub(self) -> str:
        return self._ssh

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> float:
        """Start it; gives the moment when it was ready, on the monotonic clock."""
        self._starts += 1
        words = ["--data", str(self._folder / "server"), "--http", self._http, "--ssh", self._ssh]
        log = self._folder / f"server-{self._starts}.log"
        self._process = Process(_knot("server", "run", *words), log, env=_clean())
        self._process.wait_for("server ready")
        self._start_cpu = cpu_seconds([self.pid])
        return time.monotonic()

    def kill(self) -> None:
        """As a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.stop()

    def spaces(self, count: int, owners: int) -> dict[str, str]:
        """Make so many spaces over the HTTP API, in turn for so many owners; gives join tokens by `owner-space`."""
        admin = Api(f"http://{self._http}", self._token)
        names = [f"owner-{number}" for number in range(owners)]
        for name in names:
            self.owners[name] = Api(f"http://{self._http}", admin.post("api", "users", body={"name": name})["token"])
        made = {}
        for number in range(count):
            body = {"name": f"space-{number}", "zone": ZONE}
            owner = names[number % owners]
            made[f"{owner}-{number}"] = self.owners[owner].post("api", "spaces", body=body)["join_token"]
        return made

    def memory(self) -> int:
        return memory([self.pid])

    def cpu(self) -> float:
        """Seconds of processor time since it was ready."""
        return cpu_seconds([self.pid]) - self._start_cpu


def _knot(*words: str) -> list[str]:
    return python("knot_ssh", *words)


def _clean() -> dict[str, str]:
    """An environment in which nothing of the product is set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KNOT_")}
