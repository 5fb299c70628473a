"""What is revoked, as OpenSSH's own `ssh-keygen -Q` reads it."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path

import asyncssh
import pytest

from knot_keys.certificates import Issued, issue_client, issue_host
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_keys.krl import make_krl
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.errors import KrlUnavailable
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

needs_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH's ssh-keygen is not installed")

PLACE = Principal(Owner("alice"), Zone("eu")), SpaceName("backend"), SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")


class Query:
    """A list in a file, and what `ssh-keygen -Q` says of keys and certificates."""

    def __init__(self, folder: Path, krl: bytes) -> None:
        self._krl = folder / "krl"
        self._krl.write_bytes(krl)
        self._shown = folder / "shown.pub"

    def listing(self) -> str:
        command = ["ssh-keygen", "-Q", "-l", "-f", str(self._krl)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def revokes(self, line: str) -> bool:
        self._shown.write_text(line + "\n")
        command = ["ssh-keygen", "-Q", "-f", str(self._krl), str(self._shown)]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        assert said.strip().endswith(("ok", "REVOKED")), said
        return said.strip().endswith("REVOKED")


def certificates(cas: list[asyncssh.SSHKey], key: asyncssh.SSHKey) -> tuple[Issued, Issued]:
    """A client's and a host's."""
    return issue_client(cas[0], key, Identity.agent(*PLACE)), issue_host(cas[1], key, HostIdentity(*PLACE))


@pytest.fixture
def cas() -> list[asyncssh.SSHKey]:
    """The user CA and the host CA."""
    return [new_key("user CA"), new_key("host CA")]


@needs_keygen
async def test_serials(cas: list[asyncssh.SSHKey], tmp_path: Path) -> None:
    """A revoked serial voids that certificate, whichever CA signed it, and neither its key nor its neighbours."""
    key = new_key("key")
    client, host = certificates(cas, key)
    others = certificates(cas, key)
    query = Query(tmp_path, await make_krl(RevocationList.of([client.serial, host.serial], []), cas))
    assert query.revokes(client.line)
    assert query.revokes(host.line)
    assert not any(query.revokes(issued.line) for issued in others)
    assert not query.revokes(public_line(key))


@needs_keygen
async def test_keys(cas: list[asyncssh.SSHKey], tmp_path: Path) -> None:
    """A revoked key is void with every certificate for it; another key's certificates are not."""
    key, other = new_key("key"), new_key("other")
    query = Query(tmp_path, await make_krl(RevocationList.of([], [fingerprint(key)]), cas))
    assert query.revokes(public_line(key))
    assert all(query.revokes(issued.line) for issued in certificates(cas, key))
    assert not any(query.revokes(issued.line) for issued in certificates(cas, other))


@needs_keygen
async def test_nothing_revoked(cas: list[asyncssh.SSHKey], tmp_path: Path) -> None:
    """A list of nothing is a list, too: OpenSSH reads it, and lets everybody pass."""
    query = Query(tmp_path, await make_krl(NOTHING_REVOKED, cas))
    assert not any(query.revokes(issued.line) for issued in certificates(cas, new_key("key")))


@needs_keygen
async def test_many(cas: list[asyncssh.SSHKey], tmp_path: Path) -> None:
    """20,000 serials and 20 keys fit, the largest serial among them."""
    keys = [fingerprint(new_key("")) for _ in range(20)]
    revoked = RevocationList.of([2**63 - 1, *(secrets.randbits(63) for _ in range(20_000))], keys)
    client, _ = certificates(cas, new_key("key"))
    query = Query(tmp_path, await make_krl(revoked, cas))
    assert not query.revokes(client.line)
    listing = query.listing()
    assert f"serial: {2**63 - 1}" in listing
    assert listing.count("hash: ") == len(keys)


async def test_without_ssh_keygen(cas: list[asyncssh.SSHKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where OpenSSH's program is missing, the error names it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KrlUnavailable, match="ssh-keygen"):
        await make_krl(NOTHING_REVOKED, cas)


async def test_failing_ssh_keygen(cas: list[asyncssh.SSHKey], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that fails makes no list; what it says is for the log."""
    program = tmp_path / "ssh-keygen"
    program.write_text("#!/bin/sh\necho broken here >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(KrlUnavailable) as caught:
        await make_krl(NOTHING_REVOKED, cas)
    assert caught.value.detail == "broken here"
    assert "broken" not in str(caught.value)
