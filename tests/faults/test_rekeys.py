"""Exchanges of keys while data flows, by peers that finish them, late, or never; and certificates that run out meanwhile."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from pathlib import Path

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_KEXINIT

from knot_keys.authority import Authority
from knot_keys.identity import Identity
from knot_keys.keyfiles import create_key
from knot_ssh.dataplane.limits import KIB, MIB
from knot_ssh.names import Owner, Zone
from tests.faults.beds import FULL, Bed, Beds
from tests.faults.victims import GREEDY, Victim, steadily
from tests.support.figures import Figure
from tests.support.load import Load, Pinging
from tests.support.measures import Growth
from tests.support.rawssh import Denied, Opened, RawSSH, Refused
from tests.support.services import connect, noise, sending, serving
from tests.support.system import System
from tests.support.waiting import until

REKEY_BYTES = MIB
"""The least that can be set: keys are exchanged some 60 times, in both directions, in what follows."""
CHANNELS = 8
STREAM = 32 * MIB if FULL else 8 * MIB
"""Bytes of each stream, each way."""
CIPHERS = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"]
"""Ours in place; asyncssh's, with and without a tag of its own."""
LIFETIME = 2
"""Seconds that a certificate is good."""
SILENT = 25
"""Seconds after which a peer that says nothing is given up: keepalives, 4 x 4, and some."""
STALL = 0.5
"""Seconds in which an unbounded sender would have gone far."""
DOWNLOAD = 3 * MIB


@pytest.mark.fault("keys exchanged at every MiB, eight streams each way", "every byte arrives")
@pytest.mark.parametrize(
    ("source", "target", "cipher"),
    [
        *(("fast", "fast", cipher) for cipher in CIPHERS),
        ("fast", "stock", CIPHERS[0]),
        ("stock", "fast", CIPHERS[0]),
        *(("stock", "stock", cipher) for cipher in (CIPHERS if FULL else CIPHERS[:1])),
    ],
)
def test_streams_survive_rekeys(beds: Beds, echo: int, source: str, target: str, cipher: str, figure: Figure) -> None:
    """Eight streams each way at once, with keys exchanged at every MiB: every byte arrives, and small exchanges go on."""
    settings = {"rekey_bytes": REKEY_BYTES, "ciphers": [cipher]}
    ends = [
        beds.agent(f"{end}-rekey-{plane}-{cipher[:6]}", settings | {"data_plane": plane})
        for end, plane in (("source", source), ("target", target))
    ]
    bed = Bed(ends[0], ends[1], ("", 0), beds.key)
    local = bed.forward(echo)
    growths = [Growth(meter) for meter in bed.meters]
    with Load("swarm", str(local), str(CHANNELS), str(STREAM)) as swarm, Pinging(local) as trips:
        swarm.line()
        swarm.tell()
        done = json.loads(swarm.line())
    amount = CHANNELS * STREAM / MIB
    figure(
        f"{source} to {target}, {cipher}: {amount:.0f} MiB and as many rekeys each way in {done['seconds']:.2f} s; "
        f"{', '.join(map(str, growths))}; {trips}"
    )
    assert done["problems"] == {}
    assert done["wrong"] == 0
    assert max(growth.peak for growth in growths) < 64 * MIB


@pytest.fixture
def rekeying(request: pytest.FixtureRequest, beds: Beds, victim: Victim) -> Bed:
    """Agents like the victim, which exchange keys often."""
    plane = request.node.callspec.params["victim"]
    return beds.bed(f"rekeying-{plane}", {"data_plane": plane, "rekey_bytes": REKEY_BYTES})


def test_peer_that_exchanges_keys_late(rekeying: Bed) -> None:
    """While a peer takes its time to answer a KEXINIT nothing is sent, and afterwards all of it."""
    data = noise(DOWNLOAD)
    with serving(sending(data)) as port, rekeying.peer() as peer:
        channel = peer.open(port)
        peer.sock.sendall(peer.eof(channel))
        digest, got, rekeys = hashlib.sha256(), 0, 0
        while got < 32 + len(data):
            kind, packet = peer.receive()
            if kind == MSG_CHANNEL_DATA:
                packet.get_uint32()
                piece = packet.get_string()
                digest.update(piece)
                got += len(piece)
            elif kind == MSG_KEXINIT:
                rekeys += 1
                assert peer.is_silent(0.2), "data after KEXINIT (RFC 4253 section 7.1)"
                peer.set_aside.append((kind, packet))
                peer.exchange_keys()
        assert rekeys >= DOWNLOAD // REKEY_BYTES - 1
        assert digest.digest() == hashlib.sha256(hashlib.sha256(b"").digest() + data).digest()


