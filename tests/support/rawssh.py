"""An SSH peer made by hand, which can say whatever it likes: for attacks.

It speaks the least that our own ends accept: curve25519, AES-128-GCM, a certificate. What it says after the login is the
test's. It blocks, so that a flood is one `sendall` of packets that were sealed before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import NamedTuple, Self

import asyncssh
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_DISCONNECT,
    MSG_GLOBAL_REQUEST,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_REQUEST_FAILURE,
    MSG_SERVICE_ACCEPT,
    MSG_SERVICE_REQUEST,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_REQUEST,
    MSG_USERAUTH_SUCCESS,
)
from asyncssh.packet import Boolean, Byte, MPInt, NameList, SSHPacket, String, UInt32
from asyncssh.public_key import SSHOpenSSHCertificate
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import load_key
from knot_ssh.dataplane.framing import LENGTH, TAG, Opener, Sealer
from tests.support.stuck import small_connection

MSG_KEX_ECDH_INIT = 30
MSG_KEX_ECDH_REPLY = 31
MSG_USERAUTH_PK_OK = 60

ESTABLISHED = 1
"""State of a TCP connection, the first byte of TCP_INFO."""

VERSION = b"SSH-2.0-raw"
CERTIFICATE = b"ssh-ed25519-cert-v01@openssh.com"
LOGIN = b"ssh-ed25519"
ALGORITHMS = [[b"curve25519-sha256"], [CERTIFICATE], *[[b"aes128-gcm@openssh.com"]] * 2]
ALGORITHMS += [*[[b"hmac-sha2-256-etm@openssh.com"]] * 2, *[[b"none"]] * 2, [], []]
BLOCK = 8
"""Bytes that an unencrypted packet is a multiple of."""
TIMEOUT = 20
"""Seconds for anything the peer is asked for."""
STUCK_AFTER = 0.5
"""Seconds without a window adjustment after which a service counts as stuck."""
ENOUGH = 2**31 - 1
"""A window that nobody fills."""
PACKET = 32768
READ = 256 * 1024

Packet = tuple[int, SSHPacket]


class Ended(Exception):
    """The peer has ended the connection."""


class Denied(Exception):
    """The peer does not let us in."""


class Opened(NamedTuple):
    """A channel: our number, the peer's, and the peer's terms."""

    ours: int
    theirs: int
    window: int
    packet: int


class Refused(NamedTuple):
    """A channel that the peer would not open."""

    ours: int
    code: int
    reason: str


class RawSSH:
    """One connection. `sock` blocks; `sealer` and `opener` are there once keys were exchanged."""

    def __init__(self, sock: socket.socket, *, server_key: asyncssh.SSHKey | None = None, shown: bytes = b"") -> None:
        self.sock = sock
        self.sealer: Sealer | None = None
        self.opener: Opener | None = None
        self.session = b""
        self.next_channel = 0
        self.set_aside: list[Packet] = []
        self._server_key = server_key
        self._shown = shown
        self._read = bytearray()
        self._versions = (b"", b"")
        self._kexinit = b""
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def dial(cls, address: tuple[str, int]) -> Self:
        """Connect, and exchange keys."""
        peer = cls(small_connection(address))
        try:
            peer.greet()
            peer.exchange_keys()
        except BaseException:
            peer.close()
            raise
        return peer

    @classmethod
    def login(cls, address: tuple[str, int], key_file: Path) -> Self:
        """The same, and log in with the certificate beside this key."""
        peer = cls.dial(address)
        try:
            peer.log_in(key_file)
        except BaseException:
            peer.close()
            raise
        return peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, also on a thread of ours that is blocked in the socket."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    # Beginning

    def greet(self) -> None:
        """Exchange versions."""
        self.sock.sendall(VERSION + b"\r\n")
        while b"\n" not in self._read:
            self._receive()
        line, _, rest = bytes(self._read).partition(b"\n")
        self._read[:] = rest
        theirs = line.rstrip(b"\r")
        self._versions = (theirs, VERSION) if self._server_key else (VERSION, theirs)

    def begin_keys(self) -> None:
        """Say KEXINIT; any other packet may follow as far as we care."""
        self._kexinit = Byte(MSG_KEXINIT) + kexinit()
        self.send(MSG_KEXINIT, self._kexinit[1:])

    def exchange_keys(self) -> None:
        """A whole key exchange, the first or another; other packets that come meanwhile are set aside."""
        self._exchanging = True
        if not self._kexinit:
            self.begin_keys()
        _, packet = self.expect(MSG_KEXINIT)
        theirs = Byte(MSG_KEXINIT) + packet.get_remaining_payload()
        if self._server_key:
            self._answer_keys(theirs)
        else:
            self._ask_keys(theirs)
        self._kexinit = b""
        self._exchanging = False

    def _ask_keys(self, theirs: bytes) -> None:
        own = X25519PrivateKey.generate()
        mine = public_bytes(own)
        self.send(MSG_KEX_ECDH_INIT, String(mine))
        _, packet = self.expect(MSG_KEX_ECDH_REPLY)
        host_key, other, _signature = packet.get_string(), packet.get_string(), packet.get_string()
        self._switch(own, mine, other, self._kexinit, theirs, host_key, b"")

    def _answer_keys(self, theirs: bytes) -> None:
        own = X25519PrivateKey.generate()
        mine = public_bytes(own)
        _, packet = self.expect(MSG_KEX_ECDH_INIT)
        self._switch(own, mine, packet.get_string(), theirs, self._kexinit, self._shown, mine)

    def _switch(
        self, own: X25519PrivateKey, mine: bytes, other: bytes, client: bytes, server: bytes, host: bytes, answer: bytes
    ) -> None:
        """Derive the keys (RFC 4253 section 7.2, RFC 8731), say NEWKEYS and hear it."""
        shared = own.exchange(X25519PublicKey.from_public_bytes(other))
        secret = MPInt(int.from_bytes(shared, "big"))
        ends = (other, mine) if self._server_key else (mine, other)
        digest = hashlib.sha256()
        for part in (*self._versions, client, server, host, *ends):
            digest.update(String(part))
        digest.update(secret)
        exchange = digest.digest()
        self.session = self.session or exchange
        if self._server_key:
            signature = self._server_key.sign(exchange, LOGIN)
            self.send(MSG_KEX_ECDH_REPLY, String(host), String(answer), String(signature))

        def derive(letter: bytes) -> bytes:
            return hashlib.sha256(secret + exchange + letter + self.session).digest()

        to_server = (derive(b"C")[:16], derive(b"A")[:12])
        to_client = (derive(b"D")[:16], derive(b"B")[:12])
        self.send(MSG_NEWKEYS)
        self.sealer = Sealer(*(to_client if self._server_key else to_server))
        self.expect(MSG_NEWKEYS)
        self.opener = Opener(*(to_server if self._server_key else to_client))

    def log_in(self, key_file: Path) -> None:
        """Log in with the certificate beside this key."""
        certificate = read_certificate(key_file.with_name(key_file.name + "-cert.pub").read_text())
        self.prove(load_key(key_file), "knot", certificate)

    def prove(self, key: asyncssh.SSHKey, login: str, certificate: SSHOpenSSHCertificate | None = None) -> None:
        """Log in under this name with a certificate, or with the key alone."""
        self.send(MSG_SERVICE_REQUEST, String("ssh-userauth"))
        self.expect(MSG_SERVICE_ACCEPT)
        asked = String(login) + String("ssh-connection") + String("publickey") + Boolean(True)
        asked += String(CERTIFICATE if certificate else LOGIN)
        asked += String(certificate.public_data if certificate else key.public_data)
        signed = String(self.session) + Byte(MSG_USERAUTH_REQUEST) + asked
        self.send(MSG_USERAUTH_REQUEST, asked, String(key.sign(signed, LOGIN)))
        kind, _ = self.expect(MSG_USERAUTH_SUCCESS, MSG_USERAUTH_FAILURE)
        if kind == MSG_USERAUTH_FAILURE:
            raise Denied

    def let_in(self) -> None:
        """As a server: let in whoever it is."""
        self.expect(MSG_SERVICE_REQUEST)
        self.send(MSG_SERVICE_ACCEPT, String("ssh-userauth"))
        while True:
            _, packet = self.expect(MSG_USERAUTH_REQUEST)
            for _ in range(2):
                packet.get_string()
            if packet.get_string() == b"publickey":
                if packet.get_boolean():
                    break
                self.send(MSG_USERAUTH_PK_OK, String(packet.get_string()), String(packet.get_string()))
            else:
                self.send(MSG_USERAUTH_FAILURE, NameList([b"publickey"]), Boolean(False))
        self.send(MSG_USERAUTH_SUCCESS)

    # Packets

    def seal(self, kind: int, *parts: bytes) -> bytes:
        """A packet as it goes over the wire; it must be the next one sent."""
        payload = b"".join(parts)
        if self.sealer:
            return self.sealer.seal_other(kind, payload)
        size = LENGTH + 2 + len(payload)
        padding = BLOCK - size % BLOCK + BLOCK
        return UInt32(size + padding - LENGTH) + bytes((padding, kind)) + payload + bytes(padding)

    def send(self, kind: int, *parts: bytes) -> None:
        self.sock.sendall(self.seal(kind, *parts))

    def flood(self, packets: bytes, *, piece: int = READ) -> int:
        """Send what was sealed before as fast as the peer takes it; gives how much that was when it hangs up."""
        view, sent = memoryview(packets), 0
        with contextlib.suppress(OSError):
            while sent < len(view):
                sent += self.sock.send(view[sent : sent + piece])
        return sent

    def receive(self) -> Packet:
        """The next packet; raises Ended, and TimeoutError when none comes."""
        if self.opener:
            self._need(LENGTH)
            end = LENGTH + int.from_bytes(self._read[:LENGTH], "big") + TAG
            self._need(end)
            packet = bytearray(self._read[:end])
            del self._read[:end]
            assert self.opener.open(memoryview(packet), 0, end)
            payload = bytes(packet[LENGTH + 1 : end - TAG - packet[LENGTH]])
        else:
            self._need(LENGTH)
            end = LENGTH + int.from_bytes(self._read[:LENGTH], "big")
            self._need(end)
            payload = bytes(self._read[LENGTH + 1 : end - self._read[LENGTH]])
            del self._read[:end]
        return payload[0], SSHPacket(payload[1:])

    def expect(self, *kinds: int) -> Packet:
        """The next packet of these kinds; others are set aside. Key exchanges and keepalives are answered on the way."""
        looked_at = 0
        while True:
            for index in range(looked_at, len(self.set_aside)):
                if self.set_aside[index][0] in kinds:
                    return self.set_aside.pop(index)
            looked_at = len(self.set_aside)
            packet = self.receive()
            if packet[0] == MSG_DISCONNECT:
                packet[1].get_uint32()
                raise Ended(packet[1].get_string().decode())
            if packet[0] == MSG_GLOBAL_REQUEST:
                self.send(MSG_REQUEST_FAILURE)
                continue
            self.set_aside.append(packet)
            if packet[0] == MSG_KEXINIT and not self._exchanging:
                self.exchange_keys()
                looked_at = 0

    def attend(self) -> None:
        """Answer keepalives that have come; anything else is set aside."""
        self.sock.settimeout(0.01)
        with contextlib.suppress(TimeoutError):
            self.expect()
        self.sock.settimeout(TIMEOUT)

    def has_ended(self, seconds: float = TIMEOUT) -> bool:
        """Whether the peer hangs up within so many seconds; what it still says is thrown away."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(READ):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def is_silent(self, seconds: float) -> bool:
        """Whether the peer says nothing for so long, where nothing is left of what it has said."""
        self.sock.settimeout(seconds)
        try:
            return not self._read and not self.sock.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(TIMEOUT)

    def is_cut_off(self) -> bool:
        """Whether the connection is over, as far as the kernel can tell without reading."""
        with contextlib.suppress(OSError):
            return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != ESTABLISHED
        return True

    def flood_and_read(self, packets: bytes) -> int:
        """Send all this while whatever comes is read and thrown away unseen, and wait until the peer has dealt with it.

        Ends this connection: what shows that the peer has come to the end is that it hangs up, too. Gives how much was sent.
        """
        reader = threading.Thread(target=self.has_ended)
        reader.start()
        sent = self.flood(packets)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        reader.join()
        return sent

    def _need(self, size: int) -> None:
        while len(self._read) < size:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self.sock.recv(READ)
        except ConnectionError:
            raise Ended from None
        if not data:
            raise Ended
        self._read += data

    # Channels

    def opening(self, port: int, *, window: int = ENOUGH, packet: int = PACKET, host: str = "127.0.0.1") -> bytes:
        """A sealed request for a channel to this port."""
        number = self.number()
        where = String(host) + UInt32(port) + String("127.0.0.1") + UInt32(1)
        return self.seal(MSG_CHANNEL_OPEN, String("direct-tcpip"), UInt32(number), UInt32(window), UInt32(packet), where)

    def number(self) -> int:
        """A number for a new channel."""
        self.next_channel += 1
        return self.next_channel - 1

    def answer(self) -> Opened | Refused:
        """The peer's answer to a request for a channel."""
        kind, packet = self.expect(MSG_CHANNEL_OPEN_CONFIRMATION, MSG_CHANNEL_OPEN_FAILURE)
        ours = packet.get_uint32()
        if kind == MSG_CHANNEL_OPEN_FAILURE:
            return Refused(ours, packet.get_uint32(), packet.get_string().decode())
        return Opened(ours, packet.get_uint32(), packet.get_uint32(), packet.get_uint32())

    def open(self, port: int, *, window: int = ENOUGH, packet: int = PACKET) -> Opened:
        """A channel to this port; the peer must grant it."""
        self.sock.sendall(self.opening(port, window=window, packet=packet))
        answer = self.answer()
        assert isinstance(answer, Opened), answer
        return answer

    def to(self, kind: int, channel: Opened, *parts: bytes) -> bytes:
        """A sealed packet for a channel."""
        return self.seal(kind, UInt32(channel.theirs), *parts)

    def data(self, channel: Opened, data: bytes) -> bytes:
        """Sealed data for a channel."""
        return self.to(MSG_CHANNEL_DATA, channel, String(data))

    def adjust(self, channel: Opened, count: int) -> bytes:
        """A sealed window adjustment."""
        return self.to(MSG_CHANNEL_WINDOW_ADJUST, channel, UInt32(count))

    def fill(self, channel: Opened, spare: int) -> int:
        """Send data until the service takes no more and only so much of the window is left; gives how much it took."""
        window, sent = channel.window, 0
        self.sock.settimeout(STUCK_AFTER)
        with contextlib.suppress(TimeoutError):
            while True:
                size = min(window - spare, PACKET)
                if size > 0:
                    self.sock.sendall(self.data(channel, bytes(size)))
                    window, sent = window - size, sent + size
                else:
                    _, packet = self.expect(MSG_CHANNEL_WINDOW_ADJUST)
                    packet.get_uint32()
                    window += packet.get_uint32()
        self.sock.settimeout(TIMEOUT)
        return sent

    def ask_something(self) -> None:
        """Have a question answered, and so everything sent before it dealt with: a channel to where none may go."""
        self.sock.sendall(self.opening(1, host="192.0.2.1"))
        assert isinstance(self.answer(), Refused)

    def eof(self, channel: Opened) -> bytes:
        return self.to(MSG_CHANNEL_EOF, channel)

    def closing(self, channel: Opened) -> bytes:
        return self.to(MSG_CHANNEL_CLOSE, channel)


def kexinit() -> bytes:
    """What follows the type of a KEXINIT of ours."""
    return b"".join((os.urandom(16), *map(NameList, ALGORITHMS), Boolean(False), UInt32(0)))


def public_bytes(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
