"""OpenSSH's `ssh` and `sshd` as ends of forwards: started on this machine, with certificates and a small rekey limit."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

from knot_keys.authority import USER_CA_FILE, Authority
from knot_keys.certificates import LIFETIME
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import create_key
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from tests.support.ports import free_ports
from tests.support.system import Running, System

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
PRIVILEGE_SEPARATION = Path("/run/sshd")
"""sshd wants this folder where root runs it; distributions make it when the service starts."""
RUNNER = pwd.getpwuid(os.getuid()).pw_name
"""The only account that every user may log in to with an sshd of their own."""


@contextlib.contextmanager
def ssh_forwarding(
    system: System, key: Path, alias: str, endpoint: int, destinations: list[tuple[str, int]], options: list[str]
) -> Iterator[tuple[Running, list[int]]]:
    """`ssh -N -L` to an endpoint of the system's, logged in with `key` and its certificate; gives the local ports."""
    known_hosts = key.with_name("known_hosts")
    known_hosts.write_text(f"@cert-authority * {system.api('admin').get('api', 'ca')['host_ca']}\n")
    ports = free_ports(len(destinations))
    pairs = zip(ports, destinations, strict=True)
    command = [
        *("ssh", "-v", "-N", "-F", "none", "-p", str(endpoint), "-i", str(key)),
        *("-o", f"CertificateFile={key}-cert.pub", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"),
        *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={known_hosts}"),
        *("-o", f"HostKeyAlias={alias}", "-o", "ExitOnForwardFailure=yes", *options),
        *(word for local, (host, port) in pairs for word in ("-L", f"127.0.0.1:{local}:[{host}]:{port}")),
        "knot@127.0.0.1",
    ]
    with _running(command, key.with_name("ssh.log"), system) as running:
        running.wait_for("Entering interactive session")
        yield running, ports


SSHD_SETTINGS = (
    "PermitRootLogin prohibit-password",
    "PasswordAuthentication no",
    "KbdInteractiveAuthentication no",
    "UsePAM no",
    "StrictModes no",
    "PidFile none",
    "LogLevel DEBUG1",
)
"""Of every sshd here. The first value that sshd reads for a setting counts."""


@contextlib.contextmanager
def sshd(system: System, folder: Path, lines: list[str]) -> Iterator[tuple[Running, int]]:
    """Run an sshd with these lines of configuration; gives its port."""
    assert SSHD, "sshd is not installed"
    if os.getuid() == 0:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    [port] = free_ports(1)
    file = folder / "sshd_config"
    file.write_text("\n".join([f"ListenAddress 127.0.0.1:{port}", *lines, *SSHD_SETTINGS, ""]))
    with _running([SSHD, "-D", "-e", "-f", str(file)], folder / "sshd.log", system) as running:
        running.wait_for("Server listening")
        yield running, port


class Sshd:
    """What an sshd and its client need, in a folder: two CAs, and a host and a person that they have certified."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        authority = Authority.create(folder)
        principal = Principal(Owner("alice"), Zone("eu"))
        host = HostIdentity(principal, SpaceName("sshd"), SpaceId.new())
        self.names = host.encode()[0]
        self.host_ca = authority.host_ca
        host_key, self.client_key = folder / "host", folder / "client"
        issued = authority.certify_host(create_key(host_key, "host").convert_to_public(), host, LIFETIME)
        Path(f"{host_key}-cert.pub").write_text(issued.line + "\n")
        person = Identity.person(principal.owner, [principal.zone])
        issued = authority.certify_client(create_key(self.client_key, "client").convert_to_public(), person, LIFETIME)
        Path(f"{self.client_key}-cert.pub").write_text(issued.line + "\n")
        (folder / "principals").write_text(f"{principal}\n")

    @contextlib.contextmanager
    def serving(self, system: System, *lines: str) -> Iterator[tuple[Running, int]]:
        """Run sshd with these lines of configuration besides; gives its port."""
        with sshd(system, self.folder, [*self._configuration(), *lines]) as running:
            yield running

    def _configuration(self) -> list[str]:
        folder = self.folder
        return [
            f"HostKey {folder / 'host'}",
            f"HostCertificate {folder / 'host-cert.pub'}",
            f"TrustedUserCAKeys {folder / USER_CA_FILE}.pub",
            f"AuthorizedPrincipalsFile {folder / 'principals'}",
            "AuthorizedKeysFile none",
        ]


@contextlib.contextmanager
def _running(command: list[str], log: Path, system: System) -> Iterator[Running]:
    running = Running(command, log, system.environment({}))
    try:
        yield running
    finally:
        running.stop()
