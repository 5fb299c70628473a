"""A client with a good certificate that breaks the rules: it is cut off, or put up with, and nobody else notices."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_EXTENDED_DATA,
    MSG_CHANNEL_FAILURE,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_KEXINIT,
    MSG_NEWKEYS,
    MSG_REQUEST_SUCCESS,
    MSG_SERVICE_REQUEST,
    MSG_UNIMPLEMENTED,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.packet import Boolean, Byte, String, UInt32

from tests.faults.beds import FULL
from tests.faults.victims import Victim, steadily
from tests.support.rawssh import PACKET, Ended, Opened, RawSSH, Refused, kexinit
from tests.support.services import noise

MOST = 2**32 - 1
NOWHERE = UInt32(4711)
"""The number of a channel that does not exist."""
LARGEST = 256 * 1024 + 1024
"""Most that the length of a packet may be."""
SMALL_WINDOW = 1024
AT_ONCE = 3
"""Seconds until a violation must have had its consequence."""
KNOWN_TYPES = [1, 2, 3, 4, 5, 6, 7, 20, 21, *range(30, 35), *range(50, 62), *range(80, 83), *range(90, 101)]
MUTANTS = 50_000 if FULL else 1_000
"""Packets of nonsense."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What a peer sends that has a channel open to an echo service."""

    name: str
    packets: Callable[[RawSSH, Opened], bytes]

    def __str__(self) -> str:
        return self.name


def framed(peer: RawSSH, padding: int, body: bytes) -> bytes:
    """A packet with any padding length, properly encrypted; the body has the type, the payload and the padding."""
    assert peer.sealer
    packet = Byte(padding) + body
    return b"".join(peer.sealer.encrypt_packet(0, UInt32(len(packet)), packet))


def altered(packet: bytes) -> bytes:
    """The same packet with its last bit changed."""
    return packet[:-1] + bytes((packet[-1] ^ 1,))


def claiming(length: int) -> bytes:
    """The beginning of a packet that says it is this long, and more bytes than any packet may have."""
    return UInt32(length) + bytes(2 * LARGEST)


