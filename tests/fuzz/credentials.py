"""What somebody shows to be let in: join tokens, keys, certificates, signatures."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import asyncssh
from asyncssh.packet import String, UInt32
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import (
    CLIENT_EXTENSIONS,
    CertificateRefused,
    check_client,
    check_endpoint,
    check_host,
    is_acceptable,
    read_certificate,
)
from knot_keys.connections import _decoded
from knot_keys.identity import BadIdentity, HostIdentity, Identity
from knot_keys.jointoken import PREFIX, JoinToken
from knot_keys.keyfiles import fingerprint, parse_public_key, public_line
from knot_keys.possession import HOST_NAMESPACE, REGISTRATION_NAMESPACE, for_host_key, for_sshd, is_proof, prove
from knot_keys.revocation import NOTHING_REVOKED
from knot_keys.sshsig import HASHES, MAGIC, is_signature, split_signatures
from knot_server.hub.plain import JoinSshdRequest
from knot_server.usecases.enrolment import _importable
from knot_ssh.errors import BadInput, KnotError
from knot_ssh.names import HUB_PRINCIPAL
from tests.fuzz import values
from tests.fuzz.target import Target, declared
from tests.fuzz.values import ALICE, BACKEND_ID, HOST_CA, NOW, USER_CA


def text_of(data: bytes) -> str:
    """As a peer's bytes become text: what is no UTF-8 is replaced."""
    return data.decode("utf-8", "replace")


# Join tokens


def join_token(data: bytes) -> None:
    """A token that is read is the one that was written."""
    with declared(BadInput, KnotError):
        token = JoinToken.parse(text_of(data))
        assert JoinToken.parse(str(token)) == token


def join_token_seeds() -> list[bytes]:
    token = JoinToken("0123456789abcdef", bytes(range(32)), (HOST_CA.convert_to_public(),))
    return [str(token).encode(), f"\n {token}\t".encode()]


# Keys


def public_key(data: bytes) -> None:
    """As a line in a request, and as the blob that a client offers at login."""
    with declared(KnotError):
        fingerprint(parse_public_key(text_of(data)))
    with declared(BadInput):
        fingerprint(_importable(text_of(data)))
    shown = _decoded(data)
    if isinstance(shown, asyncssh.SSHKey):
        is_acceptable(shown)
        fingerprint(shown)
        for algorithm in ALGORITHMS:
            shown.verify(b"message", String(algorithm) + String(data[-64:]))


ALGORITHMS = (
    b"ssh-ed25519", b"ssh-ed448", b"ssh-rsa", b"rsa-sha2-256", b"rsa-sha2-512", b"ssh-dss", b"ecdsa-sha2-nistp256",
    b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521", b"sk-ssh-ed25519@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com",
)  # fmt: skip
CERTIFICATE_ALGORITHMS = tuple(
    name.removesuffix(b"@openssh.com") + b"-cert-v01@openssh.com" for name in ALGORITHMS if not name.startswith(b"rsa-")
)


def keys() -> list[asyncssh.SSHKey]:
    """One of each kind that has a public format; all but ours are new each time."""
    names = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa", "ssh-dss", "ssh-ed448")
    return [values.AGENT, *map(asyncssh.generate_private_key, names)]


def public_key_seeds() -> list[bytes]:
    forms = ("openssh", "pkcs8-pem", "rfc4716")
    return [key.public_data for key in keys()] + [key.export_public_key(form) for key in keys() for form in forms]


# Certificates


def certificate(data: bytes) -> None:
    """As a line of a file or an answer, as the blob of a login, and as what a CA of ours has signed."""
    with declared(KnotError):
        judge(read_certificate(text_of(data)))
    for blob in (data, signed(data, USER_CA), signed(data, HOST_CA)):
        shown = _decoded(blob)
        if isinstance(shown, SSHOpenSSHCertificate):
            judge(shown)


def judge(shown: SSHOpenSSHCertificate) -> None:
    """Every check that a certificate may meet; what passes says who it is for."""
    moment = NOW + 1
    with declared(CertificateRefused):
        client = check_client(shown, [USER_CA], NOTHING_REVOKED, now=moment)
        assert client.identity.encode()[0] == list(shown.principals)
        assert set(shown.options) == CLIENT_EXTENSIONS
    with declared(CertificateRefused):
        check_host(shown, [HOST_CA], [HUB_PRINCIPAL], NOTHING_REVOKED, now=moment)
        assert set(shown.principals) == {HUB_PRINCIPAL}
    with declared(CertificateRefused):
        found = check_endpoint(shown, [HOST_CA], BACKEND_ID, ALICE, NOTHING_REVOKED, now=moment)
        assert found.space_id == BACKEND_ID
    for decode in (Identity.decode, HostIdentity.decode):
        with declared(BadIdentity):
            decode(shown.principals, shown._key_id)


