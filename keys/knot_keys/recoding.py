"""Changing the passphrase of the CAs' files, in a way that may be cut short anywhere."""

from __future__ import annotations

from pathlib import Path

import asyncssh

from knot_keys.keyfiles import HOST_CA_FILE, USER_CA_FILE, exported, load_key
from knot_keys.passphrase import Passphrase, PassphraseRefused
from knot_ssh.files import replace_file, sync_folder

RECODED = ".recoded"
"""Ends the name of a CA's file while it waits to take the place of the one with the former passphrase."""
NO_KEYS = (".pub", ".distrusted", RECODED)
"""How files beside the CAs' end that hold no private key, or one that is on its way."""


def load_ca(path: Path, passphrase: Passphrase | None) -> asyncssh.SSHKey:
    """Read a CA's key; raises as `load_key` does.

    A change of passphrase that was cut short has left the old file, the new one beside it, or both: what the passphrase opens
    is the same key either way.
    """
    try:
        return load_key(path, passphrase)
    except PassphraseRefused:
        recoded = _recoded(path)
        if not recoded.exists():
            raise
        return load_key(recoded, passphrase)


def change_passphrase(folder: Path, old: Passphrase | None, new: Passphrase | None) -> list[Path]:
    """Encrypt the files of all CAs with another passphrase, or with none; gives their paths. The server must not be running.

    First each new file is put beside the old one, then each takes its place. So at any moment one of the two passphrases opens
    all of them, and a change that was cut short is finished by making it again, from either. Raises as `load_key` does; then
    nothing was changed.
    """
    paths = _ca_files(folder)
    keys = [_load_with_either(path, old, new) for path in paths]
    for path, key in zip(paths, keys, strict=True):
        replace_file(_recoded(path), exported(key, new))
    for path in paths:
        _recoded(path).replace(path)
    sync_folder(folder)
    return paths


def finish_change(folder: Path, passphrase: Passphrase | None) -> None:
    """Bring a change of passphrase that was cut short to its end, whichever of the two passphrases this is."""
    if any(_recoded(path).exists() for path in _ca_files(folder)):
        change_passphrase(folder, passphrase, passphrase)


def _load_with_either(path: Path, old: Passphrase | None, new: Passphrase | None) -> asyncssh.SSHKey:
    try:
        return load_ca(path, old)
    except PassphraseRefused as error:
        try:
            return load_key(path, new or old)
        except PassphraseRefused:
            raise PassphraseRefused(f"{error}; nothing was changed") from None


def _ca_files(folder: Path) -> list[Path]:
    """Every CA's private key: the present ones, and those of a rotation under way, which lie beside them."""
    found = {path for name in (USER_CA_FILE, HOST_CA_FILE) for path in (folder / name, *folder.glob(f"{name}.*"))}
    return sorted(path for path in found if path.suffix not in NO_KEYS)


def _recoded(path: Path) -> Path:
    return path.with_name(path.name + RECODED)
