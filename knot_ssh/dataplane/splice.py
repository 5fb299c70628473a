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

Every socket carries `SO_LINGER {1, 0}` from birth, so that a killed process resets it too. It is cleared only at a
proper end, and only once the kernel has taken the last byte: until then a killed process would lose some. Each side
pauses the other when it cannot keep up: nothing is read that cannot be passed on, nor before the channel is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

import asyncssh

LINGER_RESET = struct.pack("ii", 1, 0)
LINGER_OFF = struct.pack("ii", 0, 0)


class Carrier(Protocol):
    """The SSH connection below a channel. `lost`: it is gone, and so are all its channels."""

    lost: bool


class Splice:
    """One forwarded connection. `socket_side` is the asyncio protocol, `channel_side` the asyncssh session."""

    def __init__(self, on_open: Callable[[Splice], None] | None = None) -> None:
        self.socket_side = SocketSide(self)
        self.channel_side = ChannelSide(self)
        self.on_closed: list[Callable[[Splice], None]] = []
        self._on_open = on_open
        self._brakes: set[str] = {"opening"}

    @property
    def is_whole(self) -> bool:
        """Whether both directions have come to a proper end."""
        return self.socket_side.ended and self.channel_side.ended

    @property
    def is_gone(self) -> bool:
        """Whether neither socket nor channel is there (any more)."""
        return self.socket_side.gone and self.channel_side.gone

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

    def side_gone(self) -> None:
        """Tell the owners once both sides are gone."""
        if self.is_gone:
            callbacks, self.on_closed = self.on_closed, []
            for callback in callbacks:
                callback(self)


class SocketSide(asyncio.Protocol):
    """The TCP half of a splice."""

    def __init__(self, splice: Splice) -> None:
        self._splice = splice
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._full = False
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
        self._set_linger(LINGER_RESET)
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
        self._full = True
        if not self._closing:
            self._splice.channel_side.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        # asyncio is in the middle of emptying its buffer; what follows may close the transport, which it must not be
        # from within
        asyncio.get_running_loop().call_soon(self._drained)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.gone = True
        if not self._splice.is_whole:
            self._splice.channel_side.abort()
        self._splice.side_gone()

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
        """Deliver what is queued, then close without RST. Until the last byte is the kernel's, a reset stays armed."""
        self._closing = True
        if self._transport and self._transport.get_write_buffer_size():
            self._transport.set_write_buffer_limits(high=0)
        else:
            self._close_now()

    def abort(self) -> None:
        """End with RST, whatever is still queued."""
        if self._transport:
            self._set_linger(LINGER_RESET)
            self._transport.abort()

    def _drained(self) -> None:
        """The buffer had emptied a moment ago."""
        if self._full:
            return
        if self._closing:
            self._close_now()
        else:
            self._splice.channel_side.resume_reading()

    def _close_now(self) -> None:
        if self._transport:
            self._set_linger(LINGER_OFF)
            self._transport.close()

    def _set_linger(self, value: bytes) -> None:
        assert self._transport is not None
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # a socket that is gone needs no telling
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)


class ChannelSide(asyncssh.SSHTCPSession[bytes]):
    """The SSH half of a splice."""

    def __init__(self, splice: Splice) -> None:
        self._splice = splice
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._carrier: Carrier | None = None
        self._closing = False
        self.ended = False
        self.gone = True

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan
        self._carrier = chan.get_connection()  # type: ignore[assignment]
        self.gone = False
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
        if self.ended and self._carrier and not self._carrier.lost:
            self._splice.socket_side.close()
        elif not self._splice.is_whole:
            self._splice.socket_side.abort()
        self._splice.side_gone()

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


class Splices:
    """Splices of one owner. They leave by themselves when both their sides are gone."""

    def __init__(self) -> None:
        self._splices: set[Splice] = set()
        self._brakes: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, splice: Splice) -> None:
        """Own this splice until it has closed."""
        self._splices.add(splice)
        self._idle.clear()
        for reason in self._brakes:
            splice.brake(reason)
        splice.on_closed.append(self.remove)

    def remove(self, splice: Splice) -> None:
        """Own it no more."""
        self._splices.discard(splice)
        if not self._splices:
            self._idle.set()

    def abort(self) -> None:
        """Reset every one."""
        for splice in list(self._splices):
            splice.abort()

    def brake(self, reason: str) -> None:
        """Stop reading from every socket, also of splices that come later."""
        self._brakes.add(reason)
        for splice in self._splices:
            splice.brake(reason)

    def release(self, reason: str) -> None:
        """Take the reason back."""
        self._brakes.discard(reason)
        for splice in self._splices:
            splice.release(reason)

    async def wait_idle(self) -> None:
        """Wait until there is none."""
        await self._idle.wait()
