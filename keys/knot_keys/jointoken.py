"""The join token: what a new agent is handed to find the true hub and prove that it was invited.

`knotjoin_` and base64url (RFC 4648 section 5, no padding) of: token id, 8 bytes; secret, 32 bytes; the host CA's raw
ed25519 public key, 32 bytes; while that CA is changed for another, the other's, too. The hub stores the id and a hash of the
secret, never the secret.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from knot_keys.keyfiles import parse_public_key
from knot_ssh.errors import BadInput

PREFIX = "knotjoin_"
ID_BYTES, SECRET_BYTES, KEY_BYTES = 8, 32, 32
CAS_MAX = 2
"""Host CAs that a token may name: there are no more in any phase of a rotation."""
LENGTHS = [ID_BYTES + SECRET_BYTES + count * KEY_BYTES for count in range(1, CAS_MAX + 1)]


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token in its parts; the secret stays out of the repr."""

    id: str
    secret: bytes = field(repr=False)
    host_cas: tuple[asyncssh.SSHKey, ...]
    """The hub's certificate must be by one of these."""

    @classmethod
    def new(cls, *host_cas: asyncssh.SSHKey) -> JoinToken:
        """A token with a fresh id and a 256-bit secret."""
        return cls(secrets.token_hex(ID_BYTES), secrets.token_bytes(SECRET_BYTES), host_cas)

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read a token; raises BadInput, which never quotes it."""
        body = text.strip().removeprefix(PREFIX)
        try:
            raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        if not text.strip().startswith(PREFIX) or len(raw) not in LENGTHS:
            raise BadInput(f"the join token is not one: it must start with {PREFIX} and be copied whole")
        keys = range(ID_BYTES + SECRET_BYTES, len(raw), KEY_BYTES)
        host_cas = tuple(_key(raw[start : start + KEY_BYTES]) for start in keys)
        return cls(raw[:ID_BYTES].hex(), raw[ID_BYTES : ID_BYTES + SECRET_BYTES], host_cas)

    def __str__(self) -> str:
        raw = bytes.fromhex(self.id) + self.secret + b"".join(map(_raw, self.host_cas))
        return PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")


_WIRE_HEADER = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
"""What stands before the raw key in an ed25519 public key blob (RFC 8709 section 4)."""


def _key(raw: bytes) -> asyncssh.SSHKey:
    return parse_public_key(f"ssh-ed25519 {base64.b64encode(_WIRE_HEADER + raw).decode()}")


def _raw(key: asyncssh.SSHKey) -> bytes:
    public = key.pyca_key
    assert isinstance(public, Ed25519PublicKey)
    return public.public_bytes_raw()


def hash_secret(secret: bytes) -> str:
    """What is stored of a random 256-bit secret: SHA-256, for such a secret needs no slow hash."""
    return hashlib.sha256(secret).hexdigest()


def matches(secret: bytes, stored: str) -> bool:
    """Compare with a stored hash, in constant time."""
    return hmac.compare_digest(hash_secret(secret), stored)
