"""A whole knot system of real processes: a server, agents, and the command line as users type it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from knot_ssh.api import Api
from knot_ssh.local import SOCKET_FILE, AgentSocket
from knot_ssh.ports import PortsOfAgent
from tests.support.ports import free_ports
from tests.support.waiting import until

COMMAND_TIMEOUT = 60


class Running:
    """A process with a log file; ended at the latest with its system."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str], prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        self._start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*prefix, *command], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
            )

    def lines(self) -> list[str]:
        """What it has logged since it was started."""
        return self.log.read_bytes()[self._start :].decode(errors="replace").splitlines()

    def wait_for(self, words: str, seconds: float = 20) -> str:
        """The first log line with these words; fails when the process ends without it."""

        def look() -> str | None:
            ended = self.process.poll() is not None
            found = next((line for line in self.lines() if words in line), None)
            assert found or not ended, f"ended without {words!r}:\n" + "\n".join(self.lines()[-15:])
            return found

        return until(look, seconds, f"{words!r} in {self.log.name}:\n" + "\n".join(self.lines()[-15:]))

    def wait(self, seconds: float = 20) -> int:
        """The exit code once it has ended."""
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; gives the exit code."""
        self.ask(number)
        return self._end()

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def ends(self) -> bool:
        """Wait for the end that was asked for; bring it about with force if need be."""
        try:
            self._end()
        except AssertionError:
            return False
        return True

    def _end(self) -> int:
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.log.name}: did not stop") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class AgentOf:
    """The agent of a space; may be started again in the same folder."""

    def __init__(self, system: System, name: str, owner: str, space_id: str) -> None:
        self.system = system
        self.name = name
        self.owner = owner
        self.id = space_id
        self.folder = system.folder / "agents" / f"{owner}-{name}"
        self.running: Running | None = None

    def start(self, token: str = "", *, listen: str = "127.0.0.1:0", options: tuple[str, ...] = ()) -> Running:
        """Start the agent and wait until it is connected and certified."""
        running = self.start_without_waiting(token, listen=listen, options=options)
        running.wait_for("hub connected")
        running.wait_for("endpoint open")
        until(self.is_running, what=f"{self.name} is running")
        return running

    def start_without_waiting(self, token: str = "", *, listen: str = "127.0.0.1:0", options: tuple[str, ...] = ()) -> Running:
        self.folder.parent.mkdir(exist_ok=True)
        command = knot_command("agent", "run", "--data", str(self.folder), "--server", self.system.hub, "--listen", listen)
        env = self.system.environment({"KNOT_JOIN_TOKEN": token} if token else {})
        self.running = Running([*command, *options], self.folder.with_suffix(".log"), env)
        self.system.processes.append(self.running)
        return self.running

    def stop(self) -> None:
        assert self.running is not None
        assert self.running.stop() == 0
        until(lambda: not self.is_running(), what=f"{self.name} has left")

    def kill(self) -> None:
        assert self.running is not None
        self.running.kill()

    def is_running(self) -> bool:
        return any(space["id"] == self.id and space["running"] for space in self.system.spaces(self.owner))

    def knot(self, *words: str, code: int = 0) -> str:
        """Run a command inside the space; gives stdout, or stderr when it is to fail."""
        return self.system.knot(*words, env=self.variables, code=code)

    @property
    def variables(self) -> dict[str, str]:
        """What the environment says inside the space."""
        return {"KNOT_AGENT_SOCKET": str(self.folder / "agent.sock")}

    def forwards(self) -> list[dict[str, Any]]:
        """What the agent says of each, asked without starting the command line."""
        found: list[dict[str, Any]] = self.listing()["forwards"]
        return found

    def listing(self) -> dict[str, Any]:
        """The same, and what it says of its settings file."""
        return PortsOfAgent(AgentSocket(self.folder / SOCKET_FILE)).list(None)

    def endpoint(self) -> tuple[str, int]:
        """Where the endpoint listens, as the kernel knows it."""
        assert self.running is not None
        pid = self.running.process.pid
        listing = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
        ports = [int(m[1]) for line in listing.splitlines() if f"pid={pid}," in line and (m := re.search(r":(\d+)\s", line))]
        endpoint = [port for port in ports if port not in {forward["local_port"] for forward in self.forwards()}]
        assert len(endpoint) == 1, listing
        return "127.0.0.1", endpoint[0]

    def identity(self) -> tuple[Path, Path]:
        """The agent's private key and client certificate."""
        certificate = next(self.folder.glob("identity-*-cert.pub"))
        return certificate.with_name(certificate.name.removesuffix("-cert.pub")), certificate


