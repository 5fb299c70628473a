"""Make and check OpenSSH certificates (PROTOCOL.certkeys in the OpenSSH source).

Making: build, sign, then read the finished certificate back and check it before it leaves. Checking: a ladder of early
refusals, each with its reason; the peer hears none of them, the log does. asyncssh takes a certificate without
principals for one that is good for everybody, so the principals are always checked here, never left to it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import asyncssh
from asyncssh.public_key import CERT_TYPE_HOST, CERT_TYPE_USER, SSHOpenSSHCertificate, decode_ssh_certificate

from knot_keys.identity import BadIdentity, HostIdentity, HubIdentity, Identity
from knot_keys.keyfiles import KEY_ALGORITHM, UNREADABLE, fingerprint, line_blob
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.errors import KnotError
from knot_ssh.names import HUB_PRINCIPAL, Principal, SpaceId
from knot_ssh.words import printable

LIFETIME = 3600
"""Seconds that a certificate is good for: short enough to do without revocation in the worst case, long enough that a
server may be away for most of an hour."""
BACKDATE = 60
"""Seconds that a certificate starts in the past, for clocks that are behind ours."""
CLIENT_EXTENSIONS = {"permit-port-forwarding"}
CLIENT_KEY_ALGORITHMS = frozenset(
    {"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"}
)
"""Key types a client may have certified (`ssh-rsa` names the key type; its SHA-1 signatures are refused at login)."""


RSA_BITS = 2048
"""Shorter RSA keys can be factored with effort, or soon."""


UNKNOWN_CA = "unknown CA"
OUT_OF_TIME = ("not yet valid", "expired")
CLIENT_REASONS = (
    "wrong kind of certificate", UNKNOWN_CA, "a CA's key as login key", *OUT_OF_TIME, "no principals", "revoked",
    "key type or size", "options other than permit-port-forwarding", "identity",
)  # fmt: skip
"""What `check_client` refuses for; after a colon it may say more."""


class CertificateRefused(KnotError, ValueError):
    """A certificate is not good for what it was shown for."""

    code = "certificate_refused"


class CertificateFields(Protocol):
    """Something that knows its principals and key id."""

    def encode(self) -> tuple[list[str], str]: ...


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What was learnt from a client certificate that passed every check."""

    identity: Identity
    serial: int
    fingerprint: str
    expires_at: float
    ca: str
    """Fingerprint of the CA that signed it."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was made: the OpenSSH line, and what the store records of it."""

    line: str
    serial: int
    fingerprint: str
    key_id: str
    expires_at: int
    ca: str
    """Fingerprint of the CA that signed it."""
    issued_at: int


def issue_client(
    ca: asyncssh.SSHKey, key: asyncssh.SSHKey, identity: Identity, *, lifetime: int = LIFETIME, now: float | None = None
) -> Issued:
    """Certify a client's public key for `lifetime` seconds from now."""
    principals, key_id, serial, after, before = _fields(identity, lifetime, now)
    certificate = ca.generate_user_certificate(
        key, key_id, serial=serial, principals=principals, valid_after=after, valid_before=before,
        permit_x11_forwarding=False, permit_agent_forwarding=False, permit_port_forwarding=True,
        permit_pty=False, permit_user_rc=False,
    )  # fmt: skip
    line = _line(certificate)
    check_client(read_certificate(line), [ca], NOTHING_REVOKED, now=after + BACKDATE)
    return Issued(line, serial, fingerprint(key), key_id, before, fingerprint(ca), after + BACKDATE)


def issue_host(
    ca: asyncssh.SSHKey,
    key: asyncssh.SSHKey,
    identity: HostIdentity | HubIdentity,
    *,
    lifetime: int = LIFETIME,
    now: float | None = None,
) -> Issued:
    """Certify a host key for `lifetime` seconds from now."""
    principals, key_id, serial, after, before = _fields(identity, lifetime, now)
    certificate = ca.generate_host_certificate(
        key, key_id, serial=serial, principals=principals, valid_after=after, valid_before=before
    )
    line = _line(certificate)
    check_host(read_certificate(line), [ca], principals, NOTHING_REVOKED, now=after + BACKDATE)
    return Issued(line, serial, fingerprint(key), key_id, before, fingerprint(ca), after + BACKDATE)


def read_certificate(line: str) -> SSHOpenSSHCertificate:
    """Read an OpenSSH certificate line; its signature is verified on the way. Raises KnotError."""
    try:
        certificate = decode_ssh_certificate(line_blob(line))
    except UNREADABLE:
        raise KnotError("that is not an OpenSSH certificate line") from None
    if not isinstance(certificate, SSHOpenSSHCertificate):
        raise KnotError("that is an X.509 certificate, not OpenSSH's")
    return certificate


def is_acceptable(key: asyncssh.SSHKey) -> bool:
    """Whether a client's key is of a type and size that we certify and let in."""
    bits = getattr(key.pyca_key, "key_size", RSA_BITS)
    return key.get_algorithm() in CLIENT_KEY_ALGORITHMS and (key.get_algorithm() != "ssh-rsa" or bits >= RSA_BITS)


