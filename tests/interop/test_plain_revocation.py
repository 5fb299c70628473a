"""What is revoked, as stock OpenSSH learns of it: the list of `GET /api/krl`, in `RevokedHostKeys` and `ssh-keygen -Q`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.interop.page import snippet
from tests.support.openssh import SSHD, sshd
from tests.support.plainssh import Desk, set_up
from tests.support.system import AgentOf

NAME = "plain-rebuilt"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A space that was rebuilt after a desk was set up: what was its host key, and the desk."""

    agent: AgentOf
    desk: Desk
    old: Path

    def asked(self, port: int) -> str:
        """What `ssh -v` says of who answers there for the space."""
        straight = ("-o", "ProxyJump=none", "-o", "HostName=127.0.0.1", "-p", str(port))
        return self.desk.run("-v", *straight, "-W", "127.0.0.1:1", f"{NAME}.knot").stderr.decode()

    def refresh(self) -> None:
        self.agent.system.knot("ssh", "refresh", env=self.desk.environment)


@pytest.fixture(scope="module")
def rebuilt(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Rebuilt:
    folder = tmp_path_factory.mktemp("old")
    agent = pair.system.space(NAME)
    desk = set_up(pair.system, tmp_path_factory.mktemp("desk"), "alice")
    for name in ("host_key", "host_key-cert.pub"):
        shutil.copy(agent.folder / name, folder)
    agent.stop()
    shutil.rmtree(agent.folder)
    agent.start(pair.system.knot("space", "token", NAME, user="alice"))
    return Rebuilt(agent, desk, folder / "host_key")


@contextlib.contextmanager
def impostor(rebuilt: Rebuilt) -> Iterator[int]:
    """An sshd with the host key and certificate that the space had before."""
    lines = [f"HostKey {rebuilt.old}", f"HostCertificate {rebuilt.old}-cert.pub", "AuthorizedKeysFile none"]
    with sshd(rebuilt.agent.system, rebuilt.old.parent, lines) as (_, port):
        yield port


@pytest.mark.skipif(not SSHD, reason="OpenSSH's sshd is not installed")
def test_revoked_host_certificate(rebuilt: Rebuilt) -> None:
    """Who has the old host key passes for the space until the desk's list is renewed, and is refused from then on; the space
    itself is reached all the time."""
    with impostor(rebuilt) as port:
        assert f"Host '{rebuilt.agent.id}' is known and matches the ED25519-CERT host certificate" in rebuilt.asked(port)
        rebuilt.refresh()
        said = rebuilt.asked(port)
        assert "revoked" in said
        assert "Offering public key" not in said
        assert "connect failed: port 1: connection refused" in rebuilt.asked(rebuilt.agent.endpoint()[1])


def test_damaged_list(rebuilt: Rebuilt) -> None:
    """With a list that cannot be read ssh refuses even the right endpoint; one that is missing it has fetched anew, first."""
    rebuilt.refresh()
    krl, endpoint = rebuilt.desk.folder / "krl", rebuilt.agent.endpoint()[1]
    good = krl.read_bytes()
    krl.write_bytes(b"SSHKRL\n\0 and no more")
    assert "connection refused" not in rebuilt.asked(endpoint)
    krl.unlink()
    assert "connection refused" in rebuilt.asked(endpoint)
    assert krl.read_bytes() == good


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_by_hand(rebuilt: Rebuilt, tmp_path: Path) -> None:
    """The page's two commands fetch the list and show it; `ssh-keygen -Q` finds the old certificate there, not the new one."""
    system = rebuilt.agent.system
    (tmp_path / "header").write_text(f"Authorization: Bearer {system.user('alice')}\n")
    command = ["sh", "-euc", f"server={system.url}\n{snippet('krl')}"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True).stdout
    assert "# CA key ssh-ed25519" in shown
    assert "serial: " in shown
    for certificate, is_in_it in ((f"{rebuilt.old}-cert.pub", True), (rebuilt.agent.folder / "host_key-cert.pub", False)):
        query = ["ssh-keygen", "-Q", "-f", str(tmp_path / "krl"), str(certificate)]
        result = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        assert (result.returncode != 0, "REVOKED" in result.stdout) == (is_in_it, is_in_it), result.stdout
