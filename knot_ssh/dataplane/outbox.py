"""What one SSH connection sends: whose turn it is, and how much may wait.

Channels do not queue data, they queue *themselves*: a channel reads from its socket only when there is room for what it
reads, straight into the place where the packet will be. So what a slow connection holds back is one buffer for all of
its channels, and everything else stays in the kernel, whose own flow control reaches back to the sender.

The order is round robin, one chunk a turn, except that a channel in conversation (its last read was small) does not
wait behind bulk data: it may use room that bulk must leave free, and while such talk goes on bulk takes smaller chunks.

Two kinds: `SealingOutbox` frames and encrypts in its own buffer and writes to the socket itself; `AsyncsshOutbox` hands
every packet to asyncssh and asyncio.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

from asyncssh.constants import MSG_CHANNEL_DATA

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.framing import DATA, OVERHEAD, Sealer
from knot_ssh.dataplane.limits import BACKLOG, BACKLOG_ALL, KIB, PLAIN_PACKET, POLITE_CHUNK, POLITE_SECONDS, POLITE_TURN, SMALL
from knot_ssh.dataplane.reactor import Handler, Reactor, crashed

RESERVE = 64 * KIB
"""Bytes of the buffer that bulk data leaves free."""
WORTHWHILE = 16 * KIB
"""Bytes; for less room than this bulk data waits until the buffer has left."""

SendPacket = Callable[[int, bytes], None]
"""asyncssh's way of sending one packet: type and payload."""


class Source(Handler, Protocol):
    """Something that has data to send."""

    def pump(self) -> None:
        """Send a chunk."""


class Outbox:
    """The queue of sources, and whether they may send."""

    def __init__(self, reactor: Reactor, send_packet: SendPacket) -> None:
        self._reactor = reactor
        self._send_packet = send_packet
        self._queue: deque[Source] = deque()
        self._scheduled = False
        self._held = False
        self._polite_until = 0.0
        self.limit = 0
        """What the last `send_from` would have read at most."""

    def send_from(self, sock: socket.socket, channel: int, most: int, small: bool) -> int | None:
        """Read once from a socket, and send what came as data of this channel (the peer's number), at most so much.

        Gives how much it was, 0 at the end of the stream, and None when the source has to wait for its turn. Raises
        what reading raises. A read that gives less than `limit` has emptied the socket.
        """
        raise NotImplementedError

    def enqueue(self, source: Source, *, small: bool = False) -> None:
        """Have the source pump when it is its turn. It must not be in the queue already."""
        if small:
            self._queue.appendleft(source)
        else:
            self._queue.append(source)
        self._schedule()

    def hold(self) -> None:
        """Send no data while keys are being exchanged."""
        self._held = True

    def release(self) -> None:
        """Go on."""
        self._held = False
        self._schedule()

    @property
    def has_room(self) -> bool:
        """Whether bulk data may be placed now."""
        raise NotImplementedError

    def on_turn(self) -> None:
        """Let each source in the queue send one chunk, as long as there is room."""
        self._scheduled = False
        queue = self._queue
        for _ in range(len(queue)):
            if not queue or not self.has_room:
                break
            source = queue.popleft()
            try:
                source.pump()
            except Exception:
                crashed(source)
        self._schedule()

    def on_turn_end(self) -> None:
        pass

    def on_event(self, events: int) -> None:
        pass

    def on_crash(self) -> None:
        """Sources end by themselves."""

    def _schedule(self) -> None:
        if self._queue and not self._scheduled and self.has_room:
            self._scheduled = True
            self._reactor.again(self)


