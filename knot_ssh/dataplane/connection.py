"""An SSH connection that carries channels of ours: asyncssh's classes, with another way for bulk data.

asyncssh does what needs care: key exchange, login, requests, the opening of channels. The data of our channels does not
pass through it where that can be avoided:

* On our own transport, with AES-GCM, packets are opened in the buffer they were received in. Data and window
  adjustments of our channels are served at once. Every other packet goes to asyncssh's parser, open already; nothing
  that decides about security is written twice.
* Other ciphers, and asyncio's transports, are asyncssh's from end to end; its parser then calls the same channels.

The turn to our way comes with the first keys: asyncssh sets `_recv_encryption` and `_send_encryption`, which are
properties here. Both directions switch on their own, and again at every exchange of keys.

What is relied on of asyncssh beside its documented interface is all in this file. `plane.TESTED` says for which versions.
"""

from __future__ import annotations

import asyncio
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import asyncssh
from asyncssh.connection import SSHConnection
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_DEBUG,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_REQUEST_SUCCESS,
    MSG_UNIMPLEMENTED,
)
from asyncssh.encryption import Encryption
from asyncssh.packet import PacketDecodeError, SSHPacket, String, UInt32

from knot_ssh.buckets import Bucket
from knot_ssh.dataplane.channel import DIRECT_TCPIP, FORWARDED_TCPIP, Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.framing import BLOCK, DATA, LENGTH, TAG, Opener, Sealer
from knot_ssh.dataplane.limits import (
    ANSWER_TIMEOUT,
    BACKLOG,
    CHANNELS_A_TURN,
    COSTLY,
    KIB,
    PACKET,
    PACKETS_A_LOOK,
    PLAIN_PACKET,
    TINY_A_LOOK,
    TURN,
    WINDOW_MAX,
    WINDOW_MAX_OPENSSH,
)
from knot_ssh.dataplane.outbox import AsyncsshOutbox, Outbox
from knot_ssh.dataplane.shares import Share
from knot_ssh.dataplane.transport import Transport

if TYPE_CHECKING:
    from knot_ssh.dataplane.plane import DataPlane

_LENGTH = struct.Struct(">I")
_PACKET = struct.Struct(">BBII")
"""Padding length, type, channel, and for data its length, for an adjustment the bytes to add."""

_WINDOW_AND_PACKET = struct.Struct(">II")
_IN_PLACE = frozenset(
    (MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST, MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE, MSG_CHANNEL_OPEN_CONFIRMATION)
)
_COSTLY = frozenset((MSG_DEBUG, MSG_UNIMPLEMENTED, MSG_GLOBAL_REQUEST, MSG_CHANNEL_REQUEST))
OPEN = 6
"""Where the payload of a packet starts, behind its type."""
FIELD = 4
"""Bytes of a number (RFC 4251 section 5)."""
PACKET_LENGTH = PACKET + 1024
"""Most that the length field of a packet may say; the data and what goes around it."""
PLAIN_LENGTH = PLAIN_PACKET + 1024
"""The same before there is a channel: nothing longer has any business then."""
PIECE = 16 * KIB
"""Bytes that asyncssh is given at a time: its parser copies the rest of them for each packet, however small."""
PIECE_MIN = KIB // 2
"""The same where packets are so small that a turn would take too long."""
SILENT = 1.9
"""Intervals of keepalive after which a peer that says nothing is doubted: it had all of one to answer."""
DOUBT = 1.0
"""Seconds of silence, while a channel is unanswered, after which the peer is asked for a sign of life; it is doubted when
it has not given one for as long again."""
REQUESTS = 64
"""Global requests (RFC 4254 section 4) of one peer that may wait for an answer."""
DEFERRED = 20_000
"""Packets that wait for an exchange of keys to end; a peer that causes more, and does not end it, is given up."""
THROTTLE = 0.01
"""Seconds to leave a connection alone that sends too many tiny packets."""


