"""Ports of 127.0.0.1 for programs that cannot have the kernel choose; none is given twice, however many tests run at once.

The kernel gives them to nobody by itself: they lie below ip_local_port_range, see ip(7). Who is given one holds a record
lock, see fcntl(2), on the byte of that number in a file that all tests of a user share, until the process ends.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LOWEST = 10_000
"""Below, well-known programs have ports of their own."""
FEWEST = 10_000
"""Ports to choose from at least, even where the kernel would give some of them away."""
_given: set[int] = set()
"""By this process, to which its own locks are no hindrance."""


def free_ports(count: int) -> list[int]:
    """So many ports on which nobody listens and that no other test is given before this process ends; in order."""
    return sorted(free_row(1)[0] for _ in range(count))


def free_row(count: int) -> list[int]:
    """The same for ports that follow one another."""
    row: list[int] = []
    for port in itertools.islice(_candidates(), len(_span())):
        if not _claim(port) or (row and port != row[-1] + 1):
            row.clear()
            continue
        row.append(port)
        if len(row) == count:
            return row
    raise AssertionError(f"no {count} free ports in a row on 127.0.0.1")


@cache
def _candidates() -> Iterator[int]:
    """All of them again and again, from anywhere on: one after the other, so that rows stay free."""
    ports = _span()
    start = random.SystemRandom().randrange(len(ports))
    return itertools.cycle([*ports[start:], *ports[:start]])


@cache
def _span() -> range:
    """What the kernel does not give away, or a little of it."""
    first = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]
    return range(LOWEST, max(int(first), LOWEST + FEWEST))


@cache
def _claims() -> int:
    """The file of locks. It is never closed: a process that closes it once has lost all its locks."""
    path = Path(tempfile.gettempdir(), f"knot-test-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _claim(port: int) -> bool:
    """Take the port, unless it is another's or in use."""
    if port in _given:
        return False
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _given.add(port)
    return _is_unused(port)


def _is_unused(port: int) -> bool:
    """Whether no socket has it, not even one of a connection that has just ended."""
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
