"""A server, an agent, and a machine with an ordinary sshd that has run the script of `knot space sshd`."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from knot_keys.authority import USER_CA_FILE
from tests.support.machines import Machine, machine
from tests.support.services import (
    answering,
    free_port,
    serving,
)
from tests.support.system import AgentOf, System
from tests.support.waiting import until

KNOT_CONF = "ssh/sshd_config.d/00-knot.conf"
CERTIFICATE = "ssh/knot/host-cert.pub"
"""What the script makes, below /etc."""


@dataclass(frozen=True, slots=True)
class Site:
    """alice's `frontend`, an agent, and `db`, a machine with sshd that has run the script and is registered."""

    system: System
    frontend: AgentOf
    db: AgentOf
    machine: Machine
    script: str
    lines: list[str]
    """What the script has printed: how to register, to fetch the KRL, and to renew the certificate."""

    def forward(self, remote_port: int, name: str = "db") -> int:
        """Forward a free port of frontend to this port of the machine."""
        local = free_port()
        self.frontend.knot("port", "forward", str(local), name, str(remote_port))
        return local

    def cron(self, which: int) -> subprocess.CompletedProcess[str]:
        """Run the second or third line, without its times."""
        return self.machine.run(*self.lines[which].split()[5:])


def script_for(system: System, name: str) -> str:
    """What the command prints on stdout, for alice."""
    result = system.run("space", "sshd", name, user="alice")
    assert result.returncode == 0, result.stderr
    return result.stdout


@contextlib.contextmanager
def joined(system: System, folder: Path, frontend: AgentOf, name: str) -> Iterator[Site]:
    """A new space and a machine that has become it."""
    space = system.space(name, run=False)
    folder.mkdir()
    with machine(system, folder) as made:
        script = script_for(system, name)
        lines = made.does("sh", stdin=script).splitlines()[1:]
        made.start_registration(lines[0])
        until(space.is_running, what=f"{name} is registered")
        yield Site(system, frontend, space, made, script, lines)


class Ssh:
    """Stock ssh straight to the machine's own port, with this key and whatever certificate lies beside it."""

    def __init__(self, site: Site, key: Path, login: str = "knot", known_hosts: str = "") -> None:
        """`known_hosts` has the plain host key; without it the host certificate is checked, for the space's full name."""
        ca = site.system.api("alice").get("api", "ca")["host_ca"]
        known = key.with_name("known_hosts")
        known.write_text(known_hosts or f"@cert-authority * {ca}\n")
        self.folder = key.parent
        by_name = ["HostKeyAlias=db.alice.eu.knot", "HostKeyAlgorithms=ssh-ed25519-cert-v01@openssh.com"]
        options = [
            *("IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes", f"UserKnownHostsFile={known}"),
            *("StrictHostKeyChecking=yes", "ExitOnForwardFailure=yes", *([] if known_hosts else by_name)),
        ]
        self.command = ["ssh", "-F", "none", "-p", str(site.machine.port), "-i", str(key), "-l", login]
        self.command += [word for option in options for word in ("-o", option)] + ["127.0.0.1"]

    def run(self, *options: str, command: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        words = [self.command[0], *options, *self.command[1:], *command]
        return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)

    def reaches(self) -> bool:
        """Whether it gets through to a service there; otherwise it was refused at login, and not for the host's sake."""
        with serving(answering(b"in")) as port:
            result = self.run("-W", f"127.0.0.1:{port}")
        if result.stdout != b"in":
            assert b"Permission denied (publickey" in result.stderr, result.stderr
        return result.stdout == b"in"


def certified(site: Site, folder: Path, *options: str, ca: str = USER_CA_FILE, kind: str = "") -> Path:
    """A new key, certified by one of the server's CAs as these options of `ssh-keygen -s` say."""
    key = folder / "id"
    generate(key)
    extensions = ["-O", "clear", "-O", "permit-port-forwarding"] if kind != "host" else ["-h"]
    signer = ca if "/" in ca else str(site.system.folder / "server" / ca)
    command = ["ssh-keygen", "-q", "-s", signer, "-I", "by hand", *extensions, *options, f"{key}.pub"]
    subprocess.run(command, check=True, capture_output=True)
    return key


def generate(key: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def restart_server(site: Site, environment: pytest.MonkeyPatch | None = None) -> None:
    """Once it is back, the registration is as well: whatever supervises starts it again. `environment` is for it alone."""
    assert site.system.server
    assert site.machine.registration
    site.system.server.stop()
    site.machine.registration.wait()
    site.system.start()
    if environment:
        environment.undo()
    site.machine.start_registration(site.lines[0])
    until(site.frontend.is_running, what="the source's agent is back")
