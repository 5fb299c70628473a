"""A server whose hub alters what it relays, as a program: `knot`, with somebody between the halves of each relayed connection.

    python -m tests.support.hostile_hub FILE server run --data ...

When FILE is there the next piece that is relayed in the direction it names is altered in the way it names (`flip up`), and
FILE is removed. `up` is from the caller to the endpoint.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from knot_server.hub import relay
from knot_ssh.cli.main import main as knot

READ = 65536
WAYS: dict[str, Callable[[bytes], bytes]] = {
    "flip": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "drop": lambda data: data[1:],
    "double": lambda data: data + data,
    "swap": lambda data: data[len(data) // 2 :] + data[: len(data) // 2],
    "cut": lambda data: b"",
}
"""`cut` ends the direction in order, in the middle of what was said."""


class Tamperer:
    """Makes pairs of sockets with somebody in between."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """In place of `joined_pair`: the first is the caller's side, the second the endpoint's."""
        ours, near = socket.socketpair()
        far, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        for direction, source, sink in (("up", near, far), ("down", far, near)):
            threading.Thread(target=self._carry, args=(direction, source, sink), daemon=True).start()
        return ours, theirs

    def _carry(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(READ):
                way = self._asked_for(direction)
                sink.sendall(WAYS[way](data) if way else data)
                if way == "cut":
                    break
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _asked_for(self, direction: str) -> str | None:
        if not self._file.exists():
            return None
        way, wanted = self._file.read_text().split()
        if wanted != direction:
            return None
        self._file.unlink()
        return way


def main() -> None:
    file, *words = sys.argv[1:]
    tamperer = Tamperer(Path(file))
    relay.joined_pair = tamperer.pair  # type: ignore[attr-defined]
    sys.argv[1:] = words
    knot()


if __name__ == "__main__":
    main()
