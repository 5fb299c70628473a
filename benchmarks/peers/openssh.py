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
HostKey {folder}/host
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


class OpenSSH(Peer):
    """`ssh -N -L` to a private `sshd`."""

    name = "openssh"
    about = f"`sshd` and `ssh -N -L`, {CIPHER}, else as installed"

    @classmethod
    def version(cls) -> str:
        program("sshd")
        return line_with("SSH", program("ssh"), "-V").split(",")[0]

    def start(self) -> None:
        if os.geteuid() == 0:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self._port = free_port()
        make_key(self.folder / "host")
        make_key(self.folder / "client")
        host_key = (self.folder / "host.pub").read_text()
        (self.folder / "known_hosts").write_text(f"bench {host_key}")
        config = self.folder / "sshd_config"
        config.write_text(SERVER.format(port=self._port, folder=self.folder, cipher=CIPHER))
        self.run("server", [program("sshd"), "-D", "-e", "-f", str(config)]).wait_for("Server listening")

    def forward(self, service_port: int) -> int:
        local = free_port()
        settings = {
            "UserKnownHostsFile": self.folder / "known_hosts",
            "HostKeyAlias": "bench",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "ExitOnForwardFailure": "yes",
            "LogLevel": "ERROR",
        }
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        command = [program("ssh"), "-F", "none", "-N", "-c", CIPHER, "-i", str(self.folder / "client"), *options]
        command += ["-p", str(self.route(self._port)), "-L", f"127.0.0.1:{local}:127.0.0.1:{service_port}"]
        self.run("client", [*command, f"{getpass.getuser()}@127.0.0.1"])
        return local

    def login(self) -> Login:
        return Login(self._port, getpass.getuser(), self.folder / "client")
