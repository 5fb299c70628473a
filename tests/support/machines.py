"""A machine that has sshd and ssh and nothing of ours: this one, with an /etc of its own in a mount namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.openssh import PRIVILEGE_SEPARATION, SSHD
from tests.support.ports import free_ports
from tests.support.system import Running, System
from tests.support.waiting import until

NEEDED = ("ssh", "ssh-keygen", "unshare", "nsenter", "useradd")


def why_not() -> str:
    """Why there can be no such machine here; empty where there can."""
    if os.getuid() != 0:
        return "mount namespaces and sshd's own configuration take root"
    if not SSHD or not all(map(shutil.which, NEEDED)):
        return "sshd, ssh, unshare, nsenter or useradd is not installed"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return "no mount namespaces here"
    return "" if not Path("/run/systemd/system").exists() else "systemd is the real machine's"


class Machine:
    """Programs started here see its /etc, and share the network with everything else."""

    def __init__(self, system: System, folder: Path, holder: Running, port: int) -> None:
        self.system = system
        self.folder = folder
        self.etc = folder / "etc"
        self.port = port
        self._prefix = ("nsenter", f"--mount=/proc/{holder.process.pid}/ns/mnt", "--")
        self.sshd: Running | None = None
        self.registration: Running | None = None

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """What root does there, however it ends."""
        return subprocess.run(
            [*self._prefix, *command],
            env=self.system.environment({}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def does(self, *command: str, stdin: str = "") -> str:
        """The same, and it goes well; gives stdout."""
        result = self.run(*command, stdin=stdin)
        assert result.returncode == 0, result.stderr or result.stdout
        return result.stdout

    def first_answer(self, *command: str, line: str) -> str:
        """The first line that a program says to this one."""
        with subprocess.Popen(
            [*self._prefix, *command], env=self.system.environment({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin
            assert process.stdout
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            process.kill()
        return answer

    def start(self, *command: str) -> Running:
        """What root leaves running there."""
        return self._start([*command], "program.log")

    def start_sshd(self) -> None:
        self.sshd = self._start([str(SSHD), "-D", "-e"], "sshd.log")
        self.sshd.wait_for("Server listening")

    def start_registration(self, line: str) -> None:
        """The first of the lines that the script prints, as whatever supervises would run it."""
        self.registration = self._start([*line.split(), "-v"], "registration.log")
        self.registration.wait_for("remote forward success")

    def files(self) -> dict[str, bytes]:
        """What the script has to do with, by name."""
        names = [*(self.etc / "ssh").rglob("*"), self.etc / "passwd", self.etc / "shadow"]
        return {str(path.relative_to(self.etc)): path.read_bytes() for path in names if path.is_file()}

    def stop(self) -> None:
        for running in (self.registration, self.sshd):
            if running:
                running.stop(signal.SIGTERM)

    def _start(self, command: list[str], log: str) -> Running:
        return Running(command, self.folder / log, self.system.environment({}), prefix=self._prefix)


@contextlib.contextmanager
def machine(system: System, folder: Path) -> Iterator[Machine]:
    """One with sshd running as the distribution configures it, but for its port and where root's keys are."""
    etc = folder / "etc"
    shutil.copytree("/etc", etc, symlinks=True)
    PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    ready = folder / "ready"
    hold = f'mount --bind "{etc}" /etc && touch "{ready}" && exec sleep infinity'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hold]
    [port] = free_ports(1)
    with contextlib.ExitStack() as stack:
        holder = Running(command, folder / "holder.log", system.environment({}))
        stack.callback(holder.kill)
        until(ready.exists, what="the namespace")
        config = etc / "ssh" / "sshd_config"
        before = config.read_text()
        extra = f"Port {port}\nListenAddress 127.0.0.1\nPidFile /etc/sshd.pid\nLogLevel DEBUG1\n"
        keys = "AuthorizedKeysFile /etc/ssh/keys_of_%u\nPermitRootLogin prohibit-password\n"
        config.write_text(before.replace("\nInclude ", f"\n{extra}{keys}Include ", 1))
        made = Machine(system, folder, holder, port)
        made.does("ssh-keygen", "-A")
        made.start_sshd()
        stack.callback(made.stop)
        yield made
