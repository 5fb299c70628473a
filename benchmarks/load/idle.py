"""Connections that stay open and say nothing. `python -m benchmarks.load.idle PORT COUNT` prints `open COUNT`.

Each has carried one byte there and back, so that it is open from end to end. All close when the process ends.
"""

from __future__ import annotations

import select
import signal
import socket
import sys

from benchmarks.load.requests import ECHO

AT_ONCE = 64
"""Connections that are being opened at the same time: fewer than the usual listen backlog of 128."""
PATIENCE = 60
"""Seconds in which at least one more connection has to open."""


def open_connections(port: int, count: int) -> list[socket.socket]:
    """Open so many. Raises ConnectionError, which says how many there were."""
    poll = select.epoll()
    opening: dict[int, socket.socket] = {}
    done: list[socket.socket] = []
    while len(done) < count:
        while len(opening) < AT_ONCE and len(opening) + len(done) < count:
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            sock.send(ECHO)
            opening[sock.fileno()] = sock
            poll.register(sock, select.EPOLLIN)
        ready = poll.poll(PATIENCE)
        for descriptor, _ in ready:
            poll.unregister(descriptor)
            sock = opening.pop(descriptor)
            if not sock.recv(1):
                raise ConnectionError("a connection was closed")
            done.append(sock)
        if not ready:
            raise ConnectionError(f"only {len(done)} connections opened")
    return done


def main() -> None:
    port, count = map(int, sys.argv[1:])
    try:
        kept = open_connections(port, count)
    except OSError as error:
        sys.exit(f"cannot hold {count} connections: {error.strerror or error}".lower())
    print("open", len(kept), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
