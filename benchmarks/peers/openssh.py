"""OpenSSH as it is installed: an sshd of our own, and `ssh -N -L`. Everything is measured against it."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from benchmarks.peers.peer import Login, Peer, line_with, make_key, program
from benchmarks.ports import free_port

CIPHER = "aes128-gcm@openssh.com"
PRIVILEGE_SEPARATION = Path("/run/sshd")
"""An empty folder that sshd insists on when it runs as root."""

SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/{name}
AuthorizedKeysFile {folder}/client.pub
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding yes
MaxStartups 1000
MaxSessions 1000
Ciphers {cipher}
"""

CLIENT = """\
Host *
HostName 127.0.0.1
User {user}
IdentityFile {folder}/client
IdentitiesOnly yes
IdentityAgent none
UserKnownHostsFile {folder}/known_hosts
GlobalKnownHostsFile none
StrictHostKeyChecking yes
BatchMode yes
ExitOnForwardFailure yes
LogLevel ERROR
Ciphers {cipher}
"""

HOST = """
Host {name}
HostKeyAlias {name}
Port {port}
"""
"""One server in the client's file, which the second `ssh`, the one that `-J` starts, is given too."""

TARGET, JUMP = "target", "jump"


class OpenSSH(Peer):
    """`ssh -N -L` to a private `sshd`, through another one with `-J` where it is relayed."""

    name = "openssh"
    about = f"`sshd` and `ssh -N -L`, {CIPHER}, else as installed; through the relay: `-J` and another `sshd`"
    can_relay = True

    @classmethod
    def version(cls) -> str:
        program("sshd")
        return line_with("SSH", program("ssh"), "-V").split(",")[0]

    def start(self) -> None:
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        make_key(self.folder / "client")
        self._config = CLIENT.format(user=getpass.getuser(), folder=self.folder, cipher=CIPHER)
        self._port = self._serve("server", TARGET)
        if self.relayed:
            self._serve("relay", JUMP)

    def forward(self, service_port: int) -> int:
        local = free_port()
        config = self.folder / "ssh_config"
        config.write_text(self._config)
        jump = ["-J", JUMP] if self.relayed else []
        command = [program("ssh"), "-F", str(config), "-N", *jump, "-L", f"127.0.0.1:{local}:127.0.0.1:{service_port}"]
        self.run("client", [*command, TARGET])
        return local

    def login(self) -> Login:
        return Login(self._port, getpass.getuser(), self.folder / "client")

    def _serve(self, end: str, name: str) -> int:
        """Start an `sshd` with a key of its own, and have the client know it; gives its port."""
        port = free_port()
        host_key = make_key(self.folder / name).with_suffix(".pub").read_text()
        with (self.folder / "known_hosts").open("a") as file:
            file.write(f"{name} {host_key}")
        config = self.folder / f"{name}.config"
        config.write_text(SERVER.format(port=port, folder=self.folder, name=name, cipher=CIPHER))
        self.run(end, [program("sshd"), "-D", "-e", "-f", str(config)]).wait_for("Server listening")
        self._config += HOST.format(name=name, port=self.route(port))
        return port
