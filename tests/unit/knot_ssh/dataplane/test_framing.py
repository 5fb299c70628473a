"""Packets in place are the packets of asyncssh's own AES-GCM, byte for byte where it matters, and none gets by altered."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA
from asyncssh.encryption import Encryption, get_encryption
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.dataplane.framing import DATA, OVERHEAD, TAG, Opener, Sealer, can_work_in_place
from knot_ssh.dataplane.limits import KIB, PACKET
from tests.support.services import noise

KEYS = {b"aes128-gcm@openssh.com": noise(16, 1), b"aes256-gcm@openssh.com": noise(32, 2)}
FIXED = b"\xa1\xb2\xc3\xd4"
"""The part of a nonce that stays."""
BEFORE_WRAP = b"\xff" * 7 + b"\xfe"
"""A counter that has two packets to go until it starts at 0 again."""
SIZES = [*range(301), 1000, 4 * KIB, 32 * KIB, 64 * KIB - 1, 64 * KIB, PACKET - 1, PACKET]
MARGIN = 64
"""Bytes around a packet in its buffer."""
CHANNEL = 0xDEADBEEF

Side = tuple[bytes, bytes]
"""A cipher, and the first counter."""
SIDES: list[Side] = [(name, counter) for name in KEYS for counter in (noise(8, 3), BEFORE_WRAP)]

ciphers = pytest.mark.parametrize("cipher", list(KEYS))
sides = pytest.mark.parametrize("side", SIDES, ids=lambda side: f"{side[0].decode()}-{side[1].hex()}")


def oracle(side: Side) -> Encryption:
    """asyncssh's encryption or decryption, at its first packet."""
    cipher, counter = side
    return get_encryption(cipher, KEYS[cipher], FIXED + counter)


def sealer(side: Side) -> Sealer:
    made = Sealer.of(oracle(side))
    assert made
    return made


def opener(side: Side) -> Opener:
    made = Opener.of(oracle(side))
    assert made
    return made


def opened_by(other: Encryption, packet: bytes) -> bytes:
    """What asyncssh makes of a packet, without its length; fails where it sees that the packet is not authentic."""
    first, length = other.decrypt_header(0, packet[:16], 4)
    assert int.from_bytes(length, "big") == len(packet) - 4 - TAG
    body = other.decrypt_packet(0, first, packet[16:-TAG], 4, packet[-TAG:])
    assert body is not None
    return body


def sealed_by(other: Encryption, body: bytes) -> bytes:
    """A packet of asyncssh's with this in it: padding length, type and so on."""
    packet, mac = other.encrypt_packet(0, struct.pack(">I", len(body)), body)
    return packet + mac


def data_body(data: bytes, padding: int) -> bytes:
    """The inside of a CHANNEL_DATA packet."""
    return struct.pack(">BBII", padding, MSG_CHANNEL_DATA, CHANNEL, len(data)) + data + bytes(padding)


def sealed(made: Sealer, data: bytes) -> bytes:
    """A packet that was built in place; nothing around it was touched."""
    buffer = bytearray(b"\x55" * (len(data) + OVERHEAD + 2 * MARGIN))
    buffer[MARGIN + DATA : MARGIN + DATA + len(data)] = data
    end = made.seal(memoryview(buffer), MARGIN, CHANNEL, len(data))
    assert end - MARGIN - len(data) <= OVERHEAD
    assert set(buffer[:MARGIN] + buffer[end:]) == {0x55}
    return bytes(buffer[MARGIN:end])


def opens(made: Opener, packet: bytes) -> bytes | None:
    """The inside of a packet that is opened in place, None where it was altered; nothing around it is touched."""
    buffer = bytearray(b"\x55" * MARGIN + packet + b"\x55" * MARGIN)
    end = MARGIN + len(packet)
    is_good = made.open(memoryview(buffer), MARGIN, end)
    assert set(buffer[:MARGIN] + buffer[end:]) == {0x55}
    assert buffer[MARGIN : MARGIN + 4] == packet[:4]
    return bytes(buffer[MARGIN + 4 : end - TAG]) if is_good else None


def check_body(body: bytes, data: bytes) -> None:
    """The inside of a CHANNEL_DATA packet is as RFC 4253 and RFC 4254 want it, and as short as they allow."""
    padding = body[0]
    assert 4 <= padding < 4 + 16
    assert len(body) % 16 == 0
    assert (body == data_body(data, padding)) is True


# Sealing


@sides
def test_asyncssh_opens_what_is_sealed(side: Side) -> None:
    """asyncssh opens what was sealed, of every size, one after the other, and finds the data behind its header."""
    made, other = sealer(side), oracle(side)
    for size in SIZES:
        data = noise(size)
        check_body(opened_by(other, sealed(made, data)), data)


@sides
def test_asyncssh_opens_other_packets(side: Side) -> None:
    """asyncssh opens packets of other kinds, of every size, one after the other."""
    made, other = sealer(side), oracle(side)
    for size in range(301):
        payload = noise(size)
        body = opened_by(other, made.seal_other(98, payload))
        assert len(body) % 16 == 0
        assert 4 <= body[0] < 4 + 16
        assert body == bytes((body[0], 98)) + payload + bytes(body[0])


@sides
def test_packets_of_asyncssh_are_sealed_alike(side: Side) -> None:
    """What asyncssh has built itself is sealed to the same bytes as by its own encryption."""
    made, other = sealer(side), oracle(side)
    for size in range(16, 321, 16):
        body = noise(size)
        header = struct.pack(">I", size)
        assert made.encrypt_packet(7, header, body) == other.encrypt_packet(7, header, body)


