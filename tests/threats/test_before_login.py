"""Strangers who have not logged in: they push bytes, exchange keys without end, and offer nothing but weak algorithms."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_IGNORE,
    MSG_KEXINIT,
    MSG_SERVICE_ACCEPT,
    MSG_SERVICE_REQUEST,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_REQUEST,
    MSG_USERAUTH_SUCCESS,
)
from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from asyncssh.packet import Boolean, NameList, String, UInt32

from knot_keys.bounds import LOGIN_TRIES
from knot_keys.connections import ALGORITHMS, HOST_KEY_ALGORITHMS
from knot_keys.keyfiles import new_key
from knot_ssh.addresses import Address
from tests.conftest import Pair
from tests.faults.beds import FULL, meter
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.measures import MIB, Growth, Meter, percentile
from tests.support.rawssh import LOGIN, PACKET, Denied, Ended, RawSSH

SOON = 1
"""Seconds that a good login may take meanwhile, from the table."""
CHEAP = 16 * MIB
"""What a stranger may cost."""
CHEAP_EXCHANGE = MIB // 2
"""What each of many who exchange keys may."""
PUSHED = 64 * MIB
ELSEWHERE = "127.0.0.2"
"""Where strangers come from that are held to the rate of their source."""
EXCHANGERS = 64
"""Connections that exchange keys at the same time."""
LOGINS = 50 if FULL else 10
AT_ONCE = 5
"""Seconds until a violation must have had its consequence."""


class Place(NamedTuple):
    """Where strangers come to, whose process it is, and who logs in there meanwhile."""

    address: tuple[str, int]
    meter: Meter


def endpoint(pair: Pair) -> Place:
    return Place(pair.backend.endpoint(), meter("endpoint", pair.backend))


def hub(pair: Pair) -> Place:
    address = Address.parse(pair.system.hub)
    assert pair.system.server
    return Place((address.host, address.port), Meter("hub", pair.system.server.process.pid))


PLACES = pytest.mark.parametrize("where", [endpoint, hub], ids=lambda where: where.__name__)
Where = Callable[[Pair], Place]


def logins(pair: Pair, place: Place) -> float:
    """Seconds of the slowest of some good logins."""
    times = []
    for _ in range(LOGINS):
        began = time.monotonic()
        with RawSSH.login(place.address, pair.frontend.identity()[0]):
            times.append(time.monotonic() - began)
    return percentile(times, 1)


# Bytes


def while_asked(peer: RawSSH) -> bytes:
    """A request to log in, whose answer takes a look at the store, and more of them right behind it."""
    blob = new_key("x").public_data
    asked = String("00000000-0000-4000-8000-000000000000") + String("ssh-connection") + String("publickey") + Boolean(False)
    request = peer.seal(MSG_USERAUTH_REQUEST, asked, String(LOGIN), String(blob))
    return request + b"".join(peer.seal(MSG_IGNORE, String(bytes(PACKET))) for _ in range(PUSHED // PACKET))


@pytest.mark.threat(11, f"{PUSHED // MIB} MiB pushed while a login is being decided", "memory < 16 MiB, login < 1 s")
@PLACES
@steadily
def test_bytes_while_auth_awaits(pair: Pair, figure: Figure, where: Where) -> None:
    """What comes behind a request to log in is not read before that is decided, and then counts."""
    place = where(pair)
    with RawSSH.dial(place.address) as peer:
        peer.send(MSG_SERVICE_REQUEST, String("ssh-userauth"))
        peer.expect(MSG_SERVICE_ACCEPT)
        packets = while_asked(peer)
        growth = Growth(place.meter)
        with ThreadPoolExecutor(1) as pool:
            pushing = pool.submit(peer.flood, packets)
            slowest = logins(pair, place)
            wait([pushing], AT_ONCE)
            peer.close()
            sent = pushing.result()
    figure(f"{sent / MIB:.1f} MiB pushed; login at most {1000 * slowest:.0f} ms; {growth}")
    assert growth.peak < CHEAP
    in_time(slowest, SOON)


@pytest.mark.threat(11, "tries to log in without end, on one connection", f"cut off after {LOGIN_TRIES}")
@PLACES
def test_tries(pair: Pair, figure: Figure, where: Where) -> None:
    """One connection may try so many keys and no more."""
    tried = 0
    with RawSSH.dial(where(pair).address) as peer, contextlib.suppress(Ended):
        peer.send(MSG_SERVICE_REQUEST, String("ssh-userauth"))
        peer.expect(MSG_SERVICE_ACCEPT)
        while tried <= 2 * LOGIN_TRIES:
            with contextlib.suppress(Denied):
                prove_again(peer)
            tried += 1
    figure(f"{tried} tries answered")
    assert tried == LOGIN_TRIES


def prove_again(peer: RawSSH) -> None:
    key = new_key("x")
    asked = String("knot") + String("ssh-connection") + String("publickey") + Boolean(True)
    asked += String(LOGIN) + String(key.public_data)
    signed = String(peer.session) + bytes([MSG_USERAUTH_REQUEST]) + asked
    peer.send(MSG_USERAUTH_REQUEST, asked, String(key.sign(signed, LOGIN)))
    kind, _ = peer.expect(MSG_USERAUTH_SUCCESS, MSG_USERAUTH_FAILURE)
    if kind != MSG_USERAUTH_SUCCESS:
        raise Denied


# Key exchanges


def stranger(address: tuple[str, int]) -> socket.socket:
    """A connection from another address than the good login's."""
    return socket.create_connection(address, timeout=AT_ONCE, source_address=(ELSEWHERE, 0))


