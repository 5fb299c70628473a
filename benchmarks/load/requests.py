"""What a client asks of the service: the first byte of a connection, and for bulk a length.

ECHO    every byte is sent back, by one event loop for all such connections
TALK    every byte is sent back, by a process of its own that blocks in `recv`
SEND n  the service sends n bytes
TAKE n  the service discards n bytes, then answers with one byte
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

ECHO = b"E"
TALK = b"T"
SEND = b"S"
TAKE = b"U"

HEADER = struct.Struct("!cQ")
"""Request byte and length of SEND and TAKE."""
ENDLESS = 2**62
"""A length that no run reaches: until the client closes."""

PAYLOAD = 4 * 1024 * 1024
"""Bytes of the file that bulk is sent from, again and again. It fits in a last-level cache: reading it costs nothing."""
DISCARD = 1024 * 1024
"""Bytes discarded by one system call, at most."""
MESSAGE = 64 * 1024
"""Bytes read at once where they are wanted."""

NANO = 1_000_000_000


def payload() -> int:
    """A file in memory, full of noise: nothing on the way can compress it. Gives its descriptor."""
    file = os.memfd_create("payload")
    os.write(file, os.urandom(PAYLOAD))
    return file


def send_bulk(sock: socket.socket, size: int, file: int) -> None:
    """Send `size` bytes without reading them: the kernel takes them from the file's pages."""
    left = size
    while left > 0:
        offset = (size - left) % PAYLOAD
        left -= os.sendfile(sock.fileno(), file, offset, min(left, PAYLOAD - offset))


def discard(sock: socket.socket, size: int) -> int:
    """Take up to `size` bytes, which stay in the kernel (MSG_TRUNC, tcp(7)). Gives how many came before the end."""
    return sum(chunks(sock, size))


def chunks(sock: socket.socket, size: int) -> Iterator[int]:
    """As `discard`, but gives the length of each piece as it comes."""
    scratch = bytearray(DISCARD)
    left = size
    while left > 0:
        taken = sock.recv_into(scratch, min(left, DISCARD), socket.MSG_TRUNC)
        if not taken:
            return
        left -= taken
        yield taken