def signed(body: bytes, ca: asyncssh.SSHKey) -> bytes:
    """A certificate of which everything up to the CA's key was chosen (PROTOCOL.certkeys)."""
    whole = body + String(ca.public_data)
    return whole + String(ca.sign(whole, b"ssh-ed25519"))


def bodies() -> list[bytes]:
    """Certificates without the CA's key and its signature."""
    made = [
        values.agents_certificate(),
        values.persons_certificate(),
        values.endpoints_certificate(),
        values.hubs_certificate(),
    ]
    blobs = [base64.b64decode(issued.line.split()[1]) for issued in made]
    return [blob[: -len(String(USER_CA.public_data)) - len(String(USER_CA.sign(b"", b"ssh-ed25519")))] for blob in blobs]


def certificate_seeds() -> list[bytes]:
    stranger = values.strangers_certificate().line
    return [*bodies(), base64.b64decode(stranger.split()[1]), stranger.encode(), values.agents_certificate().line.encode()]


# Signatures, and the request that an sshd joins with


def signature(data: bytes) -> None:
    """A proof of possession, a signature of `ssh-keygen -Y sign`, and the request that is made of two of them."""
    text, key = text_of(data), values.HOST.convert_to_public()
    is_proof(key, for_host_key(BACKEND_ID), text)
    for namespace in (REGISTRATION_NAMESPACE, HOST_NAMESPACE):
        is_signature(key, namespace, for_sshd(BACKEND_ID), text)
        is_signature(key, namespace, for_sshd(BACKEND_ID), armoured(data))
    split_signatures(text)
    with declared(KnotError):
        JoinSshdRequest.parse(data).is_proved(BACKEND_ID)


def armoured(blob: bytes) -> str:
    return f"-----BEGIN SSH SIGNATURE-----\n{base64.encodebytes(blob).decode()}-----END SSH SIGNATURE-----\n"


def sshsig(key: asyncssh.SSHKey, namespace: str, message: bytes) -> bytes:
    """What PROTOCOL.sshsig calls a blob."""
    parts = [String(namespace), String(""), String("sha512")]
    digest = HASHES[b"sha512"](message).digest()
    made = key.sign(MAGIC + b"".join([*parts, String(digest)]), b"ssh-ed25519")
    return MAGIC + UInt32(1) + b"".join([String(key.public_data), *parts, String(made)])


def signature_seeds() -> list[bytes]:
    message = for_sshd(BACKEND_ID)
    pairs = [(values.AGENT, REGISTRATION_NAMESPACE), (values.HOST, HOST_NAMESPACE)]
    blobs = [sshsig(key, namespace, message) for key, namespace in pairs]
    lines = [public_line(key) + " comment\n" for key, _ in pairs]
    request = "".join([*lines, *map(armoured, blobs)]).encode()
    return [*blobs, armoured(blobs[1]).encode(), request, prove(values.HOST, for_host_key(BACKEND_ID)).encode()]


WORDS: Sequence[bytes] = (*map(String, ALGORITHMS), *map(String, CERTIFICATE_ALGORITHMS), *ALGORITHMS, *CERTIFICATE_ALGORITHMS)
OPTIONS = tuple(
    String(name)
    for name in (
        b"permit-port-forwarding",
        b"force-command",
        b"source-address",
        b"permit-pty",
        b"no-touch-required",
        b"hub.knot",
    )
)
ARMOURS = tuple(
    f"-----{edge} {kind}-----".encode()
    for edge in ("BEGIN", "END")
    for kind in ("PUBLIC KEY", "RSA PUBLIC KEY", "DSA PUBLIC KEY", "SSH2 PUBLIC KEY", "CERTIFICATE", "SSH SIGNATURE")
)
TARGETS = (
    Target("join-token", join_token, join_token_seeds, [PREFIX.encode()], input_max=300),
    Target("public-key", public_key, public_key_seeds, [*WORDS, *ARMOURS]),
    Target("certificate", certificate, certificate_seeds, [*WORDS, *OPTIONS, *ARMOURS]),
    Target("signature", signature, signature_seeds, [*WORDS, *ARMOURS, String("sha256"), String("sha512")]),
)
