"""Systems of their own for faults that concern the server: a source, a target that is reached directly, one by relay alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knot_keys.certificates import expires_at, read_certificate
from knot_ssh.errors import NotRunning, Unavailable
from knot_ssh.ports import PortsOfServer
from tests.support.configured import ConfiguredAgent
from tests.support.networks import Place, inside
from tests.support.placed import ENDPOINT, PlacedAgent, PlacedSystem
from tests.support.ports import free_ports
from tests.support.services import free_port
from tests.support.system import System
from tests.support.waiting import until

OWNER = "faults"
PATHS = ("direct", "relay")
NOWHERE = "127.0.0.1:1"
"""An address that refuses whoever dials it: an agent that advertises nothing else is reached by relay."""
PATIENCE = 30
"""Seconds for what takes one or two on a machine that has nothing else to do."""
Settings = dict[str, Any]


class Site:
    """One system. The agents' names are those of the paths to them, and `near` for the source."""

    def __init__(self, system: System, agents: dict[str, ConfiguredAgent], endpoints: dict[str, str]) -> None:
        self.system = system
        self.agents = agents
        self.near = agents["near"]
        self._endpoints = endpoints
        for name in agents:
            self.start(name)
        until(lambda: all(map(certified_until, agents.values())), PATIENCE, "every agent is certified")

    def wait_connected(self) -> None:
        """Wait until every agent is connected to the server."""
        until(lambda: all(agent.is_running() for agent in self.agents.values()), PATIENCE, "every agent is connected")

    def stand_up(self) -> None:
        """Start whoever is not running, after a test that failed, and wait until every agent is connected."""
        if self.system.server and self.system.server.process.poll() is not None:
            self.start_server()
        for name, agent in self.agents.items():
            if agent.running and agent.running.process.poll() is not None:
                self.start(name)
        self.wait_connected()

    def forward(self, target: str, remote_port: int, *, path: str | None = None, **options: bool) -> int:
        """Forward a free port of the source to this one of a target, by the API; gives the local port once it is up, and
        reached by this path if one is given."""
        with inside(place_of(self.near)):
            local = free_port()
        self.stand_up()
        order = {"local_port": local, "space": target, "remote_port": remote_port, **options}
        until(lambda: self._forwarded(order), PATIENCE, "the source's agent answers")
        wanted = path or target
        paths = [wanted] if wanted in PATHS else PATHS
        until(lambda: mode(self.near, local) in paths, PATIENCE, f"the link to {target}")
        return local

    def _forwarded(self, order: dict[str, Any]) -> bool:
        """Whether the agent has made it: a connection that a fault before has broken may still have to be found dead."""
        try:
            made = PortsOfServer(self.system.api(OWNER)).forward(self.near.id, order)
        except (NotRunning, Unavailable):
            return False
        return bool(made["state"] != "stopped")

    def stop_forwards(self) -> None:
        """Stop all of the source's."""
        for forward in self.near.forwards():
            PortsOfServer(self.system.api(OWNER)).stop(self.near.id, forward["local_port"])

    def start(self, name: str) -> float:
        """Start an agent again, and do not wait for it; gives the moment."""
        moment = time.monotonic()
        self.agents[name].start_without_waiting(listen=self._endpoints[name])
        return moment

    def stop_server(self, *, kill: bool) -> float:
        """End the server; gives the moment when it was told to."""
        assert self.system.server
        moment = time.monotonic()
        if kill:
            self.system.server.kill()
        else:
            assert self.system.server.stop() == 0
        return moment

    def start_server(self) -> float:
        """Start it again, at the same addresses; gives the moment when it was ready."""
        self.system.start()
        return time.monotonic()

    def restart_server(self, *, kill: bool) -> float:
        """Both; gives the moment when it was ready."""
        self.stop_server(kill=kill)
        return self.start_server()


@contextlib.contextmanager
def site(
    folder: Path,
    *options: str,
    settings: Settings | None = None,
    targets: tuple[str, ...] = PATHS,
    program: list[str] | None = None,
) -> Iterator[Site]:
    """One on this machine; with options of the server, settings that all agents share, and another program for the server."""
    system = System(folder, options)
    system.program = program or system.program
    common = settings or {}
    ports = free_ports(1 + len(targets))
    with contextlib.closing(system):
        system.start()
        agents = {"near": ConfiguredAgent(system, "near", OWNER, common, folder)}
        for name in targets:
            own = {"advertise": [NOWHERE]} if name == "relay" else {}
            agents[name] = ConfiguredAgent(system, name, OWNER, common | own, folder)
        yield Site(system, agents, {name: f"127.0.0.1:{port}" for name, port in zip(agents, ports, strict=True)})


@contextlib.contextmanager
def placed_site(system: PlacedSystem, *names: str, settings: Settings | None = None) -> Iterator[Site]:
    """One whose agents are at the places of their names."""
    with contextlib.closing(system):
        system.start()
        agents = {name: PlacedAgent(system, name, OWNER, settings or {}, system.folder) for name in names}
        yield Site(system, dict(agents), dict.fromkeys(names, ENDPOINT))


def place_of(agent: ConfiguredAgent) -> Place | None:
    return agent.place if isinstance(agent, PlacedAgent) else None


def status(agent: ConfiguredAgent, local: int) -> dict[str, Any]:
    """How a forward stands, as the agent itself says."""
    return next(forward for forward in agent.forwards() if forward["local_port"] == local)


def mode(agent: ConfiguredAgent, local: int) -> str | None:
    """How a forward's target is reached at this moment; None when it is not."""
    found = status(agent, local)
    return str(found["mode"]) if found["state"] == "listening" else None


def certified_until(agent: ConfiguredAgent) -> float:
    """When the agent's client certificate ends, by the wall clock; 0 when it has none."""
    found = [read_certificate(file.read_text()) for file in agent.folder.glob("identity-*-cert.pub")]
    return max(map(expires_at, found), default=0)


def renewed(agent: ConfiguredAgent, since: float) -> bool:
    """Whether it has a certificate that ends later than that."""
    return certified_until(agent) > since
