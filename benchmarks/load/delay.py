"""A long line: `python -m benchmarks.load.delay PORT MILLISECONDS` prints a port that leads to PORT, so much later each way.

It delays and never limits: what comes in is taken at once and kept for the time, in buffers that hold what a fast
network would hold in flight. (A window of 64 MiB in 25 ms is 2.7 GB/s.)
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

PIECE = 256 * 1024
"""Bytes of one buffer."""
HELD = 128 * 1024 * 1024
"""Bytes that one direction holds before it stops taking more: memory must end somewhere."""
SAME_MOMENT = 0.0005
"""Seconds within which bytes share a buffer, and leave together."""


@dataclass(slots=True)
class Piece:
    """Bytes that came at about the same moment."""

    buffer: bytearray
    begun: float
    due: float = 0.0
    filled: int = 0
    sent: int = 0


@dataclass(slots=True)
class Direction:
    """From one socket to another, later."""

    source: socket.socket
    target: socket.socket
    delay: float
    queue: deque[Piece] = field(default_factory=deque)
    spare: list[bytearray] = field(default_factory=list)
    held: int = 0
    ended: bool = False
    blocked: bool = False
    finished: bool = False

    @property
    def wants_more(self) -> bool:
        return not self.ended and self.held < HELD

    def take(self, now: float) -> None:
        """Take what is there."""
        piece = self._piece(now)
        try:
            count = self.source.recv_into(memoryview(piece.buffer)[piece.filled :])
        except BlockingIOError:
            return
        if count == 0:
            self.ended = True
            return
        piece.filled += count
        piece.due = now + self.delay
        self.held += count
        if not self.queue or self.queue[-1] is not piece:
            self.queue.append(piece)

    def pass_on(self, now: float) -> None:
        """Send what has waited long enough; the end of the stream follows the last byte."""
        self.blocked = False
        while self.queue and self.queue[0].due <= now:
            piece = self.queue[0]
            try:
                piece.sent += (sent := self.target.send(memoryview(piece.buffer)[piece.sent : piece.filled]))
            except BlockingIOError:
                self.blocked = True
                return
            self.held -= sent
            if piece.sent == piece.filled:
                self.queue.popleft()
                self.spare.append(piece.buffer)
        if self.ended and not self.queue and not self.finished:
            self.finished = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)

    def due(self) -> float:
        """When there is something to send; never, while the target takes nothing."""
        return self.queue[0].due if self.queue and not self.blocked else float("inf")

    def _piece(self, now: float) -> Piece:
        last = self.queue[-1] if self.queue else None
        if last and now - last.begun < SAME_MOMENT and last.filled < PIECE and not last.sent:
            return last
        return Piece(self.spare.pop() if self.spare else bytearray(PIECE), now)


class Relay:
    """All connections through one port."""

    def __init__(self, listener: socket.socket, port: int, delay: float) -> None:
        self._listener = listener
        self._port = port
        self._delay = delay
        self._directions: list[Direction] = []

    def run(self) -> None:
        """Relay for ever."""
        while True:
            # select, not epoll: it waits for microseconds where epoll waits for whole milliseconds
            readable, writable, _ = select.select(
                [self._listener, *(each.source for each in self._directions if each.wants_more)],
                [each.target for each in self._directions if each.blocked],
                [],
                self._pause(),
            )
            if self._listener in readable:
                self._accept()
            self._turn(set(readable), set(writable))

    def _pause(self) -> float | None:
        due = min((each.due() for each in self._directions), default=float("inf"))
        return None if due == float("inf") else max(0.0, due - time.monotonic())

    def _turn(self, readable: set[socket.socket], writable: set[socket.socket]) -> None:
        for each in self._directions[:]:
            now = time.monotonic()
            try:
                if each.source in readable:
                    each.take(now)
                if each.target in writable or each.due() <= now or (each.ended and not each.queue):
                    each.pass_on(now)
            except OSError:
                self._drop(each)
        for each in self._directions[::2]:
            self._drop_if_done(each)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._port))
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._directions += [Direction(near, far, self._delay), Direction(far, near, self._delay)]

    def _drop_if_done(self, one: Direction) -> None:
        pair = [each for each in self._directions if each.source in (one.source, one.target)]
        if all(each.finished for each in pair):
            self._drop(one)

    def _drop(self, one: Direction) -> None:
        self._directions = [each for each in self._directions if each.source not in (one.source, one.target)]
        one.source.close()
        one.target.close()


def main() -> None:
    port, milliseconds = int(sys.argv[1]), float(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0))
    print("listening", listener.getsockname()[1], flush=True)
    Relay(listener, port, milliseconds / 1000).run()


if __name__ == "__main__":
    main()
