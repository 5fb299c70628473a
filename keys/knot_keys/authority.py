"""The two certificate authorities: one signs users and agents, one signs hosts. Each is a ring of keys that can be rotated.

A lost or damaged CA is an error that names the file; making a new one in silence would lock out every agent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh

from knot_keys.certificates import Issued, issue_client, issue_host
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import HOST_CA_FILE, USER_CA_FILE, public_line
from knot_keys.keyring import KeyRing
from knot_keys.passphrase import Passphrase
from knot_keys.possession import for_successor, prove
from knot_ssh.errors import KnotError

__all__ = ["HOST_CA_FILE", "USER_CA_FILE", "Authority"]


@dataclass(frozen=True, slots=True)
class Authority:
    """Both CAs, and what they sign. A plain repr would be harmless, but there is no reason to print this."""

    users: KeyRing
    hosts: KeyRing

    @classmethod
    def create(cls, folder: Path, passphrase: Passphrase | None = None) -> Authority:
        """Make both CAs; raises KnotError where one exists already."""
        try:
            return cls(
                KeyRing.create(folder, USER_CA_FILE, "knot user CA", passphrase),
                KeyRing.create(folder, HOST_CA_FILE, "knot host CA", passphrase),
            )
        except FileExistsError as error:
            raise KnotError(f"{error.filename} exists already; a CA is never made anew over an old one") from None

    @classmethod
    def load(cls, folder: Path, passphrase: Passphrase | None = None) -> Authority:
        """Read both CAs; raises KnotError, LooseFile or PassphraseRefused with the file's name."""
        return cls(KeyRing.load(folder, USER_CA_FILE, passphrase), KeyRing.load(folder, HOST_CA_FILE, passphrase))

    @property
    def user_ca(self) -> str:
        """The active user CA's public key line."""
        return public_line(self.users.keys.active)

    @property
    def host_ca(self) -> str:
        """The active host CA's public key line."""
        return public_line(self.hosts.keys.active)

    @property
    def user_ca_key(self) -> asyncssh.SSHKey:
        """The active user CA's public key."""
        return self.users.keys.active.convert_to_public()

    @property
    def host_ca_key(self) -> asyncssh.SSHKey:
        """The active host CA's public key."""
        return self.hosts.keys.active.convert_to_public()

    @property
    def user_cas(self) -> tuple[asyncssh.SSHKey, ...]:
        """Every user CA that is trusted, the active one first."""
        return self.users.keys.trusted

    @property
    def host_cas(self) -> tuple[asyncssh.SSHKey, ...]:
        """Every host CA that is trusted, the active one first."""
        return self.hosts.keys.trusted

    @property
    def ca_keys(self) -> tuple[asyncssh.SSHKey, ...]:
        """All of them."""
        return self.user_cas + self.host_cas

    @property
    def names(self) -> frozenset[str]:
        """Fingerprints of all CAs that are trusted."""
        return self.users.keys.names | self.hosts.keys.names

    @property
    def distrusted(self) -> list[str]:
        """Fingerprints of CAs that were given up by force."""
        return [*self.users.distrusted, *self.hosts.distrusted]

    @property
    def endorsement(self) -> str | None:
        """The older host CA's signature over the newer while there are two: by it alone whoever pins the one may take the
        other, since a public key is no secret and a list of them proves nothing."""
        keys = self.hosts.keys
        older, newer = (keys.old, keys.active) if keys.old else (keys.active, keys.next)
        return prove(older, for_successor(newer)) if older and newer else None

    def certify_client(self, key: asyncssh.SSHKey, identity: Identity, lifetime: int) -> Issued:
        """A client certificate for this public key, good for `lifetime` seconds."""
        return issue_client(self.users.keys.active, key, identity, lifetime=lifetime)

    def certify_host(self, key: asyncssh.SSHKey, identity: HostIdentity, lifetime: int) -> Issued:
        """A host certificate for this public key, good for `lifetime` seconds."""
        return issue_host(self.hosts.keys.active, key, identity, lifetime=lifetime)

    def certify_hub(self, key: asyncssh.SSHKey, lifetime: int) -> Issued:
        """The hub's own: by the old CA as long as there is one, so that who was away all the time can come and learn."""
        keys = self.hosts.keys
        return issue_host(keys.old or keys.active, key, HubIdentity(), lifetime=lifetime)