@contextlib.contextmanager
def exchanging(address: tuple[str, int], count: int) -> Iterator[list[int]]:
    """So many connections that exchange keys again and again without logging in, and come again when they are cut off; gives
    how often each has."""
    done, stop = [0] * count, threading.Event()

    def exchange(number: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(Ended, OSError), RawSSH(stranger(address)) as peer:
                peer.greet()
                while not stop.is_set():
                    peer.exchange_keys()
                    done[number] += 1

    threads = [threading.Thread(target=exchange, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield done
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.threat(
    11, f"{EXCHANGERS} strangers of one address exchange keys without end", "memory < 0.5 MiB each, login < 1 s"
)
@pytest.mark.alone
@PLACES
@steadily
def test_key_exchange_flood(pair: Pair, figure: Figure, where: Where) -> None:
    """Whoever comes from elsewhere is let in meanwhile, though they exchange keys as often as they can."""
    place = where(pair)
    growth = Growth(place.meter)
    began = time.monotonic()
    with exchanging(place.address, EXCHANGERS) as done:
        slowest = logins(pair, place)
        rate = sum(done) / (time.monotonic() - began)
    figure(f"{rate:.0f} exchanges/s; login at most {1000 * slowest:.0f} ms; {growth}")
    assert growth.peak < EXCHANGERS * CHEAP_EXCHANGE
    in_time(slowest, SOON)


# Downgrades

ROWS = [
    "kex",
    "host key",
    "cipher to us",
    "cipher from us",
    "MAC to us",
    "MAC from us",
    "compression to us",
    "compression from us",
]
GOOD = [
    ALGORITHMS["kex_algs"],
    HOST_KEY_ALGORITHMS,
    *[ALGORITHMS["encryption_algs"]] * 2,
    *[ALGORITHMS["mac_algs"]] * 2,
    *[["none"]] * 2,
]
"""What our own ends offer, in the order of a KEXINIT (RFC 4253 section 7.1)."""
STRONG = [([0], "curve25519-sha256"), ([4, 5], "hmac-sha2-256-etm@openssh.com")]
"""That these are waited for shows that the others are refused for what they are."""
BRIEFLY = 0.5
NEEDS_MAC = "aes128-ctr"
"""With a cipher that is authenticated no MAC is negotiated."""


def names(found: list[bytes]) -> set[str]:
    return {name.decode() for name in found}


def weak() -> Iterator[tuple[list[int], str]]:
    """Each algorithm that asyncssh or OpenSSH could speak and we do not, with the rows of the KEXINIT it belongs to."""
    offered = {name for row in GOOD for name in row}
    kex = names(get_kex_algs()) | {"diffie-hellman-group1-sha1", "diffie-hellman-group-exchange-sha1", "ecdh-sha2-nistp256"}
    ciphers = names(get_encryption_algs()) | {"none", "3des-cbc", "aes128-cbc", "arcfour", "rijndael-cbc@lysator.liu.se"}
    macs = names(get_mac_algs()) | {"none", "hmac-md5", "hmac-sha1", "hmac-sha1-96", "umac-64@openssh.com"}
    host_keys = {"ssh-rsa", "ssh-dss", "rsa-sha2-512", "ecdsa-sha2-nistp256", "ssh-rsa-cert-v01@openssh.com", "null"}
    for rows, found in (
        ([0], kex),
        ([1], host_keys),
        ([2, 3], ciphers),
        ([4, 5], macs),
        ([6, 7], {"zlib", "zlib@openssh.com"}),
    ):
        yield from ((rows, name) for name in sorted(found - offered))


def refuses(address: tuple[str, int], rows: list[int], name: str, seconds: float = AT_ONCE) -> bool:
    """Whether the other side hangs up on who offers this alone in its rows, and nothing bad besides."""
    offer = [[*row] for row in GOOD]
    for row in rows:
        offer[row] = [name]
    if rows == [4, 5]:
        offer[2] = offer[3] = [NEEDS_MAC]
    lists = b"".join(NameList([entry.encode() for entry in row]) for row in (*offer, [], []))
    with socket.create_connection(address, timeout=AT_ONCE) as sock:
        peer = RawSSH(sock)
        peer.greet()
        peer.send(MSG_KEXINIT, bytes(16), lists, Boolean(False), UInt32(0))
        return peer.has_ended(seconds)


@pytest.mark.threat(12, "offer one weak algorithm alone: key exchange, host key, cipher, MAC, compression", "all refused")
@PLACES
def test_downgrade(pair: Pair, figure: Figure, where: Where) -> None:
    """Of everything that is not on our lists nothing is negotiated; what is on them is."""
    address = where(pair).address
    found = list(weak())
    taken = [name for rows, name in found if not refuses(address, rows, name)]
    figure(f"{len(found) - len(taken)} of {len(found)} refused")
    assert taken == []
    assert not any(refuses(address, rows, name, BRIEFLY) for rows, name in STRONG)


@pytest.mark.threat(12, "log in with an RSA key and a SHA-1 signature", "refused")
@PLACES
def test_weak_signature(pair: Pair, figure: Figure, where: Where) -> None:
    """`ssh-rsa` is the name of a key type and of a SHA-1 signature; the latter counts for nothing."""
    key = asyncssh.generate_private_key("ssh-rsa", key_size=2048)
    with RawSSH.dial(where(pair).address) as peer:
        peer.send(MSG_SERVICE_REQUEST, String("ssh-userauth"))
        peer.expect(MSG_SERVICE_ACCEPT)
        asked = String("knot") + String("ssh-connection") + String("publickey") + Boolean(True)
        asked += String("ssh-rsa") + String(key.public_data)
        signed = String(peer.session) + bytes([MSG_USERAUTH_REQUEST]) + asked
        peer.send(MSG_USERAUTH_REQUEST, asked, String(key.sign(signed, b"ssh-rsa")))
        kind, _ = peer.expect(MSG_USERAUTH_SUCCESS, MSG_USERAUTH_FAILURE)
    figure("refused" if kind == MSG_USERAUTH_FAILURE else "let in")
    assert kind == MSG_USERAUTH_FAILURE
