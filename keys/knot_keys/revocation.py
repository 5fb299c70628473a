"""What has been revoked: certificates by serial, enrolled keys by fingerprint.

By serial, because a certificate proves nothing about who holds the key in it: a key that somebody else had certified
for a space of theirs must not become void with that space.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.keyfiles import fingerprint


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A list as the hub publishes it and agents decide by."""

    serials: frozenset[int] = frozenset()
    keys: frozenset[str] = frozenset()

    @classmethod
    def of(cls, serials: Iterable[int], keys: Iterable[str]) -> RevocationList:
        return cls(frozenset(serials), frozenset(keys))

    def __or__(self, other: RevocationList) -> RevocationList:
        """What is in either."""
        return RevocationList(self.serials | other.serials, self.keys | other.keys)

    def has_key(self, key: asyncssh.SSHKey) -> bool:
        """Whether this key was an enrolled key and is one no more."""
        return fingerprint(key) in self.keys

    def covers(self, serial: int, key: str) -> bool:
        """Whether the certificate of this serial, for the key of this fingerprint, is void."""
        return serial in self.serials or key in self.keys

    def covers_certificate(self, certificate: SSHOpenSSHCertificate) -> bool:
        """Whether this certificate is void."""
        return self.covers(int(certificate._serial), fingerprint(certificate.key))


NOTHING_REVOKED = RevocationList()