class CarryingConnection(SSHConnection):
    """What our client and server connections have in common. `lost`: it is gone, and so are all its channels."""

    plane: DataPlane
    outbox: Outbox
    plane_transport: Transport

    def __init__(self, plane: DataPlane, *args: Any, **options: Any) -> None:
        self.plane = plane
        self.tally = Tally()
        self.lost = False
        self.tiny_packets = 0
        self.round_trip = 0.0
        self._known = False
        self._was_made = False
        self._opener: Opener | None = None
        self._sealer: Sealer | None = None
        self._left_over = b""
        self._unread = bytearray()
        self._piece = PIECE
        self._not_reading: set[str] = set()
        self.share = Share(plane.limits, plane.reactor.now)
        self._small = Bucket(plane.limits.small_packets, plane.limits.small_packets, plane.reactor.now)
        self._heard = 0.0
        self._carried: set[Channel] = set()
        self._asked: deque[tuple[float, Channel]] = deque()
        self._doubt_timer: asyncio.TimerHandle | None = None
        self._on_silence: Callable[[bool], None] | None = None
        self.is_silent = False
        self._answer_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        super().__init__(*args, **options)
        self._max_recv_pktlen = PLAIN_LENGTH

    # Channels

    def attach(self, channel: Channel) -> int:
        """Give a channel its number; raises asyncssh.ChannelOpenError when there are too many, or the connection is gone."""
        if len(self._channels) >= self.plane.limits.channels or self.share.is_full:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many connections at once")
        number = self.add_channel(channel)  # type: ignore[arg-type]  # asyncssh calls what it needs of it
        self._carried.add(channel)
        self.share.channels += 1
        self._idle.clear()
        if not self._known:
            self._get_to_know()
        return number

    def expect_answer(self, channel: Channel) -> None:
        """Abandon this channel when the peer does not answer in time."""
        while self._asked and not self._asked[0][1].is_opening:
            self._asked.popleft()
        self._asked.append((self._loop.time() + ANSWER_TIMEOUT, channel))
        if self._answer_timer is None:
            self._answer_timer = self._loop.call_later(ANSWER_TIMEOUT, self._stop_expecting)
        if self._doubt_timer is None:
            self._doubt_timer = self._loop.call_later(DOUBT, self._doubt)

    def _doubt(self, asked_at: float = 0) -> None:
        """Find out soon whether the peer lives while somebody waits for it: keepalive alone would take its time."""
        self._doubt_timer = None
        if self.lost or not self.unanswered():
            return
        now = self._loop.time()
        if self._heard < asked_at:
            self._set_silent(True)
        elif now - self._heard >= DOUBT:
            asked_at = now
            self.create_task(self._make_keepalive_request())
        self._doubt_timer = self._loop.call_later(DOUBT, self._doubt, asked_at)

    def _stop_expecting(self) -> None:
        """One timer serves all: they were asked for one after the other."""
        self._answer_timer = None
        while self._asked and self._asked[0][0] <= self._loop.time():
            self._asked.popleft()[1].abandon()
        if self._asked and not self.lost:
            self._answer_timer = self._loop.call_at(self._asked[0][0], self._stop_expecting)

    def detach(self, channel: Channel) -> None:
        """Forget a channel that is closed both ways."""
        if channel in self._carried:
            self._carried.discard(channel)
            self.share.channels -= 1
        self._channels.pop(channel.number, None)
        if not self._carried:
            self._idle.set()

    def unanswered(self) -> list[Channel]:
        """The channels that we have asked for and that the peer has not answered yet."""
        return [channel for _, channel in self._asked if channel.is_opening]

    async def register(self, host: str, port: int) -> bool:
        """Ask the server to send us what is for this address (RFC 4254 section 7.1); gives whether it will."""
        kind, _ = await self._make_global_request(b"tcpip-forward", String(host), UInt32(port))
        return bool(kind == MSG_REQUEST_SUCCESS)

    @property
    def is_idle(self) -> bool:
        """Whether no channel of ours is open."""
        return self._idle.is_set()

    async def wait_idle(self) -> None:
        """Wait until no channel of ours is open."""
        await self._idle.wait()

    @property
    def largest_packet(self) -> int:
        """Bytes of data that we take in one packet."""
        return PACKET if self._opener else PLAIN_PACKET

    # Keys

    @property
    def _recv_encryption(self) -> Encryption | None:
        return self._receiving

    @_recv_encryption.setter
    def _recv_encryption(self, encryption: Encryption | None) -> None:
        opener = Opener.of(encryption) if self._is_ours else None
        if opener and self._opener is None:
            # asyncssh's parser has the rest of what was received: it is not for that parser any more
            self._left_over, self._inpbuf = self._inpbuf, b""
        self._opener = opener
        self._receiving = opener or encryption

    @property
    def _send_encryption(self) -> Encryption | None:
        return self._sending

    @_send_encryption.setter
    def _send_encryption(self, encryption: Encryption | None) -> None:
        sealer = Sealer.of(encryption) if self._is_ours else None
        if self._is_ours:
            self.plane_transport.outbox.sealer = sealer
        self._sealer = sealer
        self._sending = sealer or encryption

    @property
    def _is_ours(self) -> bool:
        return isinstance(getattr(self, "_transport", None), Transport)

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        self.outbox.hold()

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        self.outbox.release()

    # Sending

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._was_made = True
        self.largest_window = WINDOW_MAX
        if isinstance(transport, Transport):
            self.outbox = transport.outbox
            self.plane_transport = transport
        else:
            self.outbox = AsyncsshOutbox(self.plane.reactor, self.send_payload)
        super().connection_made(transport)

    def send_payload(self, kind: int, payload: bytes) -> None:
        """Send one packet asyncssh's way."""
        self.send_packet(kind, payload)

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        """Frame a packet ourselves where nothing but that is to be done, and leave the rest to asyncssh.

        asyncssh puts an empty packet before every other, a remedy for CBC ciphers, of which we have none.
        """
        if self._sealer and self._auth_complete and self._kex_complete and not self._is_rekey_due:
            payload = b"".join(args)
            self.plane_transport.outbox.write(self._sealer.seal_other(pkttype, payload))
            self.sealed(len(payload))
        elif pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)
            if len(self._deferred_packets) > DEFERRED:
                self._force_close(asyncssh.ProtocolError("the peer does not finish the exchange of keys"))
            if self._transport and self._transport.get_write_buffer_size() > BACKLOG:
                self._force_close(asyncssh.ConnectionLost("the peer does not read what it is sent"))

    @property
    def _is_rekey_due(self) -> bool:
        """Whether it is time for new keys (RFC 4253 section 9)."""
        return self._rekey_bytes_sent >= self._rekey_bytes or bool(
            self._rekey_seconds and self.plane.reactor.now >= self._rekey_time
        )

    def log_sent_packet(self, *_args: Any, **_options: Any) -> None:
        """asyncssh's log of packets is not ours."""

    def log_received_packet(self, *_args: Any, **_options: Any) -> None:
        """asyncssh's log of packets is not ours."""

    def sealed(self, count: int) -> None:
        """One packet with so many bytes was encrypted beside asyncssh."""
        self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
        self._rekey_bytes_sent += count
        if self._is_rekey_due and self._kex_complete:
            self._send_kexinit()
            self._kexinit_sent = True

    def pause_writing(self) -> None:
        if isinstance(self.outbox, AsyncsshOutbox):
            self.outbox.pause()

    def resume_writing(self) -> None:
        if isinstance(self.outbox, AsyncsshOutbox):
            self.outbox.resume()

    # Receiving

    def stop_reading(self, reason: str) -> None:
        """Read nothing from the peer until every reason is taken back."""
        self._not_reading.add(reason)
        if self._transport and not self._transport.is_closing():
            self._transport.pause_reading()

    def go_on_reading(self, reason: str) -> None:
        """Take one reason back."""
        self._not_reading.discard(reason)
        if not self._not_reading and self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes, datatype: asyncssh.DataType = None) -> None:
        """What an asyncio transport has read; asyncssh is given it piece by piece, and others have their turn between."""
        self._unread += data
        if "unread" not in self._not_reading:
            self.on_turn()

    def on_turn(self) -> None:
        """Give asyncssh the next piece."""
        if self.busy:
            self.stop_reading("unread")
            return
        piece = bytes(self._unread[: self._piece])
        del self._unread[: len(piece)]
        self._parse(piece)
        if self._unread and self._transport:
            self.stop_reading("unread")
            self.plane.reactor.again(self)
        else:
            self.go_on_reading("unread")

    def on_event(self, events: int) -> None:
        pass

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        self.abort()

    def _parse(self, piece: bytes) -> None:
        """Have asyncssh decrypt and serve this; the next piece is such that it takes no longer than a turn may."""
        began = time.monotonic()
        super().data_received(piece)
        taken = time.monotonic() - began
        self._piece = max(PIECE_MIN, self._piece // 2) if taken > TURN else min(PIECE, self._piece * 2)
        if self.tiny_packets >= TINY_A_LOOK:
            self._count_tiny()

    def received(self, buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
        """What our own transport has read; see `Receiver`."""
        if self.busy:
            return start, False
        self._heard = self.plane.reactor.now
        if self._opener is None:
            stop = min(end, start + self._piece)
            self._parse(bytes(buffer[start:stop]))
            start = stop - len(self._take_left_over())
            if self.busy or self._opener is None:
                if not self.busy:
                    self.plane_transport.soon()
                return start, False
        handled = 0
        until = 0.0
        more = True
        while more and end - start > LENGTH:
            length: int = _LENGTH.unpack_from(buffer, start)[0]
            if length < BLOCK or length % BLOCK or length > (PACKET_LENGTH if self._auth_complete else PLAIN_LENGTH):
                more = self._violated("a packet is too long, too short, or not a whole number of blocks")
                break
            stop = start + LENGTH + length + TAG
            if stop > end:
                break
            more = self._serve(buffer, start, stop)
            start = stop
            handled += 1
            if handled % PACKETS_A_LOOK == 0:
                now = time.monotonic()
                until = until or now + TURN
                if more and now > until:
                    self.plane_transport.soon()
                    more = False
        if self.tiny_packets >= TINY_A_LOOK:
            self._count_tiny()
        if self._opener is None:
            self.plane_transport.soon()  # from here on the packets are asyncssh's to open
        return start, more

    def _serve(self, buffer: memoryview, start: int, stop: int) -> bool:
        """Open one packet and have it served; False when nothing more may be served in this way for now."""
        assert self._opener
        if not self._opener.open(buffer, start, stop):
            return self._violated("a packet was altered on its way")
        padding, kind, number, size = _PACKET.unpack_from(buffer, start + LENGTH)
        if kind == MSG_CHANNEL_OPEN and self._open_asked(bytes(buffer[start + OPEN : stop - TAG - padding])):
            self._recv_seq = (self._recv_seq + 1) & 0xFFFFFFFF
            return self._transport is not None and "throttled" not in self._not_reading
        channel: Any = self._channels.get(number)
        if channel.__class__ is not Channel or kind not in _IN_PLACE:
            self._inpbuf = bytes(buffer[start:stop])
            self._recv_data()
            return self._transport is not None and self._opener is not None and not self.busy
        try:
            self._serve_channel(channel, kind, size, buffer, start + DATA, stop - TAG - padding)
        except asyncssh.ProtocolError as error:
            return self._violated(error.reason)
        self._recv_seq = (self._recv_seq + 1) & 0xFFFFFFFF
        return self._transport is not None

    def _serve_channel(self, channel: Channel, kind: int, size: int, buffer: memoryview, start: int, end: int) -> None:
        """Give a channel of ours what is for it; raises asyncssh.ProtocolError.

        `size` is the first field behind the channel's number, if there is one; what follows it lies between start and end.
        """
        rest = end - start
        if kind == MSG_CHANNEL_DATA and size == rest:
            channel.data(buffer[start:end])
        elif kind == MSG_CHANNEL_WINDOW_ADJUST and rest == 0:
            channel.adjust(size)
        elif kind == MSG_CHANNEL_EOF and rest == -FIELD:
            channel.got_eof()
        elif kind == MSG_CHANNEL_CLOSE and rest == -FIELD:
            channel.got_close()
        elif kind == MSG_CHANNEL_OPEN_CONFIRMATION and rest == 2 * FIELD:
            channel.process_open_confirmation(size, *_WINDOW_AND_PACKET.unpack_from(buffer, start))
        else:
            raise asyncssh.ProtocolError("a packet's length does not fit its content")

    def channel_requested(self, host: str, port: int, origin: str, origin_port: int) -> Any:
        """The peer asks for a direct-tcpip channel of a server, a forwarded-tcpip channel of a client.

        Gives the Channel and its Opening, or what asyncssh understands. asyncssh.ChannelOpenError refuses it.
        """
        if self.is_client():
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "nothing is forwarded to us")
        owner: Any = self._owner
        return owner.connection_requested(host, port, origin, origin_port)

    def _open_asked(self, payload: bytes) -> bool:
        """Serve a request for such a channel (RFC 4254 section 7.2), as asyncssh would, without the detours.

        False leaves it to asyncssh: other kinds of channels, other kinds of answers, and whatever is malformed.
        """
        if not self._auth_complete or not payload.startswith(FORWARDED_TCPIP if self.is_client() else DIRECT_TCPIP):
            return False
        self._throttle(self.share.opened(self.plane.reactor.now))
        try:
            packet = SSHPacket(payload)
            packet.get_string()
            number, window, size = packet.get_uint32(), packet.get_uint32(), packet.get_uint32()
            host, port = packet.get_string().decode(), packet.get_uint32()
            origin, origin_port = packet.get_string().decode(), packet.get_uint32()
            packet.check_end()
        except (PacketDecodeError, UnicodeDecodeError):
            return False
        try:
            answer = self.channel_requested(host, port, origin, origin_port)
            if not isinstance(answer, tuple):
                return False
            channel, opening = answer
            channel.process_open(number, window, size, opening)
        except asyncssh.ChannelOpenError as error:
            self.send_channel_open_failure(number, error.code, error.reason, error.lang)
        return True

    def _process_global_request(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """asyncssh takes a task and a place in a queue for some requests, as many as the peer likes."""
        if len(self._global_request_queue) >= REQUESTS:
            raise asyncssh.ProtocolError("too many requests at once")
        super()._process_global_request(pkttype, pktid, packet)

    def _process_channel_open(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """What `_open_asked` has left to asyncssh counts as well."""
        self._throttle(self.share.opened(self.plane.reactor.now))
        super()._process_channel_open(pkttype, pktid, packet)

    _packet_handlers = SSHConnection._packet_handlers | {
        MSG_GLOBAL_REQUEST: _process_global_request,
        MSG_CHANNEL_OPEN: _process_channel_open,
    }

    def _violated(self, what: str) -> bool:
        self._send_disconnect(asyncssh.DISC_PROTOCOL_ERROR, what, "en")
        self._force_close(asyncssh.ProtocolError(what))
        return False

    def internal_error(self, exc_info: Any = None, error_logger: Any = None) -> None:
        """What a peer has written wrongly is the peer's fault, also where asyncssh takes it for one of its own: in what it
        does in tasks, and in a packet without a type."""
        error = (exc_info or sys.exc_info())[1]
        if isinstance(error, PacketDecodeError | UnicodeDecodeError):
            self._violated("a packet cannot be read")
        else:
            super().internal_error(exc_info, error_logger)

    @property
    def busy(self) -> bool:
        """Whether asyncssh is in the middle of a packet; it then puts a plain function in its handler's place."""
        return self._recv_handler.__class__ is not MethodType

    def _finish_recv_packet(
        self, pkttype: int, seq: int, _task: asyncio.Task[Any] | None = None, is_async: bool = False
    ) -> None:
        if pkttype in _COSTLY:
            self.tiny_packets += COSTLY
        super()._finish_recv_packet(pkttype, seq, _task, is_async)
        if is_async and self._is_ours:
            self.plane_transport.push_back(self._take_left_over())
        elif is_async and "unread" in self._not_reading:
            self.plane.reactor.again(self)

    def _take_left_over(self) -> bytes:
        """What asyncssh had received, and must not parse, when the first keys came."""
        rest, self._left_over = self._left_over, b""
        return rest

    def _count_tiny(self) -> None:
        """Read on more slowly from who sends too many tiny packets."""
        count, self.tiny_packets = self.tiny_packets, 0
        self._throttle(self._small.take(self.plane.reactor.now, count))

    def _throttle(self, seconds: float) -> None:
        """Leave the peer alone for so long, where it is any time at all."""
        if seconds > 0 and "throttled" not in self._not_reading:
            self.stop_reading("throttled")
            self._loop.call_later(max(THROTTLE, seconds), self.go_on_reading, "throttled")

    # Liveness

    def _reset_keepalive_timer(self) -> None:
        """Only note that the peer lives: a new timer for each packet would cost more than the packet."""
        self._heard = self.plane.reactor.now

    @property
    def quiet(self) -> float:
        """Seconds since the peer was heard last."""
        return self._loop.time() - self._heard

    def watch_silence(self, listener: Callable[[bool], None]) -> None:
        """Have this called with True once the peer has left a sign of life unanswered, with False when it is heard again."""
        self._on_silence = listener

    def _set_silent(self, silent: bool) -> None:
        if silent != self.is_silent:
            self.is_silent = silent
            if self._on_silence:
                self._on_silence(silent)

    def _keepalive_timer_callback(self) -> None:
        quiet = self.quiet
        self._set_silent(quiet >= SILENT * self._keepalive_interval)
        if quiet < self._keepalive_interval:
            self._keepalive_count = 0
            self._keepalive_timer = self._loop.call_later(self._keepalive_interval - quiet, self._keepalive_timer_callback)
        else:
            super()._keepalive_timer_callback()

    async def _make_keepalive_request(self) -> None:
        began = self._loop.time()
        await super()._make_keepalive_request()
        taken = self._loop.time() - began
        if not self.lost:
            self._set_silent(False)
        self.round_trip = min(self.round_trip or taken, taken)

    def _get_to_know(self) -> None:
        """Learn what the peer is and how far away: the answer to any request tells."""
        self._known = True
        self._max_recv_pktlen = PACKET_LENGTH  # also asyncssh's, should the cipher change
        version = str(self.get_extra_info("client_version" if self.is_server() else "server_version", ""))
        self.largest_window = WINDOW_MAX_OPENSSH if "OpenSSH" in version else WINDOW_MAX
        self.create_task(self._make_keepalive_request())

    # Ends

    def eof_received(self) -> None:
        """asyncssh has the transport aborted in the next turn. By then asyncio's may have written what was left and be gone,
        and an abort fails: so it is done at once."""
        if self._transport:
            self._transport.abort()
        super().eof_received()

    async def wait_gone(self) -> None:
        """Wait until the connection has ended; one that never had a transport has."""
        if not self._was_made:
            self._was_made = True
            self._cleanup(None)
        await self.wait_closed()
        await self.wait_idle()

    def _cleanup(self, exc: Exception | None) -> None:
        self.lost = True
        self._asked.clear()
        for timer in (self._answer_timer, self._doubt_timer):
            if timer:
                timer.cancel()
        if self._carried:
            for channel in self._carried:
                channel.cut_off()
                self._channels.pop(channel.number, None)
            self.plane.reactor.again(_Ending(self, list(self._carried), exc))
        super()._cleanup(exc)


class _Ending:
    """The end of a lost connection's channels, so many a turn."""

    def __init__(self, connection: CarryingConnection, channels: list[Channel], exc: Exception | None) -> None:
        self._connection = connection
        self._channels = channels
        self._exc = exc

    def on_turn(self) -> None:
        """End some, and go on in the next turn."""
        for _ in range(min(CHANNELS_A_TURN, len(self._channels))):
            channel = self._channels.pop()
            self._connection.detach(channel)
            channel.process_connection_close(self._exc)
        if self._channels:
            self._connection.plane.reactor.again(self)

    def on_event(self, events: int) -> None:
        pass

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        """One channel's fault; the others still have to end."""
        self._connection.plane.reactor.again(self)
