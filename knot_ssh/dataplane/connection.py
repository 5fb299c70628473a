"""What an SSH connection needs to carry splices, as an addition to asyncssh's classes."""

from __future__ import annotations

from typing import Any

import asyncssh
from asyncssh.connection import SSHConnection
from asyncssh.constants import MSG_CHANNEL_CLOSE
from asyncssh.packet import SSHPacket

from knot_ssh.dataplane.splice import Splices

WINDOW = 2 * 1024 * 1024
"""Bytes that a peer may send on one channel before we have passed them on."""
PACKET = 32 * 1024
"""Bytes of data in one packet; every implementation must take this much (RFC 4253 section 6.1)."""


class SplicedConnection(SSHConnection):
    """A connection that slows down the sockets that fill it, and whose channels never forget an end of stream.

    asyncssh ignores a full transport, so that data for it would pile up without limit.
    """

    lost = False
    """Whether the connection is gone; set before its channels hear of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.splices = Splices()

    def pause_writing(self) -> None:
        self.splices.brake("connection")

    def resume_writing(self) -> None:
        self.splices.release("connection")

    def create_tcp_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = WINDOW, max_pktsize: int = PACKET
    ) -> SplicedChannel:
        self._update_recv_pktlen(max_pktsize)
        return SplicedChannel(self, self._loop, encoding, errors, window, max_pktsize)

    def _cleanup(self, exc: Exception | None) -> None:
        self.lost = True
        super()._cleanup(exc)


class SplicedChannel(asyncssh.SSHTCPChannel[bytes]):
    """A channel that reports CHANNEL_EOF also when CHANNEL_CLOSE overtakes it while reading is paused.

    asyncssh keeps one state for both and forgets the first; a whole stream would then look broken.
    """

    _eof_owed = False

    def _process_close(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        self._eof_owed = self._recv_state == "eof_pending"
        super()._process_close(pkttype, pktid, packet)

    def _flush_recv_buf(self, exc: Exception | None = None) -> None:
        super()._flush_recv_buf(exc)
        if self._eof_owed and not self._recv_buf and self._session is not None:
            self._eof_owed = False
            self._session.eof_received()

    _packet_handlers = asyncssh.SSHTCPChannel._packet_handlers | {MSG_CHANNEL_CLOSE: _process_close}
