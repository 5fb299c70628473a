"""Keys, certificates and names that are the same in every run, so that inputs mean the same. The keys open nothing."""

from __future__ import annotations

import hashlib

import asyncssh
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from knot_keys.certificates import LIFETIME, Issued, issue_client, issue_host
from knot_keys.identity import HostIdentity, HubIdentity, Identity
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

NOW = 1_800_000_000
"""The moment at which everything happens, in seconds since 1970."""
LONG = 20 * 365 * 24 * 3600
"""Seconds of life for certificates that are judged by the real clock."""
ALICE = Principal(Owner("alice"), Zone("eu"))
FRONTEND, BACKEND = SpaceName("frontend"), SpaceName("backend-api")
FRONTEND_ID = SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")
BACKEND_ID = SpaceId("7d1f0c5a-93b2-4a0e-8c3f-5a6b7c8d9e0f")


def key(name: str) -> asyncssh.SSHKey:
    """The private key of this name."""
    raw = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"fuzzing " + name.encode()).digest())
    return asyncssh.import_private_key(raw.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


USER_CA, HOST_CA, OTHER_CA = key("user CA"), key("host CA"), key("another CA")
AGENT, HOST, PERSON = key("agent"), key("host"), key("person")


def agents_certificate() -> Issued:
    """frontend's."""
    return issue_client(USER_CA, AGENT, Identity.agent(ALICE, FRONTEND, FRONTEND_ID), now=NOW)


def persons_certificate(lifetime: int = LIFETIME, now: int = NOW) -> Issued:
    """alice's."""
    return issue_client(USER_CA, PERSON, Identity.person(ALICE.owner, [ALICE.zone]), lifetime=lifetime, now=now)


def endpoints_certificate(lifetime: int = LIFETIME) -> Issued:
    """backend-api's."""
    return issue_host(HOST_CA, HOST, HostIdentity(ALICE, BACKEND, BACKEND_ID), lifetime=lifetime, now=NOW)


def hubs_certificate() -> Issued:
    return issue_host(HOST_CA, HOST, HubIdentity(), now=NOW)


def strangers_certificate() -> Issued:
    """Signed by nobody we know."""
    return issue_client(OTHER_CA, PERSON, Identity.person(ALICE.owner, [ALICE.zone]), now=NOW)
