"""The key that is certified: one made here, or one of the person's own, of which only the public half is read."""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
from asyncssh.public_key import SSHCertificate

from knot_keys.certificates import is_acceptable
from knot_keys.keyfiles import load_key, new_key
from knot_keys.openssh.places import Places, public_half
from knot_ssh.errors import BadInput
from knot_ssh.files import create_private_file, replace_file
from knot_ssh.words import printable

PUBLIC_LIMIT = 1 << 14
"""Bytes of a public key file that are read."""


def named_identity(text: str) -> Path:
    """The private key's absolute path, as `ssh -i` takes it; its public half may be named instead. Raises BadInput."""
    path = Path(os.path.abspath(text))
    key = path.with_suffix("") if path.suffix == ".pub" else path
    public_key(key)
    return key


def public_key(identity: Path) -> asyncssh.SSHKey:
    """The public half from its file: the key itself may have a passphrase, or be held by an agent. Raises BadInput."""
    path = public_half(identity)
    try:
        with path.open("rb") as file:
            data = file.read(PUBLIC_LIMIT)
        key = asyncssh.import_public_key(data)
    except OSError as error:
        raise BadInput(f"cannot read the public key {printable(str(path))}: {error.strerror}") from None
    except (asyncssh.KeyImportError, ValueError, ArithmeticError):
        raise BadInput(f"{printable(str(path))} is not an OpenSSH public key") from None
    if isinstance(key, SSHCertificate) or not is_acceptable(key):
        raise BadInput(f"{printable(str(path))}: keys of type {key.get_algorithm()} cannot be certified, or not of this size")
    return key


def own_key(places: Places) -> asyncssh.SSHKey:
    """The private key in our folder, or a new one that is in no file yet."""
    return load_key(places.key) if places.key.exists() else new_key("knot")


def store_key(places: Places, key: asyncssh.SSHKey) -> None:
    """Write our key where it is in no file yet, 0600 from its creation, and its public half beside it."""
    if not places.key.exists():
        create_private_file(places.key, key.export_private_key("openssh"))
    replace_file(public_half(places.key), key.export_public_key("openssh"))
