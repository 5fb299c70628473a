"""Signatures of `ssh-keygen -Y sign`: what counts as one, and what does not."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.sshsig import is_signature, split_signatures
from tests.support.sshkeygen import made_key, signed

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")

NAMESPACE, MESSAGE = "knot-host", b"0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"
BEGIN, END = "-----BEGIN SSH SIGNATURE-----\n", "-----END SSH SIGNATURE-----\n"
Signer = tuple[Path, asyncssh.SSHKey]


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return made_key(tmp_path_factory.mktemp("keys"), "id")


@pytest.fixture(scope="module")
def signature(signer: Signer) -> str:
    return signed(signer[0], NAMESPACE, MESSAGE)


def armoured(blob: bytes) -> str:
    return BEGIN + base64.b64encode(blob).decode() + "\n" + END


def blob_of(text: str) -> bytes:
    return base64.b64decode("".join(text.splitlines()[1:-1]))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_both_hash_algorithms(signer: Signer, algorithm: str) -> None:
    """What ssh-keygen has signed is a signature, with either hash algorithm of the format."""
    file, key = signer
    assert is_signature(key, NAMESPACE, MESSAGE, signed(file, NAMESPACE, MESSAGE, "-O", f"hashalg={algorithm}"))


def test_serves_one_purpose(signer: Signer, signature: str) -> None:
    """It is good for its namespace, its message and its key alone."""
    _, key = signer
    other = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    assert is_signature(key, NAMESPACE, MESSAGE, signature)
    assert not is_signature(key, "knot-registration", MESSAGE, signature)
    assert not is_signature(key, NAMESPACE, MESSAGE + b"\n", signature)
    assert not is_signature(other, NAMESPACE, MESSAGE, signature)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_ed25519_alone(tmp_path: Path, kind: str) -> None:
    """A good signature by a key of another type is none here."""
    file = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True)
    key = asyncssh.read_public_key(f"{file}.pub")
    assert not is_signature(key, NAMESPACE, MESSAGE, signed(file, NAMESPACE, MESSAGE))


def test_any_altered_byte(signer: Signer, signature: str) -> None:
    """With any one byte of the blob altered, cut off or added it is none."""
    _, key = signer
    blob = blob_of(signature)
    assert is_signature(key, NAMESPACE, MESSAGE, armoured(blob))
    for place in range(len(blob)):
        changed = bytes([*blob[:place], blob[place] ^ 1, *blob[place + 1 :]])
        assert not is_signature(key, NAMESPACE, MESSAGE, armoured(changed)), place
        assert not is_signature(key, NAMESPACE, MESSAGE, armoured(blob[:place])), place
    assert not is_signature(key, NAMESPACE, MESSAGE, armoured(blob + b"\0"))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("BEGIN", "BEGINS"),
        lambda text: text + text,
        lambda text: "x" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(text.splitlines()[1], text.splitlines()[1][:-1] + "!"),
        lambda text: text.replace(END, "=" + END),
        lambda text: text.replace(BEGIN, BEGIN + "é"),
    ],
)
def test_armour(signer: Signer, signature: str, change: object) -> None:
    """What is not armoured as ssh-keygen does it is none."""
    assert callable(change)
    assert not is_signature(signer[1], NAMESPACE, MESSAGE, change(signature))


@given(st.binary(max_size=300))
def test_anything_at_all(blob: bytes) -> None:
    """Whatever a peer sends, the answer is no, and never an error."""
    key = asyncssh.import_public_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKPpS1dRVw4rsMfwXFH9ML5HbUaP6vfiUDb7oZDIEp2I")
    assert not is_signature(key, NAMESPACE, MESSAGE, armoured(blob))
    assert not is_signature(key, NAMESPACE, MESSAGE, armoured(b"SSHSIG\0\0\0\1" + blob))


def test_several_in_one_text(signature: str) -> None:
    """A text of nothing but signatures is taken apart; one with anything else in it is none at all."""
    assert split_signatures(signature + signature) == [signature, signature]
    for text in ("", signature + "x", "x" + signature, signature + "\n" + signature):
        assert list(split_signatures(text)) == []
