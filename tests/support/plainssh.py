"""A person's OpenSSH, set up by `knot ssh setup`; and the two ways in which it reaches a space."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.system import AgentOf, Running, System

SECONDS = 30
HUB_HOST = "knot-hub"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Desk:
    """Somebody's home with ~/.ssh/config in it. ssh finds its own in the passwd entry's home, and so is told with -F."""

    system: System
    owner: str
    home: Path

    @property
    def config(self) -> Path:
        return self.home / ".ssh" / "config"

    @property
    def folder(self) -> Path:
        """What `knot ssh setup` has made."""
        return self.home / ".ssh" / "knot"

    @property
    def environment(self) -> dict[str, str]:
        return self.system.environment({"HOME": str(self.home), "XDG_CONFIG_HOME": f"{self.home}/.config"})

    def run(self, *words: str, data: bytes = b"", program: str = "ssh") -> subprocess.CompletedProcess[bytes]:
        """Run ssh, or another program that takes -F, to its end."""
        command = [program, "-F", str(self.config), *words]
        return subprocess.run(
            command, input=data, capture_output=True, timeout=SECONDS, check=False, env=self.environment, cwd=self.home
        )

    @contextlib.contextmanager
    def running(self, *words: str, program: str = "ssh", **environment: str) -> Iterator[Running]:
        """Run it for as long as the context lasts."""
        command = [*program.split(), "-F", str(self.config), *words]
        running = Running(command, self.home / f"ssh-{next(_numbers)}.log", self.environment | environment)
        try:
            yield running
        finally:
            running.stop()


@dataclass(frozen=True, slots=True)
class Way:
    """How a desk reaches a space: `options` are what ssh is told besides the name of the host."""

    desk: Desk
    host: str
    options: tuple[str, ...] = ()

    def run(self, *words: str, data: bytes = b"", then: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        """`ssh WORDS HOST THEN`."""
        return self.desk.run(*self.options, *words, self.host, *then, data=data)

    def running(self, *words: str, program: str = "ssh", **environment: str) -> contextlib.AbstractContextManager[Running]:
        """`ssh -N WORDS HOST`, with ssh's own word when it cannot listen."""
        words = (*self.options, "-N", "-o", "ExitOnForwardFailure=yes", *words, self.host)
        return self.desk.running(*words, program=program, **environment)


def through_the_hub(desk: Desk, agent: AgentOf) -> Way:
    """By the space's name, as the written settings say."""
    return Way(desk, f"{agent.name}.knot")


def straight(desk: Desk, agent: AgentOf) -> Way:
    """The same name and settings, with the endpoint's address instead of the hub.

    Not `-J none`: autossh takes `-J` for an option without a value, and drops that.
    """
    address, port = agent.endpoint()
    return Way(desk, f"{agent.name}.knot", ("-o", "ProxyJump=none", "-o", f"HostName={address}", "-p", str(port)))


WAYS = {"through the hub": through_the_hub, "straight": straight}


def set_up(system: System, home: Path, owner: str) -> Desk:
    """`knot login` and `knot ssh setup` in a new home."""
    desk = Desk(system, owner, home)
    system.knot("login", "--server", system.url, "--token", "-", env=desk.environment, stdin=system.user(owner))
    system.knot("ssh", "setup", "--yes", env=desk.environment)
    return desk
