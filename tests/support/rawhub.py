"""Peers of the hub made by hand: callers who want to be relayed, and endpoints that ask to be relayed to."""

from __future__ import annotations

from typing import Self

import asyncssh
from asyncssh.constants import (
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_GLOBAL_REQUEST,
    MSG_REQUEST_FAILURE,
    MSG_REQUEST_SUCCESS,
)
from asyncssh.packet import Boolean, String, UInt32
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import load_key
from tests.support.rawssh import ENOUGH, PACKET, Opened, RawSSH, Refused
from tests.support.system import AgentOf, System

RELAY_PORT = 22


class RawHub(RawSSH):
    """A connection to the hub."""

    @classmethod
    def enter(
        cls, system: System, key: asyncssh.SSHKey, login: str = "knot", certificate: SSHOpenSSHCertificate | None = None
    ) -> Self:
        """Log in under this name; raises Denied."""
        host, _, port = system.hub.rpartition(":")
        peer = cls.dial((host, int(port)))
        try:
            peer.prove(key, login, certificate)
        except BaseException:
            peer.close()
            raise
        return peer

    @classmethod
    def caller(cls, agent: AgentOf) -> Self:
        """With an agent's certificate: who may be relayed to its own owner and zone."""
        key, certificate = agent.identity()
        return cls.enter(agent.system, load_key(key), "knot", read_certificate(certificate.read_text()))

    @classmethod
    def member(cls, agent: AgentOf) -> Self:
        """With an agent's enrolled key: who may ask to be relayed to."""
        key, _ = agent.identity()
        return cls.enter(agent.system, load_key(key), agent.id)

    # As a caller

    def relayed(self, host: str, port: int = RELAY_PORT, *, window: int = ENOUGH) -> Opened | Refused:
        """What comes of a request for a channel."""
        self.sock.sendall(self.opening(port, host=host, window=window))
        return self.answer()

    # As an endpoint

    def registering(self, host: str, port: int = RELAY_PORT, *, kind: str = "tcpip-forward") -> bytes:
        """A sealed request to be relayed to, or to be no more."""
        return self.seal(MSG_GLOBAL_REQUEST, String(kind), Boolean(True), String(host), UInt32(port))

    def register(self, host: str, port: int = RELAY_PORT, *, kind: str = "tcpip-forward") -> bool:
        """Whether the hub does."""
        self.sock.sendall(self.registering(host, port, kind=kind))
        return self.is_granted()

    def is_granted(self) -> bool:
        """The answer to the next request."""
        return self.expect(MSG_REQUEST_SUCCESS, MSG_REQUEST_FAILURE)[0] == MSG_REQUEST_SUCCESS

    def asked(self) -> Opened:
        """The next channel that the hub wants to open; its number is `theirs`, as of any channel of theirs."""
        _, packet = self.expect(MSG_CHANNEL_OPEN)
        assert packet.get_string() == b"forwarded-tcpip"
        return Opened(self.number(), packet.get_uint32(), packet.get_uint32(), packet.get_uint32())

    def grant(self, channel: Opened, window: int = ENOUGH) -> None:
        """Open it."""
        self.send(MSG_CHANNEL_OPEN_CONFIRMATION, *map(UInt32, (channel.theirs, channel.ours, window, PACKET)))

    def refuse(self, channel: Opened) -> None:
        self.send(MSG_CHANNEL_OPEN_FAILURE, UInt32(channel.theirs), UInt32(1), String("no"), String(""))

    def read(self, channel: Opened, size: int) -> bytes:
        """So many bytes from this channel, of a peer that has no other."""
        got = bytearray()
        while len(got) < size:
            _, packet = self.expect(MSG_CHANNEL_DATA)
            assert packet.get_uint32() == channel.ours
            got += packet.get_string()
        return bytes(got)
