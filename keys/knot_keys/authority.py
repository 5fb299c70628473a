"""The two certificate authorities: one signs users and agents, one signs hosts. Made once, kept in files, never remade.

A lost or damaged CA is an error that names the file; making a new one in silence would lock out every agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from knot_keys.certificates import Issued, issue_client, issue_host
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import create_key, load_key, public_line
from knot_ssh.errors import KnotError

USER_CA_FILE = "user_ca"
HOST_CA_FILE = "host_ca"


@dataclass(frozen=True, slots=True)
class Authority:
    """Both CAs, and what they sign. A plain repr would be harmless, but there is no reason to print this."""

    _user_ca: asyncssh.SSHKey
    _host_ca: asyncssh.SSHKey

    @classmethod
    def create(cls, folder: Path) -> Authority:
        """Make both CAs; raises KnotError where one exists already."""
        try:
            return cls(create_key(folder / USER_CA_FILE, "knot user CA"), create_key(folder / HOST_CA_FILE, "knot host CA"))
        except FileExistsError as error:
            raise KnotError(f"{error.filename} exists already; a CA is never made anew over an old one") from None

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read both CAs; raises KnotError or LooseFile with the file's name."""
        return cls(load_key(folder / USER_CA_FILE), load_key(folder / HOST_CA_FILE))

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
