"""The two certificate authorities: one signs users and agents, one signs hosts. Made once, kept in files, never remade.

A lost or damaged CA is an error that names the file; making a new one in silence would lock out every agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from knot_keys.certificates import Issued, issue_client, issue_host
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import create_key, exported, load_key, public_line
from knot_keys.passphrase import Passphrase, PassphraseRefused
from knot_ssh.errors import KnotError
from knot_ssh.files import replace_file, sync_folder

USER_CA_FILE = "user_ca"
HOST_CA_FILE = "host_ca"
RECODED = ".recoded"
"""Ends the name of a CA's file while it waits to take the place of the one with the former passphrase."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Both CAs, and what they sign. A plain repr would be harmless, but there is no reason to print this."""

    _user_ca: asyncssh.SSHKey
    _host_ca: asyncssh.SSHKey
    _passphrase: Passphrase | None = None
    """Encrypts the files of CAs that are made from now on."""

    @classmethod
    def create(cls, folder: Path, passphrase: Passphrase | None = None) -> Authority:
        """Make both CAs; raises KnotError where one exists already."""
        try:
            user_ca = create_key(folder / USER_CA_FILE, "knot user CA", passphrase)
            return cls(user_ca, create_key(folder / HOST_CA_FILE, "knot host CA", passphrase), passphrase)
        except FileExistsError as error:
            raise KnotError(f"{error.filename} exists already; a CA is never made anew over an old one") from None

    @classmethod
    def load(cls, folder: Path, passphrase: Passphrase | None = None) -> Authority:
        """Read both CAs; raises KnotError, LooseFile or PassphraseRefused with the file's name."""
        user_ca, host_ca = (load_ca(folder / name, passphrase) for name in (USER_CA_FILE, HOST_CA_FILE))
        return cls(user_ca, host_ca, passphrase)

    @property
    def passphrase(self) -> Passphrase | None:
        """What the files of further CAs are to be encrypted with."""
        return self._passphrase

    @property
    def user_ca(self) -> str:
        """The user CA's public key line."""
        return public_line(self._user_ca)

    @property
    def host_ca(self) -> str:
        """The host CA's public key line."""
        return public_line(self._host_ca)

    @property
    def user_ca_key(self) -> asyncssh.SSHKey:
        """The user CA's public key, for checking."""
        return self._user_ca.convert_to_public()

    @property
    def host_ca_key(self) -> asyncssh.SSHKey:
        """The host CA's public key, for checking."""
        return self._host_ca.convert_to_public()

    @property
    def ca_keys(self) -> tuple[asyncssh.SSHKey, asyncssh.SSHKey]:
        """Both public keys."""
        return self.user_ca_key, self.host_ca_key

    def certify_client(self, key: asyncssh.SSHKey, identity: Identity, lifetime: int) -> Issued:
        """A client certificate for this public key, good for `lifetime` seconds."""
        return issue_client(self._user_ca, key, identity, lifetime=lifetime)

    def certify_host(self, key: asyncssh.SSHKey, identity: HostIdentity | HubIdentity, lifetime: int) -> Issued:
        """A host certificate for this public key, good for `lifetime` seconds."""
        return issue_host(self._host_ca, key, identity, lifetime=lifetime)


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
    except PassphraseRefused:
        if new is None:
            raise
    try:
        return load_key(path, new)
    except PassphraseRefused as error:
        raise PassphraseRefused(f"{error}; nothing was changed") from None


def _ca_files(folder: Path) -> list[Path]:
    """Every CA's private key: the present ones, and those of a rotation under way, which lie beside them."""
    found = {path for name in (USER_CA_FILE, HOST_CA_FILE) for path in (folder / name, *folder.glob(f"{name}.*"))}
    return sorted(path for path in found if path.suffix not in (".pub", RECODED))


def _recoded(path: Path) -> Path:
    return path.with_name(path.name + RECODED)