def test_overhead_is_what_is_needed() -> None:
    """OVERHEAD is the most that a packet is longer than its data."""
    made = sealer(SIDES[0])
    assert max(len(sealed(made, bytes(size))) - size for size in range(64)) == OVERHEAD


@given(st.lists(st.tuples(st.sampled_from(["data", "other", "asyncssh"]), st.binary(max_size=100))))
def test_all_packets_share_one_counter(packets: list[tuple[str, bytes]]) -> None:
    """Whoever builds a packet, the nonces go on: asyncssh opens any mixture in its order."""
    made, other = sealer(SIDES[1]), oracle(SIDES[1])
    for kind, payload in packets:
        if kind == "data":
            check_body(opened_by(other, sealed(made, payload)), payload)
        elif kind == "other":
            assert opened_by(other, made.seal_other(98, payload))[2:].startswith(payload)
        else:
            body = payload + bytes(-len(payload) % 16 + 16)
            assert opened_by(other, b"".join(made.encrypt_packet(0, struct.pack(">I", len(body)), body))) == body


# Opening


@sides
def test_packets_of_asyncssh_are_opened(side: Side) -> None:
    """What asyncssh has sealed is opened in place, of every size, one after the other."""
    made, other = opener(side), oracle(side)
    for size in SIZES:
        data = noise(size)
        body = data_body(data, -(10 + size) % 16 + 16)
        assert (opens(made, sealed_by(other, body)) == body) is True


@sides
def test_what_is_sealed_is_opened(side: Side) -> None:
    """What was sealed in place is opened in place."""
    there, back = sealer(side), opener(side)
    for size in SIZES:
        data = noise(size)
        body = opens(back, sealed(there, data))
        assert body is not None
        check_body(body, data)


@given(st.binary(max_size=2000), st.sampled_from(SIDES), st.integers(0, 2**32 - 1))
def test_any_data(data: bytes, side: Side, channel: int) -> None:
    """Any data for any channel passes."""
    buffer = memoryview(bytearray(len(data) + OVERHEAD))
    buffer[DATA : DATA + len(data)] = data
    end = sealer(side).seal(buffer, 0, channel, len(data))
    assert opener(side).open(buffer, 0, end)
    assert struct.unpack_from(">BII", buffer, 5) == (MSG_CHANNEL_DATA, channel, len(data))
    assert buffer[DATA : DATA + len(data)] == data


@ciphers
@pytest.mark.parametrize("size", [0, 1, 40])
def test_altered_byte_is_detected(cipher: bytes, size: int) -> None:
    """A single bit that is not as it was sent is detected wherever it is: length, content, padding or tag."""
    side = (cipher, bytes(8))
    packet = sealed(sealer(side), noise(size))
    assert opens(opener(side), packet) is not None
    for place in range(len(packet)):
        for bit in (1, 128):
            altered = bytearray(packet)
            altered[place] ^= bit
            assert opens(opener(side), bytes(altered)) is None


def test_packets_are_opened_once_and_in_order() -> None:
    """A packet that comes twice, too early or not at all is detected."""
    side = SIDES[0]
    made = sealer(side)
    first, second = sealed(made, b"first"), sealed(made, b"second")
    for wrong in ([second], [first, first]):
        back = opener(side)
        assert [opens(back, packet) is not None for packet in wrong][-1] is False


def test_another_key_opens_nothing() -> None:
    """What was sealed with another key, or another nonce, is not opened."""
    packet = sealed(sealer(SIDES[0]), b"data")
    assert opens(opener(SIDES[1]), packet) is None
    assert opens(opener(SIDES[2]), packet) is None


@ciphers
def test_asyncssh_is_given_what_is_open(cipher: bytes) -> None:
    """asyncssh's parser gets back unchanged what was opened in place, and the counter does not go on for that."""
    side = (cipher, BEFORE_WRAP)
    made, other = opener(side), oracle(side)
    for data in (b"", b"data", noise(1000)):
        body = data_body(data, -(10 + len(data)) % 16 + 16)
        assert opens(made, sealed_by(other, body)) == body
        packet = struct.pack(">I", len(body)) + body
        assert opened_by(made, packet + noise(TAG)) == body


# Taking over from asyncssh


@sides
def test_going_on_where_asyncssh_was(side: Side) -> None:
    """The counter is taken over as asyncssh has left it."""
    mine, theirs = oracle(side), oracle(side)
    for _ in range(3):
        opened_by(theirs, sealed_by(mine, bytes(16)))
    there, back = Sealer.of(mine), Opener.of(theirs)
    assert there
    assert back
    body = opens(back, sealed(there, b"data"))
    assert body is not None
    check_body(body, b"data")


def other_ciphers() -> Iterator[Encryption | None]:
    """Encryption that is not AES-GCM, and none."""
    yield None
    yield get_encryption(b"chacha20-poly1305@openssh.com", bytes(64), b"")
    mac = b"hmac-sha2-256-etm@openssh.com"
    yield get_encryption(b"aes256-ctr", bytes(32), bytes(16), mac, bytes(32), True)


def test_other_ciphers_are_asyncsshs() -> None:
    """Whatever is not AES-GCM is left to asyncssh."""
    for encryption in other_ciphers():
        assert Sealer.of(encryption) is None
        assert Opener.of(encryption) is None


def test_this_installation_can() -> None:
    """The cryptography package of this installation encrypts in place."""
    assert can_work_in_place
