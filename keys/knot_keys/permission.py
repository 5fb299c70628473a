"""Whether a client may reach something of an owner and zone: asked at login, and again at every channel."""

from __future__ import annotations

from collections.abc import Collection

from knot_keys.certificates import UNKNOWN_CA, ClientCertificate
from knot_keys.revocation import RevocationList
from knot_ssh.names import Principal

OTHER_PRINCIPAL, REVOKED, EXPIRED = "other owner or zone", "revoked", "certificate expired"
OUTDATED = "revocations too old"
PERMISSION_REASONS = (OTHER_PRINCIPAL, UNKNOWN_CA, REVOKED, EXPIRED)


def refuse_client(
    client: ClientCertificate, wanted: Principal, cas: Collection[str], revoked: RevocationList, now: float
) -> str | None:
    """The reason why this client may not; None when it may. `cas` are the fingerprints of the CAs that are trusted at this
    moment, `now` is in seconds since 1970."""
    if wanted not in client.identity.principals:
        return OTHER_PRINCIPAL
    if client.ca not in cas:
        return UNKNOWN_CA
    if revoked.covers(client.serial, client.fingerprint):
        return REVOKED
    if now >= client.expires_at:
        return EXPIRED
    return None


def outlives_its_ca(client: ClientCertificate, cas: Collection[str], distrusted: Collection[str], now: float) -> bool:
    """Whether a connection that was made with this certificate has to end: its CA is trusted no more.

    What was open when the certificate ran out may go on, as it does without a rotation, unless the CA was given up by force.
    """
    return client.ca in distrusted or (client.ca not in cas and now < client.expires_at)


def must_end(client: ClientCertificate, wanted: Principal, revoked: RevocationList) -> str | None:
    """The reason why what this client has opened may not go on; None when it may, also past the certificate's end."""
    if wanted not in client.identity.principals:
        return OTHER_PRINCIPAL
    return REVOKED if revoked.covers(client.serial, client.fingerprint) else None