VIOLATIONS = [
    Attack("window overflow", lambda peer, channel: peer.adjust(channel, MOST) + peer.adjust(channel, MOST)),
    Attack("window overflow at once", lambda peer, channel: peer.adjust(channel, MOST)),
    Attack(
        "data beyond the window",
        lambda peer, channel: b"".join(peer.data(channel, bytes(PACKET)) for _ in range(8 * channel.window // PACKET)),
    ),
    Attack("data after the end", lambda peer, channel: peer.eof(channel) + peer.data(channel, b"x")),
    Attack("two ends", lambda peer, channel: peer.eof(channel) + peer.eof(channel)),
    Attack("end after close", lambda peer, channel: peer.closing(channel) + peer.eof(channel)),
    Attack("data after close", lambda peer, channel: peer.closing(channel) + peer.data(channel, b"x")),
    Attack("two closes", lambda peer, channel: peer.closing(channel) + peer.closing(channel)),
    Attack("data for no channel", lambda peer, _: peer.seal(MSG_CHANNEL_DATA, NOWHERE, String(b"x"))),
    Attack("adjustment for no channel", lambda peer, _: peer.seal(MSG_CHANNEL_WINDOW_ADJUST, NOWHERE, UInt32(1))),
    Attack("end of no channel", lambda peer, _: peer.seal(MSG_CHANNEL_EOF, NOWHERE)),
    Attack("close of no channel", lambda peer, _: peer.seal(MSG_CHANNEL_CLOSE, NOWHERE)),
    Attack("request for no channel", lambda peer, _: peer.seal(MSG_CHANNEL_REQUEST, NOWHERE, String("x"), Boolean(True))),
    Attack("extended data", lambda peer, channel: peer.to(MSG_CHANNEL_EXTENDED_DATA, channel, UInt32(1), String(b"x"))),
    Attack(
        "confirmation that nobody asked for",
        lambda peer, _: peer.seal(MSG_CHANNEL_OPEN_CONFIRMATION, NOWHERE, UInt32(0), UInt32(MOST), UInt32(PACKET)),
    ),
    Attack(
        "confirmation of an open channel",
        lambda peer, channel: peer.to(MSG_CHANNEL_OPEN_CONFIRMATION, channel, UInt32(0), UInt32(MOST), UInt32(PACKET)),
    ),
    Attack(
        "refusal that nobody asked for",
        lambda peer, _: peer.seal(MSG_CHANNEL_OPEN_FAILURE, NOWHERE, UInt32(1), String("no"), String("")),
    ),
    Attack(
        "refusal of an open channel",
        lambda peer, channel: peer.to(MSG_CHANNEL_OPEN_FAILURE, channel, UInt32(1), String("no"), String("")),
    ),
    Attack("data shorter than it says", lambda peer, channel: peer.to(MSG_CHANNEL_DATA, channel, UInt32(100), b"x")),
    Attack("data longer than it says", lambda peer, channel: peer.to(MSG_CHANNEL_DATA, channel, UInt32(1), b"xxx")),
    Attack("data of 4 GiB", lambda peer, channel: peer.to(MSG_CHANNEL_DATA, channel, UInt32(MOST), b"x")),
    Attack("adjustment with more behind", lambda peer, channel: peer.to(MSG_CHANNEL_WINDOW_ADJUST, channel, bytes(8))),
    Attack("end with more behind", lambda peer, channel: peer.to(MSG_CHANNEL_EOF, channel, bytes(4))),
    Attack("close with more behind", lambda peer, channel: peer.to(MSG_CHANNEL_CLOSE, channel, bytes(4))),
    Attack("data without anything", lambda peer, _: peer.seal(MSG_CHANNEL_DATA)),
    Attack("open without anything", lambda peer, _: peer.seal(MSG_CHANNEL_OPEN)),
    Attack("packet of no length", lambda _, __: claiming(0)),
    Attack("packet of less than a block", lambda _, __: claiming(8)),
    Attack("packet of no whole number of blocks", lambda _, __: claiming(33)),
    Attack("packet above the limit", lambda _, __: claiming(LARGEST + 16)),
    Attack("packet of 4 GiB", lambda _, __: claiming(MOST)),
    Attack("padding longer than the packet", lambda peer, _: framed(peer, 255, bytes(31))),
    Attack("nothing but padding", lambda peer, _: framed(peer, 31, bytes(31))),
    Attack("packet without a type", lambda peer, _: framed(peer, 15, bytes(15))),
    Attack("altered packet", lambda peer, channel: altered(peer.data(channel, b"x"))),
    Attack("repeated packet", lambda peer, channel: 2 * peer.data(channel, b"x")),
    Attack("two key exchanges at once", lambda peer, _: peer.seal(MSG_KEXINIT, kexinit()) + peer.seal(MSG_KEXINIT, kexinit())),
    Attack("key exchange without content", lambda peer, _: peer.seal(MSG_KEXINIT)),
    Attack("new keys without an exchange", lambda peer, _: peer.seal(MSG_NEWKEYS)),
    Attack("answer that nobody asked for", lambda peer, _: peer.seal(MSG_REQUEST_SUCCESS) + peer.seal(MSG_REQUEST_SUCCESS)),
    Attack("request with a name that is no text", lambda peer, _: peer.seal(MSG_GLOBAL_REQUEST, String(b"\xff"), b"\1")),
    Attack(
        "channel type that is no text", lambda peer, _: peer.seal(MSG_CHANNEL_OPEN, String(b"\xff"), bytes(4), NOWHERE, NOWHERE)
    ),
    Attack(
        "end of a listener that is none",
        lambda peer, _: peer.seal(MSG_GLOBAL_REQUEST, String("cancel-tcpip-forward"), b"\1", String("x"), UInt32(1)),
    ),
]
"""Each ends the connection of who does it."""

ODDITIES = [
    Attack("unknown packet type", lambda peer, _: peer.seal(200, bytes(100))),
    Attack(
        "answers to requests for channels",
        lambda peer, channel: peer.to(MSG_CHANNEL_SUCCESS, channel) + peer.to(MSG_CHANNEL_FAILURE, channel),
    ),
    Attack("ignored packet of some size", lambda peer, _: peer.seal(MSG_IGNORE, String(bytes(PACKET)))),
    Attack("empty data", lambda peer, channel: peer.data(channel, b"")),
    Attack("adjustment by nothing", lambda peer, channel: peer.adjust(channel, 0)),
    Attack("not implemented", lambda peer, _: peer.seal(MSG_UNIMPLEMENTED, UInt32(0))),
    Attack(
        "listen for us",
        lambda peer, _: peer.seal(MSG_GLOBAL_REQUEST, String("tcpip-forward"), b"\1", String("0.0.0.0"), UInt32(0)),
    ),
    Attack("unknown request", lambda peer, _: peer.seal(MSG_GLOBAL_REQUEST, String("x" * 1000), b"\1", bytes(1000))),
    Attack("end twice over", lambda peer, channel: peer.eof(channel) + peer.closing(channel)),
    Attack("reset", lambda peer, channel: peer.data(channel, b"x") + peer.closing(channel)),
]
"""None of these ends a connection."""


PLACE = String("127.0.0.1") + UInt32(22)
OPENINGS = {
    "session": b"",
    "x11": PLACE,
    "forwarded-tcpip": PLACE + PLACE,
    "direct-streamlocal@openssh.com": String("/tmp/x") + PLACE,
    "forwarded-streamlocal@openssh.com": String("/tmp/x") + String(""),
    "auth-agent@openssh.com": b"",
    "tun@openssh.com": UInt32(1) + UInt32(MOST),
    "global-request": b"",
    "": b"",
    "x" * 30_000: b"",
}
"""Types of channels that an endpoint does not open, and what is said of them."""


@steadily
def test_violations_end_their_own_connection(victim: Victim) -> None:
    """Who breaks the protocol is cut off; nobody else is, and nothing is left of it."""
    endured = []
    with victim.unharmed() as watch:
        for attack in VIOLATIONS:
            with victim.bed.peer() as peer:
                peer.flood(attack.packets(peer, peer.open(victim.echo, window=SMALL_WINDOW)))
                if not peer.has_ended(AT_ONCE):
                    endured.append(attack.name)
    print(f"\n{len(VIOLATIONS)} violations: {watch}")
    assert not endured


@steadily
def test_oddities_are_put_up_with(victim: Victim) -> None:
    """What is strange but allowed ends no connection."""
    cut = []
    with victim.unharmed() as watch:
        for attack in ODDITIES:
            with victim.bed.peer() as peer:
                peer.flood(attack.packets(peer, peer.open(victim.echo)))
                try:
                    peer.ask_something()
                except Ended:
                    cut.append(attack.name)
    print(f"\n{len(ODDITIES)} oddities: {watch}")
    assert not cut


@steadily
def test_only_ports_are_opened(victim: Victim) -> None:
    """Channels of other types, and with packets too small to be of use, are refused."""
    with victim.unharmed(), victim.bed.peer() as peer:
        for kind, about in OPENINGS.items():
            peer.send(MSG_CHANNEL_OPEN, String(kind), UInt32(0), UInt32(PACKET), UInt32(PACKET), about)
            assert isinstance(peer.answer(), Refused), kind
        for packet in (1, 255):
            peer.sock.sendall(peer.opening(victim.echo, packet=packet))
            assert isinstance(peer.answer(), Refused)
        for host, port in (("127.0.0.2", 22), ("169.254.169.254", 80), ("localhost", 0), ("::1%lo", 22), ("x" * 30_000, 22)):
            peer.sock.sendall(peer.opening(port, host=host))
            assert isinstance(peer.answer(), Refused), host


@steadily
def test_largest_packet_size_is_no_promise(victim: Victim) -> None:
    """A peer that takes packets of 4 GiB, with a window of as much, gets its echo in packets of a sane size."""
    data = noise(1_000_000)
    with victim.unharmed(), victim.bed.peer() as peer:
        channel = peer.open(victim.echo, window=MOST, packet=MOST)
        peer.sock.sendall(b"".join(peer.data(channel, data[at : at + PACKET]) for at in range(0, len(data), PACKET)))
        got = bytearray()
        while len(got) < len(data):
            _, packet = peer.expect(MSG_CHANNEL_DATA)
            packet.get_uint32()
            piece = packet.get_string()
            assert len(piece) < LARGEST
            got += piece
        assert got == data


@steadily
def test_nonsense_in_packets(victim: Victim) -> None:
    """Well encrypted packets of random types and contents do no harm to others."""
    rng = random.Random(MUTANTS)
    cut = 0
    with victim.unharmed() as watch:
        left = MUTANTS
        while left:
            with victim.bed.peer() as peer:
                channel = peer.open(victim.echo)
                while left:
                    left -= 1
                    peer.flood(mutant(peer, channel, rng))
                    if rng.random() < 0.2 and peer.has_ended(0.001):
                        cut += 1
                        break
    print(f"\n{MUTANTS} packets of nonsense, {cut} connections cut: {watch}")


def mutant(peer: RawSSH, channel: Opened, rng: random.Random) -> bytes:
    """A random packet, often of a type and for a channel that exist."""
    kind = rng.choice(KNOWN_TYPES) if rng.random() < 0.8 else rng.randrange(256)
    numbers = [channel.theirs, channel.ours, 0, 1, 255, 32768, MOST]
    payload = b"".join(UInt32(rng.choice(numbers)) for _ in range(rng.randrange(4)))
    payload += rng.choice([b"", String("direct-tcpip"), String(rng.randbytes(20)), rng.randbytes(rng.randrange(200))])
    return peer.seal(kind, payload)


NONSENSE = [
    b"",
    b"\n" * 10_000,
    b"GET / HTTP/1.1\r\n\r\n",
    b"SSH-1.5-old\r\n",
    b"SSH-2.0-" + b"x" * 100_000,
    b"x" * 1_000_000,
    b"SSH-2.0-x\r\n" + bytes(1_000_000),
    b"SSH-2.0-x\r\n" + b"\xff" * 1_000_000,
    b"SSH-2.0-\xff\xff\r\n" + b"\0\0\0\x0c" + bytes(12),
    b"SSH-2.0-x\r\n" + UInt32(12) + Byte(10) + Byte(MSG_SERVICE_REQUEST) + bytes(10),
    b"SSH-2.0-x\r\n" + (UInt32(28) + Byte(10) + Byte(MSG_USERAUTH_REQUEST) + bytes(26)) * 10_000,
    b"SSH-2.0-x\r\n" + (UInt32(12) + Byte(4) + Byte(MSG_IGNORE) + bytes(10)) * 10_000,
]


@steadily
def test_nonsense_before_login(victim: Victim) -> None:
    """Who does not even speak SSH is hung up on when it says so, and costs nobody anything."""
    with victim.unharmed() as watch:
        for nonsense in NONSENSE:
            with socket.create_connection(victim.bed.endpoint, timeout=AT_ONCE) as sock:
                RawSSH(sock).flood(nonsense)
    print(f"\n{len(NONSENSE)} strangers: {watch}")
