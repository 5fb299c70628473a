"""Ports of 127.0.0.1 that nobody else is given meanwhile."""

from __future__ import annotations

import random
import socket
from pathlib import Path

from benchmarks.errors import Failed

LOWEST = 15_000
ATTEMPTS = 200

_given: set[int] = set()


def free_port() -> int:
    """A port below the range from which the kernel takes ports for outgoing connections, of which there will be many."""
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    for _ in range(ATTEMPTS):
        port = random.randint(LOWEST, max(highest, LOWEST + 1000))
        if port not in _given and _is_free(port):
            _given.add(port)
            return port
    raise Failed("no free port on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
