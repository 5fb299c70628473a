"""Whether a client may reach something of an owner and zone: asked at login, and again at every channel."""

from __future__ import annotations

from knot_keys.certificates import ClientCertificate
from knot_keys.revocation import RevocationList
from knot_ssh.names import Principal

OTHER_PRINCIPAL, REVOKED, EXPIRED = "other owner or zone", "revoked", "certificate expired"
OUTDATED = "revocations too old"
PERMISSION_REASONS = (OTHER_PRINCIPAL, REVOKED, EXPIRED)


def refuse_client(client: ClientCertificate, wanted: Principal, revoked: RevocationList, now: float) -> str | None:
    """The reason why this client may not; None when it may. `now` is in seconds since 1970."""
    if wanted not in client.identity.principals:
        return OTHER_PRINCIPAL
    if revoked.covers(client.serial, client.fingerprint):
        return REVOKED
    if now >= client.expires_at:
        return EXPIRED
    return None


def must_end(client: ClientCertificate, wanted: Principal, revoked: RevocationList) -> str | None:
    """The reason why what this client has opened may not go on; None when it may, also past the certificate's end."""
    if wanted not in client.identity.principals:
        return OTHER_PRINCIPAL
    return REVOKED if revoked.covers(client.serial, client.fingerprint) else None
