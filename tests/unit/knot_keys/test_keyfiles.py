"""Key files: private from the first instant, and refused when they are not."""

from __future__ import annotations

import base64
import stat
import subprocess
import time
from pathlib import Path

import asyncssh
import pytest
from asyncssh.packet import MPInt, SSHPacket, String

from knot_keys.certificates import read_certificate
from knot_keys.connections import _decoded
from knot_keys.keyfiles import create_key, fingerprint, load_key, load_or_create_key, new_key, parse_public_key, public_line
from knot_ssh.errors import KnotError, LooseFile


@pytest.mark.usefixtures("loose_umask")
def test_created_private(tmp_path: Path) -> None:
    """A new key's file is 0600 under any umask."""
    create_key(tmp_path / "key", "test")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_created_and_loaded(tmp_path: Path) -> None:
    """A key is read back as it was made, and its public half stands beside it."""
    key = create_key(tmp_path / "key", "test")
    assert load_key(tmp_path / "key") == key
    assert (tmp_path / "key.pub").read_text().split() == [*public_line(key).split(), "test"]


def test_created_once(tmp_path: Path) -> None:
    """A key is never made anew over another."""
    key = create_key(tmp_path / "key", "test")
    with pytest.raises(FileExistsError):
        create_key(tmp_path / "key", "test")
    assert load_key(tmp_path / "key") == key


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o644, 0o660])
def test_loose_key_refused(tmp_path: Path, bits: int) -> None:
    """A key that others can read is refused."""
    create_key(tmp_path / "key", "test")
    (tmp_path / "key").chmod(bits)
    for load in (load_key, lambda path: load_or_create_key(path, "test")):
        with pytest.raises(LooseFile, match=str(tmp_path / "key")):
            load(tmp_path / "key")


def test_missing_key(tmp_path: Path) -> None:
    """A key that is not there is named."""
    with pytest.raises(KnotError, match=f"cannot read {tmp_path / 'key'}"):
        load_key(tmp_path / "key")


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"\xff\0", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"ssh-ed25519 AAAA x\n"]
)
def test_damaged_key(tmp_path: Path, data: bytes) -> None:
    """A file that holds no private key is named, and not replaced by a new key."""
    path = tmp_path / "key"
    path.write_bytes(data)
    path.chmod(0o600)
    for load in (load_key, lambda path: load_or_create_key(path, "test")):
        with pytest.raises(KnotError, match=f"{path} is not an OpenSSH private key"):
            load(path)
    assert path.read_bytes() == data


def test_torn_key(tmp_path: Path) -> None:
    """A file that lost its end is named."""
    create_key(tmp_path / "key", "test")
    whole = (tmp_path / "key").read_bytes()
    for length in range(0, len(whole) - 40, 20):
        (tmp_path / "key").write_bytes(whole[:length])
        with pytest.raises(KnotError, match="is not an OpenSSH private key"):
            load_key(tmp_path / "key")


def test_encrypted_key(tmp_path: Path) -> None:
    """A key with a passphrase, which nobody could type, is an error with its path."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", path], check=True)
    with pytest.raises(KnotError, match=str(path)):
        load_key(path)


def test_key_of_ssh_keygen(tmp_path: Path) -> None:
    """A key that OpenSSH made is read, with the fingerprint that OpenSSH prints."""
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    printed = subprocess.run(["ssh-keygen", "-l", "-f", path], capture_output=True, text=True, check=True).stdout
    assert fingerprint(load_key(path)) == printed.split()[1]


def test_ssh_keygen_reads_ours(tmp_path: Path) -> None:
    """OpenSSH reads a key that we made."""
    key = create_key(tmp_path / "key", "test")
    derived = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == public_line(key).split()


def test_load_or_create(tmp_path: Path) -> None:
    """The first time makes the key, the second finds it."""
    first = load_or_create_key(tmp_path / "key", "test")
    assert load_or_create_key(tmp_path / "key", "test") == first


def test_public_line_round_trip() -> None:
    """A public key is read back from its line, with or without a comment and white space."""
    key = new_key("test")
    for line in (public_line(key), f"{public_line(key)} some comment\n"):
        assert parse_public_key(line) == key.convert_to_public()


@pytest.mark.parametrize(
    "line", ["", "nonsense", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 é", "ssh-rsa AAAAC3NzaC1lZDI1NTE5\0"]
)
def test_other_text_is_no_public_key(line: str) -> None:
    """What is no public key is an error, not a crash."""
    with pytest.raises(KnotError, match="not an OpenSSH public key"):
        parse_public_key(line)


BLOBS = (
    String("ssh-rsa") + MPInt(1) + MPInt(5),
    String("ssh-rsa") + MPInt(-3) + MPInt(-1 << 200),
    String("ssh-dss") + MPInt(1) + MPInt(5) + MPInt(0) + MPInt(0),
    String("ecdsa-sha2-nistp256") + String("nistp256") + String(b"\4" + bytes(64)),
    String("ssh-ed25519") + String(bytes(31)),
)
"""Of the form of a key; the numbers are those of none."""


@pytest.mark.parametrize("blob", BLOBS)
def test_impossible_keys(blob: bytes) -> None:
    """A key that cannot be is refused as any other text, and shown at login is as good as none."""
    name = SSHPacket(blob).get_string().decode()
    with pytest.raises(KnotError, match="not an OpenSSH public key"):
        parse_public_key(f"{name} {base64.b64encode(blob).decode()}")
    assert _decoded(blob) is None


@pytest.mark.parametrize("kind", ["PUBLIC KEY", "CERTIFICATE"])
def test_no_text_is_taken_for_a_pattern(kind: str) -> None:
    """PEM is no line. asyncssh would look for the end of this by a pattern that takes hours."""
    text = f"-----BEGIN (A|A)+X {kind}-----\n-----END {'A' * 60} {kind}-----\n"
    began = time.process_time()
    for read in (parse_public_key, read_certificate):
        with pytest.raises(KnotError, match="not an OpenSSH"):
            read(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("algorithm", ["ssh-rsa", "ecdsa-sha2-nistp256"])
def test_other_key_types_are_refused(algorithm: str) -> None:
    """An agent's or host's key is ed25519."""
    key = asyncssh.generate_private_key(algorithm)
    with pytest.raises(KnotError, match=f"that key is {algorithm}"):
        parse_public_key(public_line(key))
