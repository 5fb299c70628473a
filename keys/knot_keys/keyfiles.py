"""Private keys in files: OpenSSH format, made 0600, refused when others can read them, encrypted if there is a passphrase.

The format encrypts with AES-256, under a key that bcrypt_pbkdf stretches (OpenSSH's PROTOCOL.key); `ssh-keygen` reads it.
"""

from __future__ import annotations

import base64
from pathlib import Path

import asyncssh
from asyncssh.packet import SSHPacket
from asyncssh.public_key import decode_ssh_public_key

from knot_keys.passphrase import PASSPHRASE_SOURCES, Passphrase, PassphraseRefused
from knot_ssh.errors import KnotError
from knot_ssh.files import create_private_file, read_secret, replace_file

KEY_ALGORITHM = "ssh-ed25519"
USER_CA_FILE, HOST_CA_FILE, HUB_KEY_FILE = "user_ca", "host_ca", "hub_key"
"""The CAs' files, and the hub's, in the server's data folder; what belongs to a rotation under way lies beside them."""
KDF_ROUNDS = 64
"""Rounds of bcrypt_pbkdf, as `ssh-keygen -a` counts them: one guess costs half a second of a processor, and so does a start.
(The library warns below 50.)"""
UNREADABLE = (asyncssh.KeyImportError, ValueError, ArithmeticError)
"""What asyncssh raises for what is no key or certificate: it lets through what cryptography says of points off their curve,
and of numbers that are negative or that no key has."""


def new_key(comment: str) -> asyncssh.SSHKey:
    """A new ed25519 private key."""
    return asyncssh.generate_private_key(KEY_ALGORITHM, comment=comment)


def create_key(path: Path, comment: str, passphrase: Passphrase | None = None) -> asyncssh.SSHKey:
    """Make a new key and its file (with `.pub` beside it); raises FileExistsError where the file exists."""
    key = new_key(comment)
    create_private_file(path, exported(key, passphrase))
    replace_file(path.with_name(path.name + ".pub"), key.export_public_key("openssh"))
    return key


def exported(key: asyncssh.SSHKey, passphrase: Passphrase | None) -> bytes:
    """A private key as its file holds it. With a passphrase it takes half a second, on purpose."""
    if passphrase is None:
        return key.export_private_key("openssh")
    return key.export_private_key("openssh", passphrase.secret, rounds=KDF_ROUNDS)


def load_key(path: Path, passphrase: Passphrase | None = None) -> asyncssh.SSHKey:
    """Read a private key. A passphrase does no harm where there need be none.

    Raises LooseFile, PassphraseRefused, or KnotError with the path and what is wrong.
    """
    data = read_secret(path)
    if passphrase is None and is_encrypted(data):
        raise PassphraseRefused(f"{path} is encrypted: its passphrase is needed, from {PASSPHRASE_SOURCES}")
    try:
        return asyncssh.import_private_key(data, passphrase.secret if passphrase else None)
    except asyncssh.KeyEncryptionError:
        raise PassphraseRefused(f"the passphrase is not that of {path}") from None
    except asyncssh.KeyImportError as error:
        raise KnotError(f"{path} is not an OpenSSH private key: {error}") from None


def is_encrypted(data: bytes) -> bool:
    """Whether it takes a passphrase to read this private key."""
    try:
        asyncssh.import_private_key(data)
    except asyncssh.KeyImportError as error:
        return "Passphrase" in str(error)
    except asyncssh.KeyEncryptionError:
        return True
    return False


def load_or_create_key(path: Path, comment: str) -> asyncssh.SSHKey:
    """The key in this file; a new one where there is no file."""
    return load_key(path) if path.exists() else create_key(path, comment)


def public_line(key: asyncssh.SSHKey) -> str:
    """The public key as one OpenSSH line without comment."""
    return " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])


def line_blob(line: str) -> bytes:
    """The blob in the OpenSSH line of a public key or certificate (sshd(8), AUTHORIZED_KEYS FILE FORMAT, without options):
    algorithm, base64, perhaps a comment; further lines are not looked at. Raises ValueError.

    Nothing of strangers is given to asyncssh's `import_…`: that takes PEM, too, and has a regular expression made of its
    first line, which may be such that looking for it never ends.
    """
    algorithm, *rest = line.strip().partition("\n")[0].split(None, 2)
    blob = base64.b64decode(rest[0] if rest else "", validate=True)
    if SSHPacket(blob).get_string() != algorithm.encode():
        raise ValueError("it is not of the kind that it says")
    return blob


def parse_any_public_key(line: str) -> asyncssh.SSHKey:
    """Read a public key line of any type; raises KnotError."""
    try:
        return decode_ssh_public_key(line_blob(line))
    except UNREADABLE:
        raise KnotError("that is not an OpenSSH public key line") from None


def parse_public_key(line: str) -> asyncssh.SSHKey:
    """Read an ed25519 public key line; raises KnotError for anything else."""
    key = parse_any_public_key(line)
    if key.get_algorithm() != KEY_ALGORITHM:
        raise KnotError(f"that key is {key.get_algorithm()}; it must be {KEY_ALGORITHM}")
    return key


def fingerprint(key: asyncssh.SSHKey) -> str:
    """SHA256 fingerprint as `ssh-keygen -l` prints it."""
    return str(key.get_fingerprint("sha256"))
