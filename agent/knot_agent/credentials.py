"""What the agent is and trusts at this moment. Certificates are replaced while it runs; everybody looks here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import BACKDATE, expires_at, starts_at
from knot_keys.connections import Credential
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.names import Principal, qualified_name
from knot_ssh.wire import Membership, Trust

RENEW_AT = 2 / 3
"""Part of a certificate's lifetime after which it is renewed."""
RENEW_JITTER = 0.1
"""Part of the wait by which it is shortened at random, so that a fleet does not renew all at once."""


@dataclass(slots=True)
class Credentials:
    """The agent's identity. Listeners hear of new certificates, of a new list of what is revoked, that the space has moved to
    another zone, and when that list has become too old."""

    membership: Membership
    identity: Credential
    host: Credential
    revoked: RevocationList = NOTHING_REVOKED
    on_certificates: list[Callable[[], None]] = field(default_factory=list)
    on_revocations: list[Callable[[], None]] = field(default_factory=list)
    on_trust: list[Callable[[], None]] = field(default_factory=list)
    on_moved: list[Callable[[], None]] = field(default_factory=list)
    on_outdated: list[Callable[[], None]] = field(default_factory=list)
    is_current: Callable[[], bool] = lambda: True
    """Whether what we know of revocations is recent enough to let anybody in by it."""

    @property
    def principal(self) -> Principal:
        return Principal(self.membership.owner, self.membership.zone)

    @property
    def name(self) -> str:
        """The space's fully qualified name."""
        return qualified_name(self.membership.space, self.principal)

    @property
    def is_named(self) -> bool:
        """Whether the host certificate is there, and carries the name that the space has now."""
        return self.host.certificate is not None and self.name in self.host.certificate.principals

    @property
    def user_cas(self) -> tuple[asyncssh.SSHKey, ...]:
        """The CAs of users and agents that are trusted, the one that signs first."""
        return _parsed(tuple(self.membership.user_cas))

    @property
    def host_cas(self) -> tuple[asyncssh.SSHKey, ...]:
        """The same for hosts."""
        return _parsed(tuple(self.membership.host_cas))

    @property
    def user_ca_names(self) -> frozenset[str]:
        """Fingerprints of the CAs by which clients are let in."""
        return _names(self.user_cas)

    @property
    def trust(self) -> Trust:
        """What the hub is told that we trust."""
        return Trust(cas=sorted(_names(self.user_cas) | _names(self.host_cas)))

    @property
    def is_signed(self) -> bool:
        """Whether both certificates are there, and by the CAs that sign now."""
        pairs = (self.identity.certificate, self.user_cas), (self.host.certificate, self.host_cas)
        return all(certificate is not None and certificate.signing_key == cas[0] for certificate, cas in pairs)

    @property
    def certified(self) -> bool:
        """Whether both certificates are there and good."""
        return self.seconds_left() > 0 and not self.is_void

    @property
    def is_void(self) -> bool:
        """Whether one of our own certificates is revoked; we may have others made."""
        certificates = [self.identity.certificate, self.host.certificate]
        return any(cert is not None and self.revoked.covers_certificate(cert) for cert in certificates)

    def seconds_left(self, now: float | None = None) -> float:
        """Until the first of the two certificates ends; 0 without them."""
        moment = time.time() if now is None else now
        certificates = [self.identity.certificate, self.host.certificate]
        return min((max(0.0, expires_at(cert) - moment) if cert else 0.0) for cert in certificates)

    def renewal_wait(self, now: float | None = None) -> float:
        """Seconds to wait before renewing; 0 when it is due.

        Without `now` the certificate is taken as issued this moment, so that a wrong clock of ours changes nothing.
        """
        if self.identity.certificate is None or self.host.certificate is None:
            return 0.0
        waits = [_wait(certificate, now) for certificate in (self.identity.certificate, self.host.certificate)]
        return min(waits) * (1 - random.uniform(0, RENEW_JITTER))

    def enter(self, membership: Membership) -> None:
        """This is what the agent is now, and whom it trusts."""
        before, self.membership = self.membership, membership
        if _trusted(membership) != _trusted(before):
            for listener in self.on_trust:
                listener()
        if (before.owner, before.zone) != (membership.owner, membership.zone):
            for listener in self.on_moved:
                listener()

    def replace(self, identity: Credential, host: Credential) -> None:
        """Use new certificates from now on."""
        self.identity, self.host = identity, host
        for listener in self.on_certificates:
            listener()

    def revoke(self, revoked: RevocationList) -> None:
        """Take over the list of what is revoked."""
        if revoked != self.revoked:
            self.revoked = revoked
            for listener in self.on_revocations:
                listener()

    def outdated(self) -> None:
        """The list is too old to let anybody in by it."""
        for listener in self.on_outdated:
            listener()


def _trusted(membership: Membership) -> tuple[list[str], list[str], list[str]]:
    return membership.user_cas, membership.host_cas, membership.distrusted


@lru_cache(maxsize=8)
def _parsed(lines: tuple[str, ...]) -> tuple[asyncssh.SSHKey, ...]:
    """Asked at every channel."""
    return tuple(map(parse_public_key, lines))


@lru_cache(maxsize=8)
def _names(keys: tuple[asyncssh.SSHKey, ...]) -> frozenset[str]:
    return frozenset(map(fingerprint, keys))


def _wait(certificate: SSHOpenSSHCertificate, now: float | None) -> float:
    """Seconds from now, or from the moment of issue, to two thirds of a certificate's life; never more than those."""
    issued, end = starts_at(certificate) + BACKDATE, expires_at(certificate)
    whole = (end - issued) * RENEW_AT
    return whole if now is None else min(whole, max(0.0, issued + whole - now))
