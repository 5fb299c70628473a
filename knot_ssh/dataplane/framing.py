"""SSH packets in place: a packet is built around the data where it lies, and opened where it was received.

The layout under AES-GCM (RFC 4253 section 6, RFC 5647 section 7.2, OpenSSH's PROTOCOL section 1.6):

    0        4         5       6           10            14
    | length | padding | type  | channel   | data length | data ... | padding | tag (16) |
      clear  | <-------------------- encrypted, a multiple of 16 ------------> |

`length` counts what is encrypted. It is authenticated together with it. The nonce is four fixed bytes and a counter of
eight that goes up by one a packet. Padding is zeros: with an authenticated cipher its content tells nothing to anybody.

Both classes also speak asyncssh's own interface, so that its packets (key exchange, login, requests) and ours share one
counter. Nothing here does any input or output.
"""

from __future__ import annotations

import struct
from typing import Self

from asyncssh.constants import MSG_CHANNEL_DATA
from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

LENGTH = 4
TAG = 16
BLOCK = 16
DATA = 14
"""Where the data of a CHANNEL_DATA packet starts."""
PADDING_MIN = 4
OVERHEAD = DATA + PADDING_MIN + BLOCK - 1 + TAG
"""Most bytes that a packet is longer than its data."""

_HEADER = struct.Struct(">IBBII")
_COUNTER_END = 2**64
_PADDING = [bytes(size) for size in range(PADDING_MIN + BLOCK)]

can_work_in_place = hasattr(AESGCM, "encrypt_into")
"""Whether the cryptography package is recent enough."""


class _Gcm(Encryption):
    """One direction: the key, and the nonce of the next packet."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._aead = AESGCM(key)
        self._fixed = nonce[:4]
        self._counter = int.from_bytes(nonce[4:], "big")

    @classmethod
    def of(cls, encryption: Encryption | None) -> Self | None:
        """This direction's state as asyncssh has just derived it; None for any other cipher."""
        if not isinstance(encryption, GCMEncryption):
            return None
        cipher = encryption._cipher  # derived by asyncssh a moment ago, and used by nobody else from here on
        return cls(cipher._key, cipher._iv)

    def _next_nonce(self) -> bytes:
        counter = self._counter
        self._counter = (counter + 1) % _COUNTER_END
        return self._fixed + counter.to_bytes(8, "big")


class Sealer(_Gcm):
    """Encrypts what we send."""

    def seal(self, buffer: memoryview, start: int, channel: int, size: int) -> int:
        """Make a CHANNEL_DATA packet of the `size` bytes that lie DATA bytes behind `start`; gives where it ends.

        The buffer must have OVERHEAD bytes of room around the data.
        """
        padding = -(DATA - LENGTH + size) % BLOCK
        if padding < PADDING_MIN:
            padding += BLOCK
        body = start + LENGTH
        data_end = start + DATA + size
        end = data_end + padding
        _HEADER.pack_into(buffer, start, end - body, padding, MSG_CHANNEL_DATA, channel, size)
        buffer[data_end:end] = _PADDING[padding]
        self._aead.encrypt_into(self._next_nonce(), buffer[body:end], buffer[start:body], buffer[body : end + TAG])
        return end + TAG

    def seal_other(self, kind: int, payload: bytes) -> bytes:
        """A whole packet of another kind, which is short; `payload` is what follows the type."""
        size = 2 + len(payload)
        padding = -size % BLOCK
        if padding < PADDING_MIN:
            padding += BLOCK
        header = (size + padding).to_bytes(LENGTH, "big")
        return header + self._aead.encrypt(
            self._next_nonce(), b"".join((bytes((padding, kind)), payload, _PADDING[padding])), header
        )

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        sealed = self._aead.encrypt(self._next_nonce(), packet, header)
        return header + sealed[:-TAG], sealed[-TAG:]


class Opener(_Gcm):
    """Decrypts what we receive. asyncssh is given packets that are open already, so its own turn changes nothing."""

    def open(self, buffer: memoryview, start: int, end: int) -> bool:
        """Decrypt the packet that lies between `start` and `end`; False when it was altered."""
        body = start + LENGTH
        tag = end - TAG
        try:
            self._aead.decrypt_into(self._next_nonce(), buffer[body:end], buffer[start:body], buffer[body:tag])
        except InvalidTag:
            return False
        return True

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes:
        return first[header_len:] + rest