def test_peer_that_exchanges_keys_all_the_time(rekeying: Bed) -> None:
    """A peer that asks for new keys after every few packets of a download still gets all of it, in order."""
    data = noise(DOWNLOAD)
    with serving(sending(data)) as port, rekeying.peer() as peer:
        channel = peer.open(port)
        peer.sock.sendall(peer.eof(channel))
        digest, got, packets = hashlib.sha256(), 0, 0
        while got < 32 + len(data):
            piece = next_data(peer)
            digest.update(piece)
            got += len(piece)
            packets += 1
            if packets % 8 == 0:
                peer.exchange_keys()
        assert digest.digest() == hashlib.sha256(hashlib.sha256(b"").digest() + data).digest()


@steadily
def test_talk_within_a_key_exchange(victim: Victim) -> None:
    """Channels that a peer opens, uses and closes between its KEXINIT and its NEWKEYS are answered after the exchange."""
    with victim.unharmed(), victim.bed.peer() as peer:
        channel = peer.open(victim.echo)
        peer.begin_keys()
        peer.sock.sendall(peer.data(channel, b"in between") + peer.opening(victim.echo) + peer.eof(channel))
        peer.exchange_keys()
        assert next_data(peer) == b"in between"
        second = peer.answer()
        assert isinstance(second, Opened)
        peer.sock.sendall(peer.data(second, b"and after"))
        assert next_data(peer) == b"and after"


@steadily
def test_peer_that_stops_in_a_key_exchange(rekeying: Bed, victim: Victim) -> None:
    """A peer that stops reading when new keys are due, while a service pours data at it, costs little; with KNOT_FULL=1: and
    is given up after some keepalives."""
    with serving(pour) as port, victim.unharmed(), rekeying.peer() as peer:
        growth = Growth(rekeying.meters[1])
        channel = peer.open(port)
        while peer.receive()[0] != MSG_KEXINIT:
            pass
        peer.sock.sendall(b"".join(peer.data(channel, b"x") for _ in range(1000)))
        began = time.monotonic()
        until(lambda: time.monotonic() - began > STALL, what="some time to pile up memory")
        print(f"\nstopped in a key exchange: {growth}")
        assert growth.peak < GREEDY
        if FULL:
            until(peer.is_cut_off, SILENT, "the silent peer is given up")
            print(f"given up after {time.monotonic() - began:.1f} s")


@steadily
def test_certificate_that_expires_in_use(victim: Victim, system: System, tmp_path: Path) -> None:
    """A transfer goes on, across new keys, after the certificate it was begun with has run out; new channels are refused,
    also on that connection; nobody else notices."""
    key_file = tmp_path / "brief"
    key = create_key(key_file, "brief")
    authority = Authority.load(system.folder / "server")
    issued = authority.certify_client(key, Identity.person(Owner("alice"), [Zone("eu")]), LIFETIME)
    key_file.with_name("brief-cert.pub").write_text(issued.line)
    with victim.unharmed(), RawSSH.login(victim.bed.endpoint, key_file) as peer:
        channel = peer.open(victim.echo)

        def refused() -> bool:
            peer.sock.sendall(peer.data(channel, b"x") + peer.opening(victim.echo))
            assert next_data(peer) == b"x"
            return isinstance(peer.answer(), Refused)

        assert not refused()
        until(refused, LIFETIME + 5, "no new channels")
        peer.exchange_keys()
        data = noise(64 * KIB)
        peer.sock.sendall(b"".join(peer.data(channel, data[at : at + KIB]) for at in range(0, len(data), KIB)))
        got = b""
        while len(got) < len(data):
            got += next_data(peer)
        assert got == data
        with pytest.raises(Denied):
            RawSSH.login(victim.bed.endpoint, key_file)
        with connect(victim.local) as sock:
            sock.sendall(b"still")
            assert sock.recv(5, socket.MSG_WAITALL) == b"still"


def pour(sock: socket.socket) -> None:
    """A service that sends as long as somebody takes it."""
    while True:
        sock.sendall(bytes(64 * KIB))


def next_data(peer: RawSSH) -> bytes:
    """The next data of any channel."""
    _, packet = peer.expect(MSG_CHANNEL_DATA)
    packet.get_uint32()
    return packet.get_string()
