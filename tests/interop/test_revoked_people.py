"""A person's stock ssh, when what it was let in by is revoked: the seconds until its last byte."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import fingerprint
from tests.conftest import Pair
from tests.support.couples import LIMIT
from tests.support.figures import Figure
from tests.support.plainssh import WAYS, Desk, set_up
from tests.support.services import connect, free_port, serving
from tests.support.system import AgentOf
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
_numbers = itertools.count(1)


def flowing(sock: socket.socket) -> None:
    """A service that says something all the time, until it is not heard any more."""
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"x")
            time.sleep(0.01)


def last_byte(sock: socket.socket) -> float:
    """The moment when it came. (OpenSSH shows a connection that was cut as one that has ended.)"""
    moment = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            moment = time.monotonic()
    return moment


def ssh_listens(local: int) -> None:
    def look() -> bool:
        with contextlib.suppress(OSError), connect(local) as sock:
            return sock.recv(1) == b"x"
        return False

    until(look, what="ssh listens")


def revoke(desk: Desk, target: AgentOf, which: str) -> None:
    """By the API, since the time is taken."""
    own, admin = desk.system.api(desk.owner), desk.system.api("admin")
    certificate = read_certificate((desk.folder / "id-cert.pub").read_text())
    match which:
        case "certificate":
            own.post("api", "revocations", body={"kind": "certificate", "serial": str(certificate._serial)})
        case "key":
            own.post("api", "revocations", body={"kind": "key", "key": fingerprint(certificate.key)})
        case "user":
            admin.post("api", "revocations", body={"kind": "user", "user": desk.owner})
        case _:
            own.patch("api", "spaces", target.id, body={"zone": "us"})


@pytest.mark.fault("a person's ssh, revoked", "last byte within 2 s")
@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("which", ["certificate", "key", "user", "the target moves"])
def test_ssh_ends(pair: Pair, tmp_path: Path, which: str, path: str, figure: Figure) -> None:
    """ssh -L through the hub and straight to the endpoint ends at once, with what flows through it, and is not let in again."""
    owner = f"person-{next(_numbers)}"
    target = pair.system.space("target", owner)
    desk = set_up(pair.system, tmp_path, owner)
    way = WAYS[path](desk, target)
    local = free_port()
    with serving(flowing) as port, way.running("-L", f"127.0.0.1:{local}:localhost:{port}") as ssh:
        ssh_listens(local)
        with connect(local) as sock, ThreadPoolExecutor() as threads:
            assert sock.recv(1)
            last = threads.submit(last_byte, sock)
            began = time.monotonic()
            revoke(desk, target, which)
            took = last.result(LIMIT * 5) - began
        figure(f"{max(0.0, took) * 1000:.0f} ms")
        assert took < LIMIT
        assert ssh.wait() == 255
    again = way.run("-W", "127.0.0.1:1", "-o", "ConnectTimeout=5")
    assert b"port 1: connection refused" not in again.stderr
