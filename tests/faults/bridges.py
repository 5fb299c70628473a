"""Two agents and a forward between them that outlives both: once a killed agent has been started again, all is as before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.configured import ConfiguredAgent
from tests.support.doors import Doors, Line, Ports
from tests.support.ports import free_ports
from tests.support.relay import Relay, relaying
from tests.support.system import System
from tests.support.waiting import until

OWNER = "faults"
PATIENCE = 60
"""Seconds for an agent to start on a machine that has much else to do."""
Settings = dict[str, Any]


class Bridge:
    """Forwards from `source` to `target`, one to each door. Made by `bridge`."""

    def __init__(
        self, system: System, name: str, settings: Settings, folder: Path, free: list[int], relay: Relay | None
    ) -> None:
        self.doors = Doors()
        self.relay = relay
        self.source = ConfiguredAgent(system, f"{name}-source", OWNER, settings, folder)
        advertised = {"advertise": [f"127.0.0.1:{relay.port}"]} if relay else {}
        self.target = ConfiguredAgent(system, f"{name}-target", OWNER, settings | advertised, folder)
        self.endpoint, *local = free
        self.ports = Ports(*local)
        self._api = system.api(OWNER)
        self.ask()
        self.start("source")
        self.start("target")

    def ask(self) -> None:
        """Ask for the forwards, for the first time or again: then the link is dialled at once.

        By itself a link that is lost time after time is dialled less and less often.
        """
        for here, there in zip(self.ports, self.doors.ports, strict=True):
            body = {"local_port": here, "space": self.target.name, "remote_port": there, "persistent": True, "force": True}
            self._api.post("space-io", self.source.id, "port", "forward", body=body)

    def start(self, which: str) -> None:
        """Start the `source` or the `target`, for the first time or again."""
        if which == "source":
            self.source.start_without_waiting()
        else:
            self.target.start_without_waiting(listen=f"127.0.0.1:{self.endpoint}")

    def kill(self, which: str) -> None:
        """kill -9."""
        (self.source if which == "source" else self.target).kill()

    def close(self) -> None:
        """Stop both agents."""
        try:
            for agent in (self.source, self.target):
                if agent.running:
                    agent.running.stop()
        finally:
            self.doors.close()

    @contextlib.contextmanager
    def lines(self, count: int) -> Iterator[list[Line]]:
        """So many connections, as soon as both agents are there."""
        with contextlib.ExitStack() as stack:
            lines = []
            for _ in range(count):
                line = until(lambda: self.doors.attempt(self.ports), PATIENCE, "the forward works again")
                for sock in line:
                    stack.enter_context(sock)
                lines.append(line)
            yield lines


@contextlib.contextmanager
def bridge(system: System, name: str, plane: str, folder: Path, *, relayed: bool = False, **settings: Any) -> Iterator[Bridge]:
    """A bridge of agents that are just starting; with a relay between them where one is wanted, and further settings."""
    with contextlib.ExitStack() as stack:
        free = free_ports(5)
        relay = stack.enter_context(relaying(free[0])) if relayed else None
        made = Bridge(system, name, {"data_plane": plane, **settings}, folder, free, relay)
        stack.callback(made.close)
        yield made
