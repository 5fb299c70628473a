"""One forwarded connection: a TCP socket and an SSH channel, joined so that each carries the other's bytes and end.

The rule: what one side reads is a prefix of what the other side wrote, and a clean end (FIN) is shown only for a whole
stream. SSH tells the two apart: a whole stream ends with CHANNEL_EOF, a broken one with CHANNEL_CLOSE alone or with the
loss of the connection (RFC 4254 section 5.3). TCP tells them apart too, as FIN and RST. So here:

    FIN read from the socket         -> CHANNEL_EOF
    CHANNEL_EOF                      -> FIN (half-close), behind the last byte
    reset socket                     -> CHANNEL_CLOSE without EOF
    CHANNEL_CLOSE without EOF        -> RST
    lost connection                  -> RST, unless both directions had ended
    CHANNEL_CLOSE after EOF          -> what was received is delivered, then the socket closes as by close(2)

Every socket carries `SO_LINGER {1, 0}` from birth, so that a killed process resets it too. It is cleared only at a
proper end, and only once the kernel has taken the last byte: until then a killed process would lose some.

Nothing is read from the socket before the channel is open, nor beyond what the peer's window and the outbox take. What
the socket does not take at once is kept, which is what the receive window bounds; it grows again only as the socket
takes more.

The object is small, because thousands lie idle: slots, no buffers, no tasks, no timers. Its life:

    NEW ---ask, process_open---> OPENING ---confirmed---> OPEN ---CLOSE sent and received---> CLOSED
                                    |                      |                                    ^
                                    +-------refused--------+---------connection lost-----------+

A peer that does not answer at all is not waited for: the channel is ABANDONED, and closes when the answer comes.
It is gone, and its owner told, when it is CLOSED and its socket is closed too: the last bytes may take longer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import asyncssh
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
)
from asyncssh.packet import SSHPacket, String, UInt32

from knot_ssh.dataplane.limits import PACKET, PACKET_MIN, PACKETS_A_CHUNK, SEND_WINDOW_MAX, SMALL, TINY
from knot_ssh.dataplane.reactor import ERROR, HANGUP, PEER_ENDED, WRITE
from knot_ssh.dataplane.windows import ReceiveWindow
from knot_ssh.words import printable

if TYPE_CHECKING:
    from knot_ssh.dataplane.connection import CarryingConnection
    from knot_ssh.dataplane.counters import Tally
    from knot_ssh.dataplane.outbox import Outbox
    from knot_ssh.dataplane.plane import DataPlane
    from knot_ssh.dataplane.windows import Budget

LINGER_RESET = struct.pack("ii", 1, 0)
LINGER_OFF = struct.pack("ii", 0, 0)
DIRECT_TCPIP = String("direct-tcpip")
FORWARDED_TCPIP = String("forwarded-tcpip")
NOWHERE = ("127.0.0.1", 0)
"""Who is at the other end of a socket that has no address."""

NEW, OPENING, ABANDONED, OPEN, CLOSED, GONE = range(6)


class Owner(Protocol):
    """Who made a channel, and hears what becomes of it."""

    plane: DataPlane
    tally: Tally

    @property
    def budget(self) -> Budget:
        """What the windows of its channels come out of."""

    def channel_opened(self, channel: Channel) -> None:
        """Both sides have agreed."""

    def channel_refused(self, channel: Channel, reason: str) -> None:
        """The far side would not open it. `channel_gone` follows."""

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        """The connection was lost before the far side had said anything, and `channel_gone` came.

        Nothing was read from the socket: it is the owner's, who may try again.
        """

    def channel_gone(self, channel: Channel) -> None:
        """Neither socket nor channel is there any more. Comes once, and last."""


class Opening(Protocol):
    """What is to be done when a peer asks for a channel."""

    connection: CarryingConnection

    def begin(self, channel: Channel) -> None:
        """Get a socket, and `confirm` or `refuse`."""

    def give_up(self) -> None:
        """The channel is over, and its socket about to be closed."""


class Channel:
    """A socket and, once it is opened one way or the other, an SSH channel."""

    __slots__ = (
        "_ended",
        "_fd",
        "_got_close",
        "_got_eof",
        "_opening",
        "_outbox",
        "_peer_number",
        "_peer_packet",
        "_pending",
        "_queued",
        "_readable",
        "_send_window",
        "_sent_close",
        "_sent_eof",
        "_small",
        "_state",
        "_window",
        "connection",
        "number",
        "owner",
        "since",
        "sock",
    )

    def __init__(self, owner: Owner, sock: socket.socket | None = None, since: float = 0) -> None:
        self.owner = owner
        self.since = since
        self.sock = sock
        self.connection: CarryingConnection | None = None
        self.number = -1
        self._state = NEW
        self._fd = -1
        self._outbox: Outbox | None = None
        self._opening: Opening | None = None
        self._window: ReceiveWindow | None = None
        self._pending: deque[bytearray] | None = None
        self._peer_number = 0
        self._peer_packet = 0
        self._send_window = 0
        self._queued = self._readable = self._ended = False
        self._got_close = self._got_eof = self._sent_close = self._sent_eof = False
        self._small = True

    @property
    def is_gone(self) -> bool:
        """Whether it is over."""
        return self._state == GONE

    @property
    def is_opening(self) -> bool:
        """Whether the peer has been asked and has not answered."""
        return self._state == OPENING

    # Opening ours: `ask`, then asyncssh calls process_open_confirmation or process_open_failure

    def ask(self, connection: CarryingConnection, host: str, port: int, kind: bytes = DIRECT_TCPIP) -> None:
        """Ask the peer for a channel (RFC 4254 section 7.2); the owner may hear of a refusal right now."""
        assert self.sock
        try:
            origin, origin_port = (self.sock.getpeername() or NOWHERE)[:2]
            self._attach(connection)
        except OSError:
            self._never_open("the client has gone")
            return
        except asyncssh.ChannelOpenError as error:
            self._never_open(error.reason)
            return
        assert self._window
        terms = UInt32(self.number) + UInt32(self._window.left) + UInt32(connection.largest_packet)
        ends = String(host) + UInt32(port) + String(origin) + UInt32(origin_port)
        connection.send_packet(MSG_CHANNEL_OPEN, kind, terms, ends)
        connection.expect_answer(self)

    def abandon(self) -> None:
        """The peer has had long enough to answer. Its number stays taken until it does."""
        if self._state == OPENING:
            self._state = ABANDONED
            if self._window:
                self._window.close()
            self._reset_socket()
            self.owner.channel_refused(self, "no answer")

    def withdraw(self) -> socket.socket | None:
        """Ask no more: gives the socket, as it was, if the peer has not answered yet. Its number stays taken until it does."""
        sock = self.sock
        if self._state != OPENING or self._peer_packet or sock is None:
            return None
        self._state = ABANDONED
        self.sock = None
        if self._window:
            self._window.close()
        return sock

    def process_open_confirmation(self, send_chan: int, send_window: int, send_pktsize: int, _packet: Any = None) -> None:
        """asyncssh: the peer has opened the channel that we asked for."""
        self._check_expected()
        if send_pktsize < PACKET_MIN:
            raise asyncssh.ProtocolError("the maximum packet size is too small")
        self._take_terms(send_chan, send_window, send_pktsize)
        self._open()
        if self.sock is None:  # given up meanwhile
            self._close_channel()
        else:
            self._readable = True
            self.pump()

    def process_open_failure(self, code: int, reason: str, lang: str) -> None:
        """asyncssh: the peer would not open it."""
        self._check_expected()
        self._never_open(printable(reason))

    # Opening the peer's: asyncssh calls process_open; whoever gets the socket calls `confirm` or `refuse`

    def process_open(self, send_chan: int, send_window: int, send_pktsize: int, opening: Opening) -> None:
        """asyncssh: the peer asks for this channel. asyncssh.ChannelOpenError refuses it."""
        try:
            if send_pktsize < PACKET_MIN:
                raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "the maximum packet size is too small")
            self._attach(opening.connection)
        except asyncssh.ChannelOpenError:
            self._detach()
            raise
        self._take_terms(send_chan, send_window, send_pktsize)
        self._opening = opening
        opening.begin(self)

    def set_inbound_peer_names(self, *_names: Any) -> None:
        """asyncssh: who is at the ends; nobody asks."""

    def confirm(self, sock: socket.socket) -> None:
        """Say yes: here is the socket."""
        assert self.connection
        assert self._window
        self.sock = sock
        self.connection.send_channel_open_confirmation(
            self._peer_number, self.number, self._window.left, self.connection.largest_packet
        )
        self._open()

    def drop_socket(self) -> None:
        """The socket that was tried is of no use."""
        if self.sock:
            self.sock.close()
            self.sock = None

    def refuse(self, code: int, reason: str) -> None:
        """Say no."""
        if self._state == OPENING:
            assert self.connection
            self.connection.send_channel_open_failure(self._peer_number, code, reason, "en")
            self._never_open(reason)

    # From the socket to the channel

    def on_event(self, events: int) -> None:
        if events & WRITE and self._pending is not None:
            self._deliver()
        if events & ~WRITE:
            if events & (PEER_ENDED | HANGUP | ERROR):
                self._ended = True
                if events & ERROR and self._is_broken():
                    self.abort()
                    return
            self._readable = True
            if not self._queued:
                self.pump()

    def on_turn(self) -> None:
        pass

    def on_turn_end(self) -> None:
        pass

    def on_crash(self) -> None:
        self.abort()

    def pump(self) -> None:
        """Pass on one chunk of what the socket has, if it may go now."""
        self._queued = False
        sock, outbox = self.sock, self._outbox
        if not self._readable or self._sent_eof or self._state != OPEN or sock is None or outbox is None:
            return
        budget = PACKET
        packets = 0
        while budget > 0 and packets < PACKETS_A_CHUNK and (window := self._send_window):
            packets += 1
            most = min(window, self._peer_packet, budget)
            try:
                size = outbox.send_from(sock, self._peer_number, most, self._small)
            except BlockingIOError:
                self._drained()
                return
            except OSError:
                self.abort()
                return
            if size is None:
                break
            if size == 0:
                self._end_sending()
                return
            self._send_window = window - size
            self._small = size < SMALL and size < outbox.limit
            self.owner.tally.sent += size
            self.connection.tally.sent += size  # type: ignore[union-attr]  # it is there while the channel is open
            if size < outbox.limit and not self._ended:
                self._drained()
                return
            budget -= size
        if self._send_window:
            self._queued = True
            outbox.enqueue(self, small=self._small)
        elif self._is_at_end():  # the end needs no window
            self._end_sending()

    def adjust(self, count: int) -> None:
        """The peer takes so many bytes more (RFC 4254 section 5.2); raises asyncssh.ProtocolError when it must not."""
        if self._state != OPEN or self._send_window + count > SEND_WINDOW_MAX:
            raise asyncssh.ProtocolError("a window that cannot be")
        self._send_window += count
        if not self._queued:
            self.pump()

    def _drained(self) -> None:
        """The socket has no more for now."""
        self._readable = False
        self.owner.plane.reactor.want_read(self._fd)

    def _end_sending(self) -> None:
        """FIN read: the stream towards the peer is whole."""
        self._sent_eof = True
        self._say(MSG_CHANNEL_EOF)
        if self._got_eof:
            self._close_channel()
            self._end_socket()

    # From the channel to the socket

    def data(self, data: memoryview) -> None:
        """The peer has sent this; raises asyncssh.ProtocolError when it must not."""
        size = len(data)
        window = self._window
        if self._state != OPEN or self._got_eof or window is None:
            raise asyncssh.ProtocolError("data on a channel that takes none")
        if size > window.left:
            raise asyncssh.ProtocolError("data beyond the window")
        window.left -= size
        if size < TINY:
            self.connection.tiny_packets += 1  # type: ignore[union-attr]
        if self.sock is None:
            return
        if self._pending is not None:
            self._keep(data)
            return
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.abort()
            return
        if sent < size:
            self._pending = deque((bytearray(data[sent:]),))
            self.owner.plane.reactor.want_write(self._fd)
        if sent:
            self._passed(sent)

    def _keep(self, data: memoryview) -> None:
        """Put this behind what waits for the socket: in pieces, since one long buffer would be moved again and again."""
        assert self._pending
        last = self._pending[-1]
        if len(last) + len(data) <= PACKET:
            last += data
        else:
            self._pending.append(bytearray(data))

    def _deliver(self) -> None:
        """Pass on what the socket would not take before."""
        assert self.sock
        assert self._pending is not None
        pending, sent = self._pending, 0
        try:
            while pending:
                piece = pending[0]
                size = self.sock.send(piece)
                sent += size
                if size < len(piece):
                    del piece[:size]
                    break
                pending.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.abort()
            return
        if pending:
            self.owner.plane.reactor.want_write(self._fd)
        else:
            self._pending = None
        self._passed(sent)
        if self._got_eof:
            self._end_socket()

    def _passed(self, count: int) -> None:
        """The kernel has taken so many bytes for the local reader."""
        self.owner.tally.received += count
        connection = self.connection
        if connection is None:
            return
        connection.tally.received += count
        if not self._got_eof and not self._sent_close:
            assert self._window
            now = self.owner.plane.reactor.now
            grant = self._window.passed(count, now, connection.round_trip, connection.largest_window)
            if grant:
                self._say(MSG_CHANNEL_WINDOW_ADJUST, UInt32(grant))

    def got_eof(self) -> None:
        """The stream from the peer is whole; raises asyncssh.ProtocolError when it must not come."""
        if self._state != OPEN or self._got_eof:
            raise asyncssh.ProtocolError("an end that must not come")
        self._got_eof = True
        if self._sent_eof:
            self._close_channel()
        self._end_socket()

    def got_close(self) -> None:
        """The peer is done with the channel; raises asyncssh.ProtocolError when it must not come."""
        if self._state != OPEN:
            raise asyncssh.ProtocolError("Channel not open")
        self._got_close = True
        if not self._got_eof:
            self._reset_socket()
        self._close_channel()
        self._end_socket()
        self._detach()

    # Everything that is rare

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool:
        """asyncssh: a packet for this channel. Raises asyncssh.ProtocolError when it must not come."""
        if self._state != OPEN:
            raise asyncssh.ProtocolError("Channel not open")
        handle = _HANDLERS.get(pkttype)
        if handle is None:
            return False
        handle(self, packet)
        return True

    def log_received_packet(self, *_args: Any) -> None:
        """asyncssh's log of packets is not ours."""

    def cut_off(self) -> None:
        """The connection is lost: nothing more is to be read. `process_connection_close` follows."""
        self._outbox = None

    def process_connection_close(self, exc: Exception | None) -> None:
        """asyncssh: the connection is lost, and with it the channel."""
        sock = self.withdraw()
        if sock is not None:
            self._detach()
            self.owner.channel_unanswered(self, sock)
            return
        if self._state in (OPENING, ABANDONED):
            self._never_open("the link was lost")
            return
        if not (self._sent_eof and self._got_eof):
            self._reset_socket()
        self._detach()

    def close(self) -> None:
        """asyncssh: the connection is being closed."""
        self.abort()

    def abort(self) -> None:
        """End both sides so that neither end takes the stream for whole."""
        self._reset_socket()
        if self._state == OPEN:
            self._close_channel()
        elif self._state == OPENING and self._peer_packet:
            self.refuse(asyncssh.OPEN_CONNECT_FAILED, "given up")
        elif self._state in (NEW, CLOSED):
            self._detach()

    def _got_data(self, packet: SSHPacket) -> None:
        data = packet.get_string()
        packet.check_end()
        self.data(memoryview(data))

    def _got_adjust(self, packet: SSHPacket) -> None:
        count = packet.get_uint32()
        packet.check_end()
        self.adjust(count)

    def _got_end(self, packet: SSHPacket) -> None:
        packet.check_end()
        self.got_eof()

    def _got_closed(self, packet: SSHPacket) -> None:
        packet.check_end()
        self.got_close()

    def _got_request(self, packet: SSHPacket) -> None:
        """There is none that we know; the peer may want to hear that (RFC 4254 section 5.4)."""
        packet.get_string()
        if packet.get_boolean() and not self._sent_close:
            self._say(MSG_CHANNEL_FAILURE)

    def _check_expected(self) -> None:
        if self._state not in (OPENING, ABANDONED) or self._peer_packet:
            raise asyncssh.ProtocolError("Channel not being opened")

    def _attach(self, connection: CarryingConnection) -> None:
        self.number = connection.attach(self)
        self.connection = connection
        self._outbox = connection.outbox
        self._window = ReceiveWindow(self.owner.budget)
        self._state = OPENING

    def _take_terms(self, number: int, window: int, packet: int) -> None:
        self._peer_number = number
        self._send_window = window
        self._peer_packet = min(packet, PACKET)

    def _open(self) -> None:
        assert self.connection
        self._state = OPEN
        self._opening = None
        if self.sock:
            self._fd = self.sock.fileno()
            self.connection.tally.opened += 1
            self.owner.tally.opened += 1
            self.owner.channel_opened(self)
            try:
                self.owner.plane.reactor.watch(self._fd, self)
            except OSError:  # the system watches too many descriptors already
                self.abort()

    def _never_open(self, reason: str) -> None:
        if self.connection:
            self.connection.tally.refuse(reason)
        self._reset_socket()
        if self._state != ABANDONED:
            self.owner.channel_refused(self, reason)
        self._detach()

    def _say(self, kind: int, payload: bytes = b"") -> None:
        assert self.connection
        self.connection.send_packet(kind, UInt32(self._peer_number), payload)

    def _close_channel(self) -> None:
        """Tell the peer that we are done with this channel."""
        if not self._sent_close:
            self._sent_close = True
            self._say(MSG_CHANNEL_CLOSE)

    def _detach(self) -> None:
        """The channel is over. The socket may still have something to take."""
        if self.connection:
            if self._state == OPEN and self._fd >= 0:
                self.connection.tally.closed += 1
                self.owner.tally.closed += 1
            self.connection.detach(self)
            self.connection = self._outbox = None
        if self._state != GONE:
            self._state = CLOSED
        self._check_gone()

    def _end_socket(self) -> None:
        """The stream towards the local reader has come to its end: show it, once the kernel has the last byte."""
        if self.sock is None or self._pending is not None:
            return
        try:
            if self._sent_eof or self._got_close:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_OFF)
                self._close_socket()
            else:
                self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()

    def _reset_socket(self) -> None:
        """Close with RST: SO_LINGER says so from birth to a proper end. Nothing can be held for it any more."""
        self._pending = None
        if self._window:
            self._window.close()
        self._close_socket()

    def _close_socket(self) -> None:
        if self.sock is None:
            return
        if self._fd >= 0:
            self.owner.plane.reactor.forget(self._fd, self)
        elif self._opening:
            self._opening.give_up()
        self.sock.close()
        self.sock = None
        self._check_gone()

    def _check_gone(self) -> None:
        if self.sock is None and self._state == CLOSED:
            self._state = GONE
            if self._window:
                self._window.close()
            self.owner.channel_gone(self)

    def _is_at_end(self) -> bool:
        """Whether nothing but the end is left to read."""
        assert self.sock
        try:
            return not self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            self._drained()
        except OSError:
            self.abort()
        return False

    def _is_broken(self) -> bool:
        """Whether the kernel says that the connection was reset."""
        with contextlib.suppress(OSError):
            return self.sock is None or self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        return True


def _refuse_extended(channel: Channel, packet: SSHPacket) -> None:
    raise asyncssh.ProtocolError("Invalid extended data type")


_HANDLERS: dict[int, Callable[[Channel, SSHPacket], None]] = {
    MSG_CHANNEL_DATA: Channel._got_data,
    MSG_CHANNEL_WINDOW_ADJUST: Channel._got_adjust,
    MSG_CHANNEL_EOF: Channel._got_end,
    MSG_CHANNEL_CLOSE: Channel._got_closed,
    MSG_CHANNEL_REQUEST: Channel._got_request,
    MSG_CHANNEL_EXTENDED_DATA: _refuse_extended,
}
