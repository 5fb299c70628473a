"""A peer in operation: its service, its forward, and what lies in between or stays open."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import tools
from benchmarks.errors import Failed
from benchmarks.load.requests import ECHO
from benchmarks.peers.peer import Peer
from benchmarks.processes import Process, available_memory, tasks, until

ANSWER_SECONDS = 30
SETTLE_SECONDS = 0.5
"""Between a change and reading memory: until buffers of the change are given back."""
TASK_MEMORY = 1024 * 1024
"""Bytes that a process or thread may need; more than was seen."""
SHARE_OF_TASKS, SHARE_OF_MEMORY = 0.8, 0.5
"""What one run may take of the machine, which it may share."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a peer is measured in. All setups of a stage are in operation together."""

    stage: str
    open: int = 0
    """Idle connections through the forward."""
    delay: float = 0
    """Milliseconds each way between the peer's two ends."""
    relayed: bool = False
    """Whether the peer's two ends talk through its relay."""


class Bed:
    """One instance of a peer in one setup."""

    def __init__(self, kind: type[Peer], setup: Setup, folder: Path) -> None:
        self.setup = setup
        self.folder = folder
        self.port = 0
        self.memory: dict[int, dict[str, int]] = {}
        """Bytes by end, without connections and with those of the setup."""
        self.peer = kind(folder, self._route, relayed=setup.relayed)
        self._processes: list[Process] = []

    def start(self) -> None:
        """Start everything, and wait until the forward carries a byte. Raises Failed."""
        service, service_port = tools.service(self.folder / "service.log")
        self._processes.append(service)
        self.peer.start()
        self.port = self.peer.forward(service_port)
        until(self._answers, ANSWER_SECONDS, f"the forward of {self.peer.name} does not answer")
        if self.setup.open:
            self._fill(self.setup.open)

    def stop(self) -> None:
        """End everything."""
        self.peer.stop()
        for process in self._processes:
            process.stop()

    def _fill(self, count: int) -> None:
        """Open the idle connections, and weigh what they cost."""
        _require_room(self.peer.tasks_per_connection * count)
        time.sleep(SETTLE_SECONDS)
        self.memory[0] = self.peer.memory()
        self._processes.append(tools.idle(self.port, count, self.folder / "idle.log"))
        time.sleep(SETTLE_SECONDS)
        self.memory[count] = self.peer.memory()
        self.peer.require()

    def _route(self, port: int) -> int:
        if not self.setup.delay:
            return port
        line, line_port = tools.delay(port, self.setup.delay, self.folder / "delay.log")
        self._processes.append(line)
        return line_port

    def _answers(self) -> bool:
        self.peer.require()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                sock.sendall(ECHO)
                return sock.recv(1) == ECHO
        except OSError:
            return False


def _require_room(needed: int) -> None:
    """Raises Failed where so many processes or threads would leave too little to others."""
    allowed = int(Path("/proc/sys/kernel/pid_max").read_text())
    if tasks() + needed > allowed * SHARE_OF_TASKS:
        raise Failed(f"would need {needed:,} processes or threads; the machine allows {allowed:,}")
    if needed * TASK_MEMORY > available_memory() * SHARE_OF_MEMORY:
        raise Failed(f"would need {needed:,} processes or threads, for which memory is short")
