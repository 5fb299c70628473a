"""Both ends of TCP connections, moved by one loop in one thread: what each sends, when it reads, and how it saw its stream end.

Because one thread sees both ends, a test can wait for what *has happened* instead of for time: a reader may hold back
until the writer is stuck, a writer until its last piece has arrived, and a fault may come at an exact number of bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from tests.support.services import reset

STEP = 256 * 1024
"""Bytes that one call sends or receives, unless a test wants smaller pieces."""
QUIET = 0.05
"""Seconds without a byte moving anywhere, after which everybody counts as stuck. Too short is no harm: whoever is taken for
stuck too early is only read from a little earlier."""
PATIENCE = 30
"""Seconds without a byte moving, after which a test fails."""

Condition = Callable[[], bool]


class Finish(Enum):
    """When a peer that has sent everything ends its direction (FIN)."""

    AT_ONCE = "at once"
    LAST = "after the other side"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Stream:
    """What arrived of a stream, and how it ended: `fin`, `reset`, or "" while it goes on."""

    length: int
    sha256: str
    end: str


def whole(data: bytes) -> Stream:
    """All of `data`, and a clean end."""
    return Stream(len(data), hashlib.sha256(data).hexdigest(), "fin")


def cut(data: bytes, length: int) -> Stream:
    """The first `length` bytes of `data`, then a reset."""
    return Stream(length, hashlib.sha256(data[:length]).hexdigest(), "reset")


@dataclass(eq=False)
class Peer:
    """One end of a connection. `converse` and `settle` move it; the socket stays the caller's to close."""

    sock: socket.socket
    sends: bytes = b""
    send_step: int = STEP
    read_step: int = STEP
    finish: Finish = Finish.AT_ONCE
    reads_up_to: int | None = None
    """Bytes that it is willing to read for now; None for all."""
    may_send: Condition = field(default=lambda: True)
    """Asked before each piece."""
    leaves: Condition = field(default=lambda: False)
    """Once true, it resets the connection."""

    sent: int = field(default=0, init=False)
    received: int = field(default=0, init=False)
    end: str = field(default="", init=False)
    """How the stream towards it ended."""
    has_left: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._hash = hashlib.sha256()
        self._view = memoryview(self.sends)
        self._cannot_send = False
        self._finished = False

    @property
    def seen(self) -> Stream:
        """What it has received, and how that ended."""
        return Stream(self.received, self._hash.hexdigest(), self.end)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come of it."""
        ended = self._finished or self._cannot_send or (self.finish is Finish.NEVER and self._all_sent)
        return self.has_left or (self.end != "" and (ended or self.end == "reset"))

    @property
    def wants_to_read(self) -> bool:
        return not self.has_left and not self.end and (self.reads_up_to is None or self.received < self.reads_up_to)

    @property
    def wants_to_send(self) -> bool:
        return not (self.has_left or self._cannot_send or self.end == "reset" or self._all_sent) and self.may_send()

    @property
    def _all_sent(self) -> bool:
        return self.sent == len(self._view)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send_piece(self) -> None:
        """Send as much as one call takes."""
        try:
            self.sent += self.sock.send(self._view[self.sent : self.sent + self.send_step])
        except BlockingIOError:
            pass
        except (ConnectionResetError, BrokenPipeError):
            self._cannot_send = True

    def read_piece(self) -> None:
        """Receive what one call gives, or the end of the stream."""
        size = self.read_step if self.reads_up_to is None else min(self.read_step, self.reads_up_to - self.received)
        try:
            data = self.sock.recv(size)
        except BlockingIOError:
            return
        except ConnectionResetError:
            self.end = "reset"
            return
        if data:
            self.received += len(data)
            self._hash.update(data)
        else:  # the kernel tells of a reset once: when sending has heard of it, reading shows an ordinary end
            self.end = "reset" if self._cannot_send else "fin"

    def follow(self) -> bool:
        """Do what is due after bytes have moved: end its direction, or reset. Tells whether it did either."""
        if self.has_left:
            return False
        if self.leaves():
            reset(self.sock)
            self.has_left = True
            return True
        if self._all_sent and not self._finished and self._may_finish():
            self._finished = True
            with contextlib.suppress(OSError):  # it may have been reset
                self.sock.shutdown(socket.SHUT_WR)
            return True
        return False

    def _may_finish(self) -> bool:
        return self.finish is Finish.AT_ONCE or (self.finish is Finish.LAST and self.end != "")

    def __repr__(self) -> str:
        ended = "left" if self.has_left else self.end or "open"
        return f"<{ended}: sent {self.sent} of {len(self.sends)}, received {self.received}>"


def ended(peer: Peer) -> Condition:
    """That the stream towards this peer has come to a proper end."""
    return lambda: peer.end == "fin"


def moved(peer: Peer, count: int) -> Condition:
    """That it has sent and received so many bytes."""
    return lambda: peer.sent + peer.received >= count


def arrived(sender: Peer, receiver: Peer) -> Condition:
    """That all that one has sent so far is with the other."""
    return lambda: receiver.received == sender.sent


def converse(*peers: Peer, until: Condition = lambda: False) -> None:
    """Move all peers until each is done, or `until` is true; fails when nothing moves for long before that."""
    deadline = time.monotonic() + PATIENCE
    while not until() and not all(peer.is_done for peer in peers):
        if _move(peers):
            deadline = time.monotonic() + PATIENCE
        assert time.monotonic() < deadline, f"nothing moves: {peers}"


def settle(*peers: Peer) -> None:
    """Move all peers until nobody gets any further."""
    while _move(peers):
        pass


def _move(peers: tuple[Peer, ...]) -> bool:
    """Move whoever can be moved; False when nobody could for QUIET seconds."""
    acted = sum(peer.follow() for peer in peers) > 0
    readers = [peer for peer in peers if peer.wants_to_read]
    writers = [peer for peer in peers if peer.wants_to_send]
    readable, writable, _ = select.select(readers, writers, [], 0 if acted else QUIET)
    for peer in writable:
        peer.send_piece()
    for peer in readable:
        peer.read_piece()
    return acted or bool(readable or writable)
