"""Pairs of agents to attack, by their settings, with helpers that know what is where."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from knot_ssh.ports import PortsOfServer
from tests.support.measures import Meter
from tests.support.rawssh import RawSSH
from tests.support.services import free_port
from tests.support.system import AgentOf, System

FULL = os.environ.get("KNOT_FULL") == "1"
"""Whether to run with the full numbers, which takes minutes."""

Settings = dict[str, object]


@dataclass(frozen=True, slots=True)
class Bed:
    """A source and a target that are connected, and a person's certificate for the target."""

    source: AgentOf
    target: AgentOf
    endpoint: tuple[str, int]
    key: Path

    @property
    def meters(self) -> tuple[Meter, Meter]:
        return meter("source", self.source), meter("target", self.target)

    def forward(self, remote_port: int) -> int:
        """Forward a free port of the source to this one of the target; gives the local port."""
        return forward(self.source, self.target.name, remote_port)

    def peer(self) -> RawSSH:
        """A connection of our own to the target's endpoint."""
        return RawSSH.login(self.endpoint, self.key)


class Beds:
    """Agents by their settings; each pair is made when first asked for."""

    def __init__(self, system: System, folder: Path) -> None:
        self._system = system
        self._folder = folder
        self._agents: dict[str, AgentOf] = {}
        self._beds: dict[str, Bed] = {}
        self._key: Path | None = None

    @property
    def key(self) -> Path:
        """A key of alice's, and beside it her certificate."""
        self._key = self._key or self._system.certificate("alice", self._folder)
        return self._key

    def agent(self, name: str, settings: Settings) -> AgentOf:
        """The agent of this name, started with these settings when first asked for."""
        if name not in self._agents:
            self._agents[name] = start_agent(self._system, name, settings)
        return self._agents[name]

    def bed(self, name: str, settings: Settings) -> Bed:
        """A pair of agents, both with these settings."""
        if name not in self._beds:
            source, target = self.agent(f"source-{name}", settings), self.agent(f"target-{name}", settings)
            self._beds[name] = Bed(source, target, target.endpoint(), self.key)
        return self._beds[name]


def forward(source: AgentOf, space: str, remote_port: int) -> int:
    """Forward a free port of this space to that one of another; gives the local port."""
    local = free_port()
    order = {"local_port": local, "space": space, "remote_port": remote_port}
    PortsOfServer(source.system.api(source.owner)).forward(source.name, order)
    return local


def stop_forward(source: AgentOf, local: int) -> None:
    PortsOfServer(source.system.api(source.owner)).stop(source.name, local)


def start_agent(system: System, name: str, settings: Settings, owner: str = "alice") -> AgentOf:
    """A new space with a running agent of these settings."""
    agent = system.space(name, owner, run=False)
    agent.start(system.knot("space", "token", name, user=owner), options=("--config", str(settings_file(agent, settings))))
    return agent


def settings_file(agent: AgentOf, settings: Settings) -> Path:
    agent.folder.parent.mkdir(exist_ok=True)
    path = agent.folder.with_suffix(".yaml")
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path


def meter(name: str, agent: AgentOf) -> Meter:
    assert agent.running is not None
    return Meter(name, agent.running.process.pid)
