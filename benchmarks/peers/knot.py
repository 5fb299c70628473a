"""The product: a server, two spaces with an agent each, and `knot port forward`, as a user would type them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import yaml

from benchmarks.errors import Failed
from benchmarks.peers.peer import Login, Peer, Route
from benchmarks.ports import free_port
from benchmarks.processes import Process, python, until

COMMAND_SECONDS = 60
LINK_SECONDS = 30
SOURCE, TARGET = "frontend", "backend-api"
LOGIN = "knot"
"""Login name at endpoints, which they ignore."""
NOWHERE = "127.0.0.1:1"
"""An address that refuses at once."""


class Knot(Peer):
    """The source's agent is the client end, the target's the server end.

    No byte passes the server, unless the target says that it is to be found where nobody is: then the server relays all.
    """

    name = "knot"
    about = (
        "a server, two agents and `knot port forward`; agents alone are counted, since no byte passes the server; "
        "through the relay: the target gives an address where nobody is"
    )
    can_relay = True
    settings: ClassVar[dict[str, Any]] = {}
    """Goes into the YAML file of both agents."""

    def __init__(self, folder: Path, route: Route = int, *, relayed: bool = False) -> None:
        super().__init__(folder, route, relayed=relayed)
        self._server: Process | None = None
        self._hub = ""
        self._admin: dict[str, str] = {}

    @classmethod
    def version(cls) -> str:
        import knot_ssh

        return f"knot-ssh {knot_ssh.__version__}"

    def start(self) -> None:
        data = str(self.folder / "server")
        token = self._knot("server", "init", "--data", data)
        words = ["server", "run", "--data", data, "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0"]
        self._server = Process(_command(*words), self.folder / "hub.log", env=self._environment({}), cwd=self.folder)
        line = self._server.wait_for("server ready")
        self._admin = {"KNOT_SERVER": _field(line, "url"), "KNOT_TOKEN": token}
        self._hub = _field(line, "ssh")
        self._endpoint = free_port()
        self._agent("server", TARGET, self._endpoint)
        self._agent("client", SOURCE, free_port())

    def forward(self, service_port: int) -> int:
        local = free_port()
        self._knot("port", "forward", str(local), TARGET, str(service_port), env=self._inside)
        mode = "relay" if self.relayed else "direct"
        until(lambda: self._mode() == mode, LINK_SECONDS, f"the forward has no link of mode {mode!r}")
        return local

    def login(self) -> Login:
        certificate = next((self.folder / SOURCE).glob("identity-*-cert.pub"))
        key = certificate.with_name(certificate.name.removesuffix("-cert.pub"))
        return Login(self._endpoint, LOGIN, key, certificate)

    def stop(self) -> None:
        super().stop()
        if self._server:
            self._server.stop()

    def _agent(self, end: str, space: str, port: int) -> None:
        """Make a space, and start its agent; it says that it can be reached by way of the route, or where nobody is."""
        token = self._knot("space", "create", space, "--zone", "bench", env=self._admin)
        address = f"127.0.0.1:{self.route(port) if end == 'server' else port}"
        config = self.folder / f"{space}.yaml"
        config.write_text(yaml.safe_dump({"advertise": [NOWHERE if self.relayed else address], **self.settings}))
        words = ["--data", str(self.folder / space), "--server", self._hub, "--listen", f"127.0.0.1:{port}"]
        command = _command("agent", "run", *words, "--config", str(config))
        self.run(end, command, env=self._environment({"KNOT_JOIN_TOKEN": token})).wait_for("certified")

    @property
    def _inside(self) -> dict[str, str]:
        """What tells a command that it runs in the source space."""
        return {"KNOT_AGENT_SOCKET": str(self.folder / SOURCE / "agent.sock")}

    def _mode(self) -> str | None:
        """How the one forward reaches its target now; None while it does not."""
        found: str | None = json.loads(self._knot("port", "list", "--json", env=self._inside))["forwards"][0]["mode"]
        return found

    def _knot(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Run a command; gives what it prints on stdout."""
        done = subprocess.run(
            _command(*words),
            env=self._environment(env or {}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            raise Failed(f"`knot {' '.join(words[:2])}` failed: {last}")
        return done.stdout.strip()

    def _environment(self, extra: dict[str, str]) -> dict[str, str]:
        """An environment in which nothing of the product is set but this."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith("KNOT_")}
        return outside | {"XDG_CONFIG_HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder)} | extra


def _command(*words: str) -> list[str]:
    return python("knot_ssh", *words)


def _field(line: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", line)
    if not found:
        raise Failed(f"no {name}= in: {line}")
    return found[1]
