"""Proof that an agent holds the private half of a key that it wants enrolled or certified.

The signature covers a fixed text, what the key is for, and something that makes it good for nothing else: for joining the
token's id and the hub's nonce, for a host key the id of the space. The hub has proved itself before: the connection's host
certificate was checked against the CA in the token.
"""

from __future__ import annotations

import base64

import asyncssh

from knot_keys.keyfiles import KEY_ALGORITHM, public_line
from knot_ssh.names import SpaceId

_CONTEXT = "knot-possession-1"
REGISTRATION_NAMESPACE = "knot-registration"
HOST_NAMESPACE = "knot-host"
"""What an sshd's two keys are for (the namespaces of PROTOCOL.sshsig)."""


def for_joining(nonce: str, token_id: str) -> bytes:
    """What is signed by the key to be enrolled."""
    return "\0".join((_CONTEXT, "join", token_id, nonce)).encode()


def for_host_key(space_id: SpaceId) -> bytes:
    """What is signed by the key to be certified as the host key of this space."""
    return "\0".join((_CONTEXT, "host", space_id)).encode()


def for_sshd(space_id: SpaceId) -> bytes:
    """What is signed, by `ssh-keygen -Y sign` in one of the two namespaces, where an ordinary sshd stands in for an agent."""
    return space_id.encode()


def for_successor(ca: asyncssh.SSHKey) -> bytes:
    """What a CA signs by which it names another one as its successor."""
    return "\0".join((_CONTEXT, "successor", public_line(ca))).encode()


def prove(key: asyncssh.SSHKey, message: bytes) -> str:
    """Sign with the private key: an SSH signature blob in base64."""
    return base64.b64encode(key.sign(message, KEY_ALGORITHM.encode())).decode()


def is_proof(key: asyncssh.SSHKey, message: bytes, signature: str) -> bool:
    """Check such a signature with the public key."""
    try:
        return key.verify(message, base64.b64decode(signature, validate=True))
    except (asyncssh.Error, ValueError):
        return False
