"""What stock ssh meets when its certificate runs out while it is connected."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from pathlib import Path

from knot_keys.authority import USER_CA_FILE
from tests.conftest import Pair
from tests.interop.test_openssh import Ssh, to_the_hub
from tests.support.services import connect, echo, free_port, is_refused, serving
from tests.support.waiting import until

LIFETIME = 6
"""Seconds."""
WHY = "the certificate has expired; connect again with a new one"


def short_lived(pair: Pair, folder: Path) -> Ssh:
    """ssh with a certificate as the server makes them for people, for some seconds."""
    key = folder / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    sign = ["ssh-keygen", "-q", "-s", str(pair.system.folder / "server" / USER_CA_FILE), "-I", "person/alice/eu/-/-"]
    sign += ["-n", "alice@eu", "-V", f"-1m:+{LIFETIME}s", "-z", "4711", "-O", "clear", "-O", "permit-port-forwarding"]
    subprocess.run([*sign, str(key) + ".pub"], check=True)
    return Ssh(pair, folder, key, pair.backend.endpoint(), "backend-api.alice.eu.knot")


def test_idle_connection_ends(pair: Pair, tmp_path: Path) -> None:
    """When its certificate runs out, a connection on which nothing is open ends, and says why."""
    ssh = short_lived(pair, tmp_path)
    with ssh.background() as running:
        assert running.wait(LIFETIME + 20) == 255
        assert any(WHY in line for line in running.lines())


def test_what_is_open_goes_on(pair: Pair, tmp_path: Path) -> None:
    """What is open when the certificate runs out goes on to its own end; new channels are refused, and the connection ends
    with the last one."""
    ssh = short_lived(pair, tmp_path)
    local = free_port()
    with serving(echo) as port, ssh.background("-L", f"127.0.0.1:{local}:127.0.0.1:{port}") as running:
        until(lambda: not is_refused(local), what="ssh listens")
        with connect(local) as sock:
            assert is_echoed(sock)
            until(lambda: not reaches(local), what="new channels are refused")
            assert is_echoed(sock)
            assert running.process.poll() is None
        assert running.wait(20) == 255
        assert any(WHY in line for line in running.lines())


def is_echoed(sock: socket.socket) -> bool:
    sock.sendall(b"x")
    return sock.recv(1) == b"x"


def reaches(local: int) -> bool:
    """Whether a new connection is carried."""
    with connect(local) as sock, contextlib.suppress(ConnectionResetError):
        return is_echoed(sock)
    return False


def test_idle_connection_to_the_hub_ends(pair: Pair, tmp_path: Path) -> None:
    """The same at the hub: a connection that others could go through ends with its certificate when none does."""
    ssh = to_the_hub(pair, short_lived(pair, tmp_path))
    with ssh.background() as running:
        assert running.wait(LIFETIME + 20) == 255
        assert any(WHY in line for line in running.lines())
