"""A source and a target of an owner of their own, by either path, and the seconds until what is open between them has ended."""

from __future__ import annotations

import itertools
from typing import Any

from knot_ssh.ports import PortsOfServer
from tests.faults.sites import NOWHERE
from tests.support.ledger import Line
from tests.support.services import free_port
from tests.support.system import AgentOf, System
from tests.support.waiting import until

LIMIT = 2.0
"""Seconds from the order to the last byte."""
_numbers = itertools.count(1)


class Couple:
    """A source and a target of one owner; the target is reached by this path."""

    def __init__(self, system: System, path: str, owner: str) -> None:
        self.system = system
        self.owner = owner
        self.path = path
        self.api = system.api(owner)
        self.target = self._agent(path)
        self.source = self._agent("direct")

    def _agent(self, path: str) -> AgentOf:
        agent = self.system.space(f"space-{next(_numbers)}", self.owner, run=False)
        agent.folder.parent.mkdir(exist_ok=True)
        file = agent.folder.with_suffix(".yaml")
        file.write_text("{}" if path == "direct" else f"advertise: [{NOWHERE}]")
        token = self.api.post("api", "spaces", agent.id, "token", body={})["join_token"]
        agent.start(token, options=("--config", str(file)))
        return agent

    def forward(self, port: int, **options: bool) -> int:
        local = free_port()
        order = {"local_port": local, "space": self.target.name, "remote_port": port, **options}
        PortsOfServer(self.api).forward(self.source.id, order)
        until(lambda: self.forwarded(local)["mode"] == self.path, what=f"reached by {self.path}")
        return local

    def forwarded(self, local: int) -> dict[str, Any]:
        return next(forward for forward in self.source.forwards() if forward["local_port"] == local)


def ended_after(lines: list[Line], began: float) -> float:
    """Seconds until the last of these had its last byte; all were reset, and not shown as whole."""
    until(lambda: all(line.is_over for line in lines), what=f"they end: {lines}")
    assert all(line.is_reset for line in lines), lines
    return max(line.over_at for line in lines) - began