class SealingOutbox(Outbox):
    """Builds packets in one pooled buffer, which leaves in one call at the end of the turn."""

    def __init__(
        self,
        reactor: Reactor,
        pool: Pool,
        sock: socket.socket,
        send_packet: SendPacket,
        on_sealed: Callable[[int], None],
        on_lost: Callable[[OSError], None],
    ) -> None:
        super().__init__(reactor, send_packet)
        self.sealer: Sealer | None = None
        self._pool = pool
        self._sock = sock
        self._on_sealed = on_sealed
        self._on_lost = on_lost
        self._buffer: memoryview | None = None
        self._size = pool.size
        self._start = 0
        self._end = 0
        self._overflow = bytearray()
        self._blocked = False
        self._leaving = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._end - self._start + len(self._overflow)

    @property
    def has_room(self) -> bool:
        return self._bulk_room >= WORTHWHILE

    @property
    def _bulk_room(self) -> int:
        """Bytes of bulk data that fit now."""
        if self._held or self._blocked or self._overflow:
            return 0
        size = self._size
        most = size - OVERHEAD - min(RESERVE, size // 8)
        if self._reactor.now < self._polite_until and most > POLITE_TURN:
            most = POLITE_TURN
        return most - self._end

    def send_from(self, sock: socket.socket, channel: int, most: int, small: bool) -> int | None:
        if self._held or self._overflow:
            return None
        buffer = self._buffer or self._take_buffer()
        end = self._end
        if small:
            room = self._size - OVERHEAD - end
            if room < SMALL:
                return None
            if self._blocked and most > SMALL:
                most = SMALL
        else:
            room = self._bulk_room
            if room < WORTHWHILE:
                return None
            if most > POLITE_CHUNK and self._reactor.now < self._polite_until:
                most = POLITE_CHUNK
        most = min(most, room)
        start = end + DATA
        self.limit = most
        size = sock.recv_into(buffer[start : start + most])
        if size == 0:
            return 0
        if self.sealer:
            self._end = self.sealer.seal(buffer, end, channel, size)
            self._on_sealed(size)
        else:
            payload = channel.to_bytes(4, "big") + size.to_bytes(4, "big") + buffer[start : start + size]
            self._send_packet(MSG_CHANNEL_DATA, payload)
        if size < SMALL and self._queue:
            self._polite_until = self._reactor.now + POLITE_SECONDS
        return size

    def write(self, data: bytes) -> None:
        """Send a packet that is complete already."""
        if self._closed:
            return
        buffer = self._buffer or self._take_buffer()
        end = self._end + len(data)
        if self._overflow or end > len(buffer):
            self._overflow += data
            pool = self._pool
            pool.behind.add(self)
            pool.backlog += len(data)
            if len(self._overflow) > BACKLOG:
                self.give_up()
            elif pool.backlog > BACKLOG_ALL:
                max(pool.behind, key=lambda outbox: outbox.waiting).give_up()
            if self._closed:
                return
        else:
            buffer[self._end : end] = data
            self._end = end
        self._leave_at_end()

    def give_up(self) -> None:
        """End the connection: its peer does not read what it is sent."""
        self._on_lost(TimeoutError("the peer does not read what it is sent"))

    def on_writable(self) -> None:
        """The kernel may take more."""
        if self._blocked:
            self._blocked = False
            self.flush()

    def on_turn_end(self) -> None:
        self._leaving = False
        if not self._blocked:
            self.flush()

    def flush(self) -> None:
        """Give the kernel all that it takes."""
        while not self._closed:
            start, end = self._start, self._end
            if start < end:
                assert self._buffer is not None
                try:
                    start += self._sock.send(self._buffer[start:end])
                except BlockingIOError:
                    pass
                except OSError as error:
                    self._on_lost(error)
                    return
                if start < end:
                    self._start = start
                    self._blocked = True
                    self._reactor.want_write(self._sock.fileno())
                    return
            self._start = self._end = 0
            if not self._overflow:
                break
            self._refill()
        self._give_buffer_back()
        if self._queue:
            self._schedule()

    def close(self) -> None:
        """Send nothing more."""
        self._closed = self._held = True
        self._start = self._end = 0
        self._drop_overflow(len(self._overflow))
        self._queue.clear()
        self._give_buffer_back()

    def _refill(self) -> None:
        """Take over what did not fit before."""
        assert self._buffer is not None
        size = min(len(self._overflow), len(self._buffer))
        self._buffer[:size] = self._overflow[:size]
        self._drop_overflow(size)
        self._end = size

    def _drop_overflow(self, size: int) -> None:
        del self._overflow[:size]
        self._pool.backlog -= size
        if not self._overflow:
            self._pool.behind.discard(self)

    def _take_buffer(self) -> memoryview:
        self._buffer = self._pool.take_some()
        self._size = len(self._buffer)
        self._leave_at_end()
        return self._buffer

    def _give_buffer_back(self) -> None:
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None

    def _leave_at_end(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._reactor.at_end(self)


class AsyncsshOutbox(Outbox):
    """Leaves framing, encryption and writing to asyncssh and asyncio; `pause` and `resume` come from the transport."""

    def __init__(self, reactor: Reactor, send_packet: SendPacket) -> None:
        super().__init__(reactor, send_packet)
        self._paused = False

    @property
    def has_room(self) -> bool:
        return not (self._held or self._paused)

    def send_from(self, sock: socket.socket, channel: int, most: int, small: bool) -> int | None:
        if not self.has_room:
            return None
        self.limit = min(most, PLAIN_PACKET)
        data = sock.recv(self.limit)
        if data:
            self._send_packet(MSG_CHANNEL_DATA, channel.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data)
        return len(data)

    def pause(self) -> None:
        """The transport holds enough."""
        self._paused = True

    def resume(self) -> None:
        """It has room again."""
        self._paused = False
        self._schedule()
