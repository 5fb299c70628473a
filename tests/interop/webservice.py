"""A small web service, for programs that speak HTTP."""

from __future__ import annotations

import re
import socket


class Web:
    """Answers every request with the same body, and remembers what it was sent."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        head = b"".join(iter(stream.readline, b"\r\n"))
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if b"100-continue" in head:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.bodies.append(stream.read(int(length[1]) if length else 0))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.answer) + self.answer)
