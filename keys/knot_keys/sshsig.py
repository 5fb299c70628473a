"""Check signatures that `ssh-keygen -Y sign` makes (PROTOCOL.sshsig in the OpenSSH source): ed25519 and nothing else.

    armoured:  BEGIN line, base64 in lines, END line
    blob       "SSHSIG", uint32 version 1, string public key, string namespace, string reserved, string hash algorithm,
               string signature
    signed     "SSHSIG", string namespace, string reserved, string hash algorithm, string hash of the message

The namespace says what a signature is for, so that none serves two purposes. The key in the blob is only a hint: the
signature counts for the key that the caller expects, or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import asyncssh
from asyncssh.packet import PacketDecodeError, SSHPacket, String

from knot_keys.keyfiles import KEY_ALGORITHM

MAGIC = b"SSHSIG"
VERSION = 1
HASHES: dict[bytes, Callable[[bytes], Any]] = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
"""All that the format knows; `ssh-keygen` uses the second unless told otherwise."""
_ARMOUR = re.compile(r"-----BEGIN SSH SIGNATURE-----\n([A-Za-z0-9+/=\n]+)-----END SSH SIGNATURE-----\n?")


def is_signature(key: asyncssh.SSHKey, namespace: str, message: bytes, armoured: str) -> bool:
    """Whether this is the key's signature over the message, made for this namespace. Never raises for what a peer sends."""
    try:
        return _is_signature(key, namespace.encode(), message, _unarmoured(armoured))
    except (PacketDecodeError, asyncssh.Error, ValueError):
        return False


def split_signatures(text: str) -> Sequence[str]:
    """The armoured signatures that stand in this text and in nothing else; empty where there is anything besides."""
    found = [match[0] for match in _ARMOUR.finditer(text)]
    return found if "".join(found) == text else []


def _is_signature(key: asyncssh.SSHKey, namespace: bytes, message: bytes, blob: bytes) -> bool:
    if blob[: len(MAGIC)] != MAGIC:
        return False
    packet = SSHPacket(blob[len(MAGIC) :])
    version, shown = packet.get_uint32(), packet.get_string()
    made_for, reserved, algorithm, signature = (packet.get_string() for _ in range(4))
    packet.check_end()
    if version != VERSION or made_for != namespace or algorithm not in HASHES:
        return False
    if key.get_algorithm() != KEY_ALGORITHM or shown != key.public_data:
        return False
    digest = HASHES[algorithm](message).digest()
    return key.verify(MAGIC + b"".join(map(String, (made_for, reserved, algorithm, digest))), signature)


def _unarmoured(text: str) -> bytes:
    """The blob; raises ValueError."""
    found = _ARMOUR.fullmatch(text)
    if not found:
        raise ValueError("not an armoured signature")
    return base64.b64decode(found[1].replace("\n", ""), validate=True)
