"""Proof that a joining agent holds the private half of the key it wants enrolled.

The signature covers a fixed text, the token's id and the hub's nonce, so that it is good for nothing else and no second
time. The hub has proved itself before: the connection's host certificate was checked against the CA in the token.
"""

from __future__ import annotations

import asyncssh

from knot_keys.keyfiles import KEY_ALGORITHM

_CONTEXT = "knot-join-1"


def prove(key: asyncssh.SSHKey, nonce: str, token_id: str) -> bytes:
    """Sign the hub's challenge with the private key (an SSH signature blob)."""
    return key.sign(_message(nonce, token_id), KEY_ALGORITHM.encode())


def proof_is_good(key: asyncssh.SSHKey, nonce: str, token_id: str, signature: bytes) -> bool:
    """Check the signature over our own challenge with the public key."""
    try:
        return key.verify(_message(nonce, token_id), signature)
    except (asyncssh.Error, ValueError):
        return False


def _message(nonce: str, token_id: str) -> bytes:
    return f"{_CONTEXT}\0{token_id}\0{nonce}".encode()