class System:
    """A server in a folder, its users' tokens, and everything started for it."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.options = options
        self.url = ""
        self.hub = ""
        self.http_address, self.ssh_address = (f"127.0.0.1:{port}" for port in free_ports(2))
        self.processes: list[Running] = []
        self.tokens: dict[str, str] = {}
        self.server: Running | None = None
        self.program = knot_command()
        """What runs the server: the command itself, unless a test has another idea."""

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """An environment in which nothing of ours is set but this."""
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("KNOT_", "SSH_"))}
        home = str(self.folder / "home")
        return outside | {"HOME": home, "XDG_CONFIG_HOME": home + "/.config", "XDG_DATA_HOME": home + "/.local"} | extra

    def start(self) -> None:
        """Make the server's data where there is none, and start it; a second start uses the same addresses."""
        data = str(self.folder / "server")
        if "admin" not in self.tokens:
            (self.folder / "home").mkdir(exist_ok=True)
            self.tokens["admin"] = self.knot("server", "init", "--data", data)
        command = [*self.program, "server", "run", "--data", data, "--http", self.http_address, "--ssh", self.ssh_address]
        self.server = Running([*command, *self.options], self.folder / "server.log", self.environment({}))
        self.processes.append(self.server)
        line = self.server.wait_for("server ready")
        self.url = f"http://{self.http_address}" if "--url" in self.options else _field(line, "url")
        self.hub = _field(line, "ssh")
        self.http_address = self.url.partition("://")[2]
        self.ssh_address = self.hub

    def close(self) -> None:
        """End every process, the server last; one that does not end when asked is killed, and fails the test once all others
        are gone."""
        others = [running for running in self.processes if running is not self.server]
        stubborn = [running.log.name for group in (others, self.processes) for running in _stubborn(group)]
        assert not stubborn, stubborn

    def knot(self, *words: str, user: str = "", env: dict[str, str] | None = None, code: int = 0, stdin: str = "") -> str:
        """Run a command; gives stdout, or the one line on stderr when it is to fail with `code`."""
        result = self.run(*words, user=user, env=env, stdin=stdin)
        assert result.returncode == code, f"exit code {result.returncode}, not {code}: {result.stderr or result.stdout}"
        if code == 0:
            return result.stdout.strip()
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1, result.stderr
        return result.stderr.strip()

    def run(
        self, *words: str, user: str = "", env: dict[str, str] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, however it ends."""
        return subprocess.run(
            knot_command(*words),
            env=self.as_user(user, env),
            capture_output=True,
            text=True,
            input=stdin,
            timeout=COMMAND_TIMEOUT,
            check=False,
        )

    def as_user(self, user: str, extra: dict[str, str] | None = None) -> dict[str, str]:
        """The environment of somebody at a desktop; of nobody without a name."""
        known = {"KNOT_SERVER": self.url, "KNOT_TOKEN": self.user(user)} if user else {}
        return self.environment(known | (extra or {}))

    def user(self, name: str) -> str:
        """The API token of a user, who is made when first asked for."""
        if name not in self.tokens:
            self.tokens[name] = self.knot("user", "create", name, user="admin")
        return self.tokens[name]

    def api(self, user: str) -> Api:
        return Api(self.url, self.user(user))

    def spaces(self, owner: str) -> list[dict[str, Any]]:
        spaces: list[dict[str, Any]] = self.api(owner).get("api", "spaces")["spaces"]
        return spaces

    def space(self, name: str, owner: str = "alice", zone: str = "eu", *, run: bool = True) -> AgentOf:
        """Make a space, and start its agent."""
        made = self.api(owner).post("api", "spaces", body={"name": name, "zone": zone})
        agent = AgentOf(self, name, owner, made["id"])
        if run:
            agent.start(made["join_token"])
        return agent

    def certificate(self, user: str, folder: Path) -> Path:
        """A key of a person's own, certified by the server; gives the private key's file."""
        key = folder / f"id_{user}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        issued = self.api(user).post("api", "certificates", body={"public_key": key.with_suffix(".pub").read_text()})
        key.with_name(key.name + "-cert.pub").write_text(issued["certificate"] + "\n")
        return key


@contextlib.contextmanager
def running_system(folder: Path, *options: str) -> Iterator[System]:
    """A started system that leaves nothing running."""
    system = System(folder, options)
    try:
        system.start()
        yield system
    finally:
        system.close()


def _stubborn(group: list[Running]) -> list[Running]:
    """Ask all of these to end at once; gives those that had to be killed."""
    for running in group:
        running.ask()
    return [running for running in group if not running.ends()]


def knot_command(*words: str) -> list[str]:
    return [sys.executable, "-m", "knot_ssh", *words]


def _field(line: str, name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", line)
    assert found, line
    return found[1]