def check_client(
    certificate: SSHOpenSSHCertificate,
    cas: Collection[asyncssh.SSHKey],
    revoked: RevocationList,
    *,
    now: float | None = None,
) -> ClientCertificate:
    """Check a client certificate; raises CertificateRefused. Whether its holder proved to have the key is not asked here."""
    cert = _checked(certificate, CERT_TYPE_USER, cas, revoked, time.time() if now is None else now)
    if not is_acceptable(cert.key):
        raise CertificateRefused("key type or size")
    if set(cert.options) != CLIENT_EXTENSIONS:
        raise CertificateRefused("options other than permit-port-forwarding")
    try:
        identity = Identity.decode(cert.principals, _key_id(cert))
    except BadIdentity as error:
        raise CertificateRefused(f"identity: {error}") from None
    return ClientCertificate(identity, serial_of(cert), fingerprint(cert.key), expires_at(cert), signer(cert))


def check_host(
    certificate: SSHOpenSSHCertificate,
    cas: Collection[asyncssh.SSHKey],
    expected: Collection[str],
    revoked: RevocationList,
    *,
    now: float | None = None,
) -> None:
    """Check that a host certificate names exactly the expected principals; raises CertificateRefused."""
    cert = _checked_host(certificate, cas, revoked, now)
    if not expected or set(cert.principals) != set(expected):
        raise CertificateRefused(_whom(cert))


def check_endpoint(
    certificate: SSHOpenSSHCertificate,
    cas: Collection[asyncssh.SSHKey],
    space_id: SpaceId,
    principal: Principal,
    revoked: RevocationList,
    *,
    now: float | None = None,
) -> HostIdentity:
    """Check that a host certificate is that of this very space of this owner in this zone, whatever it is called now.

    Who asks may know an earlier or a later name than the certificate: the id tells which space it is. Raises
    CertificateRefused.
    """
    cert = _checked_host(certificate, cas, revoked, now)
    try:
        found = HostIdentity.decode(cert.principals, _key_id(cert))
    except BadIdentity:
        raise CertificateRefused(_whom(cert)) from None
    if (found.space_id, found.principal) != (space_id, principal):
        raise CertificateRefused(_whom(cert))
    return found


def check_hub(certificate: SSHOpenSSHCertificate, cas: Collection[asyncssh.SSHKey], *, now: float | None = None) -> None:
    """Check the hub's host certificate, whatever address was dialled; raises CertificateRefused."""
    check_host(certificate, cas, [HUB_PRINCIPAL], NOTHING_REVOKED, now=now)


def expires_at(certificate: SSHOpenSSHCertificate) -> float:
    """When the certificate ends, in seconds since 1970."""
    return float(certificate._valid_before)


def starts_at(certificate: SSHOpenSSHCertificate) -> float:
    """When the certificate begins, in seconds since 1970."""
    return float(certificate._valid_after)


def signer(certificate: SSHOpenSSHCertificate) -> str:
    """Fingerprint of the CA that signed it."""
    return fingerprint(certificate.signing_key)


def _checked_host(
    certificate: SSHOpenSSHCertificate, cas: Collection[asyncssh.SSHKey], revoked: RevocationList, now: float | None
) -> SSHOpenSSHCertificate:
    """What holds for every host certificate."""
    cert = _checked(certificate, CERT_TYPE_HOST, cas, revoked, time.time() if now is None else now)
    if cert.key.get_algorithm() != KEY_ALGORITHM:
        raise CertificateRefused("key type")
    return cert


def _whom(certificate: SSHOpenSSHCertificate) -> str:
    return f"it is for {printable(', '.join(sorted(certificate.principals))) or 'nobody'}"


def _checked(
    certificate: SSHOpenSSHCertificate,
    kind: int,
    cas: Collection[asyncssh.SSHKey],
    revoked: RevocationList,
    now: float,
) -> SSHOpenSSHCertificate:
    """What holds for both kinds of certificate."""
    if certificate._cert_type != kind:
        raise CertificateRefused("wrong kind of certificate")
    trusted = {ca.public_data for ca in cas}  # compared as data: a private key never equals its own public one
    if certificate.signing_key.public_data not in trusted:
        raise CertificateRefused(UNKNOWN_CA)
    if certificate.key.public_data in trusted:
        raise CertificateRefused("a CA's key as login key")
    if now < starts_at(certificate):
        raise CertificateRefused("not yet valid")
    if now >= expires_at(certificate):
        raise CertificateRefused("expired")
    if not certificate.principals:
        raise CertificateRefused("no principals")
    if revoked.covers_certificate(certificate):
        raise CertificateRefused("revoked")
    return certificate


def _fields(identity: CertificateFields, lifetime: int, now: float | None) -> tuple[list[str], str, int, int, int]:
    principals, key_id = identity.encode()
    moment = int(time.time() if now is None else now)
    return principals, key_id, secrets.randbits(63), moment - BACKDATE, moment + lifetime


def _line(certificate: SSHOpenSSHCertificate) -> str:
    return " ".join(certificate.export_certificate("openssh").decode("ascii").split()[:2])


def _key_id(certificate: SSHOpenSSHCertificate) -> str:
    return str(certificate._key_id)


def serial_of(certificate: SSHOpenSSHCertificate) -> int:
    """The serial number, which asyncssh keeps to itself."""
    return int(certificate._serial)
