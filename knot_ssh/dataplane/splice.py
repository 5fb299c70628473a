"""Join one TCP socket and one SSH channel so that each carries the other's bytes, and the other's end.

The rule: what one side reads is a prefix of what the other side wrote, and a clean end (FIN) is shown only for a whole
stream. SSH tells the two apart: a whole stream ends with CHANNEL_EOF, a broken one with CHANNEL_CLOSE alone or with the
loss of the connection (RFC 4254 section 5.3). TCP tells them apart too, as FIN and RST. So here:

    FIN read from the socket         -> CHANNEL_EOF
    CHANNEL_EOF                      -> FIN (half-close)
    reset socket                     -> CHANNEL_CLOSE without EOF
    CHANNEL_CLOSE without EOF        -> RST
    lost connection                  -> RST, unless both directions had ended
    CHANNEL_CLOSE after EOF          -> what was read is delivered, then the socket closes as by close(2)

Every socket carries `SO_LINGER {1, 0}` from birth, so that a killed process resets it too; it is cleared only at a
proper end. Each side pauses the other when it cannot keep up: nothing is read that cannot be passed on, nor before the
channel is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Any

import asyncssh

LINGER_RESET = struct.pack("ii", 1, 0)
LINGER_OFF = struct.pack("ii", 0, 0)


def reset(transport: asyncio.Transport) -> None:
    """End a TCP connection with RST, whatever is still queued."""
    set_linger(transport, LINGER_RESET)
    transport.abort()


def set_linger(transport: asyncio.Transport, value: bytes) -> None:
    """Say how close(2) is to end this socket; a socket that is gone needs no telling."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)


class Splice:
    """One forwarded connection. `socket_side` is the asyncio protocol, `channel_side` the asyncssh session."""

    def __init__(
        self, on_open: Callable[[Splice], None] | None = None, on_closed: Callable[[Splice], None] | None = None
    ) -> None:
        self.socket_side = SocketSide(self)
        self.channel_side = ChannelSide(self)
        self._on_open = on_open
        self._on_closed = on_closed
        self._brakes: set[str] = {"opening"}

    @property
    def is_whole(self) -> bool:
        """Whether both directions have come to a proper end."""
        return self.socket_side.ended and self.channel_side.ended

    def brake(self, reason: str) -> None:
        """Stop reading from the socket until every reason is released."""
        if not self._brakes:
            self.socket_side.pause_reading()
        self._brakes.add(reason)

    def release(self, reason: str) -> None:
        """Take one reason back; with the last one reading goes on."""
        self._brakes.discard(reason)
        if not self._brakes:
            self.socket_side.resume_reading()

    def direction_ended(self) -> None:
        """One direction is over; when both are, close without resetting."""
        if self.is_whole:
            self.socket_side.close()
            self.channel_side.close()

    def abort(self) -> None:
        """End both sides so that neither end takes the stream for whole."""
        self.socket_side.abort()
        self.channel_side.abort()

    def opened(self) -> None:
        """Tell the owner that the socket is there; its channel may now be asked for."""
        if self._on_open:
            self._on_open(self)

    def closed(self) -> None:
        """Tell the owner once both sides are gone."""
        if self.socket_side.gone and self.channel_side.gone and self._on_closed:
            on_closed, self._on_closed = self._on_closed, None
            on_closed(self)


class SocketSide(asyncio.Protocol):
    """The TCP half of a splice."""

    def __init__(self, splice: Splice) -> None:
        self._splice = splice
        self._transport: asyncio.Transport | None = None
        self.ended = False
        self.gone = True

    @property
    def peer(self) -> tuple[str, int]:
        """Address and port of the TCP peer, for the channel's originator fields (RFC 4254 section 7.2)."""
        peer = self._transport.get_extra_info("peername") if self._transport else None
        return (peer[0], peer[1]) if peer else ("127.0.0.1", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.gone = False
        set_linger(transport, LINGER_RESET)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.pause_reading()
        self._splice.opened()

    def data_received(self, data: bytes) -> None:
        self._splice.channel_side.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        self._splice.channel_side.write_eof()
        self._splice.direction_ended()
        return True

    def pause_writing(self) -> None:
        self._splice.channel_side.pause_reading()

    def resume_writing(self) -> None:
        self._splice.channel_side.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.gone = True
        if not self._splice.is_whole:
            self._splice.channel_side.abort()
        self._splice.closed()

    def write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def write_eof(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write_eof()

    def pause_reading(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Deliver what is queued, then close without RST."""
        if self._transport:
            set_linger(self._transport, LINGER_OFF)
            self._transport.close()

    def abort(self) -> None:
        if self._transport:
            reset(self._transport)


class ChannelSide(asyncssh.SSHTCPSession[bytes]):
    """The SSH half of a splice."""

    def __init__(self, splice: Splice) -> None:
        self._splice = splice
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._connection: Any = None
        self._closing = False
        self.ended = False
        self.gone = True

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self.gone = False
        self._connection = chan.get_connection()
        self._connection.attach(self._splice)
        if self._splice.socket_side.gone:  # the socket went away while the channel was being opened
            chan.abort()
        else:
            self._splice.release("opening")

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._splice.socket_side.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        self._splice.socket_side.write_eof()
        self._splice.direction_ended()
        return True

    def pause_writing(self) -> None:
        if not self._closing:
            self._splice.brake("channel")

    def resume_writing(self) -> None:
        if self._closing:
            # the last data has just left; CHANNEL_EOF follows in the same call, and only then CLOSE may
            asyncio.get_running_loop().call_soon(self._close_now)
        else:
            self._splice.release("channel")

    def connection_lost(self, exc: Exception | None) -> None:
        self._channel = None
        self.gone = True
        self._connection.detach(self._splice)
        if self.ended and not self._connection.lost:
            self._splice.socket_side.close()
        elif not self._splice.is_whole:
            self._splice.socket_side.abort()
        self._splice.closed()

    def write(self, data: bytes) -> None:
        if self._channel and not self._channel.is_closing():
            self._channel.write(data)

    def write_eof(self) -> None:
        if self._channel and not self._channel.is_closing():
            self._channel.write_eof()

    def pause_reading(self) -> None:
        if self._channel:
            self._channel.pause_reading()

    def resume_reading(self) -> None:
        if self._channel:
            self._channel.resume_reading()

    def close(self) -> None:
        """Close the channel once everything queued and CHANNEL_EOF are on their way.

        asyncssh's own close() would drop an EOF that still waits behind data.
        """
        self._closing = True
        if self._channel and self._channel.get_write_buffer_size():
            self._channel.set_write_buffer_limits(high=0, low=0)
        else:
            self._close_now()

    def abort(self) -> None:
        if self._channel:
            self._channel.abort()

    def _close_now(self) -> None:
        if self._channel:
            self._channel.close()
