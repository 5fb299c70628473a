"""A compromised agent of the same owner asks an endpoint for everything but its loopback: nothing is dialled."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN
from asyncssh.packet import String, UInt32

from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.rawssh import ENOUGH, PACKET, Opened, RawSSH, Refused
from tests.support.services import free_port
from tests.unit.knot_agent.test_destinations import ELSEWHERE

ETH_P_ALL = 3
"""Every packet, in or out, of every device; see packet(7)."""
SYN, ACK = 0x02, 0x10
BEYOND = (0, 2**16, 2**16 + 22, 2**31, 2**32 - 1)
"""Some ports that TCP does not have."""
QUIET = 0.2
"""Seconds for a packet that was sent to be seen."""
SO_ATTACH_FILTER = 26


def only_to(port: int) -> list[tuple[int, int, int, int]]:
    """A filter that keeps IPv4 and IPv6 TCP packets to this port (bpf(4)), so that other traffic fills no buffer."""
    load_byte, load_half, load_half_behind, header, mask, equal, give = 0x30, 0x28, 0x48, 0xB1, 0x54, 0x15, 0x06
    return [
        (load_byte, 0, 0, 0), (mask, 0, 0, 0xF0), (equal, 5, 0, 0x60),
        (load_byte, 0, 0, 9), (equal, 0, 8, socket.IPPROTO_TCP),
        (header, 0, 0, 0), (load_half_behind, 0, 0, 2), (equal, 4, 5, port),
        (load_byte, 0, 0, 6), (equal, 0, 3, socket.IPPROTO_TCP), (load_half, 0, 0, 42), (equal, 0, 1, port),
        (give, 0, 0, 0xFFFF), (give, 0, 0, 0),
    ]  # fmt: skip


class Sniffer:
    """Sees every attempt to connect to one port, at any address, from this machine."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        code = b"".join(struct.pack("=HBBI", *step) for step in only_to(port))
        kept = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
        self._sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def seen(self) -> int:
        """How many packets that ask for a connection have come by since the last time."""
        count = 0
        while select.select([self._sock], [], [], QUIET)[0]:
            count += self._asks(self._sock.recv(2048))
        return count

    def _asks(self, packet: bytes) -> bool:
        v6 = packet[0] >> 4 == 6
        protocol, start = (packet[6], 40) if v6 else (packet[9], 4 * (packet[0] & 15))
        if protocol != socket.IPPROTO_TCP or len(packet) < start + 14:
            return False
        (port,) = struct.unpack_from(">H", packet, start + 2)
        return bool(port == self._port and packet[start + 13] & (SYN | ACK) == SYN)

    def close(self) -> None:
        self._sock.close()


@contextlib.contextmanager
def sniffer(port: int) -> Iterator[Sniffer]:
    try:
        made = Sniffer(port)
    except (PermissionError, AttributeError):
        pytest.skip("only root can see packets")
    with contextlib.closing(made):
        yield made


@contextlib.contextmanager
def everywhere(port: int) -> Iterator[list[socket.socket]]:
    """Listeners on every address of this machine."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket(family)) for family in (socket.AF_INET, socket.AF_INET6)]
        socks[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for sock, host in zip(socks, ("0.0.0.0", "::"), strict=True):
            sock.bind((host, port))
            sock.listen()
            sock.setblocking(False)
        yield socks


def asked(peer: RawSSH, host: bytes, port: int) -> Opened | Refused:
    """What comes of a request for a channel to exactly these bytes."""
    where = String(host) + UInt32(port) + String("127.0.0.1") + UInt32(1)
    number = peer.number()
    peer.send(MSG_CHANNEL_OPEN, String("direct-tcpip"), UInt32(number), UInt32(ENOUGH), UInt32(PACKET), where)
    return peer.answer()


def spellings() -> list[bytes]:
    """Everything that is not to be dialled, and this machine's own other addresses."""
    own = [str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None)]
    texts = [host for host in (*ELSEWHERE, *own, socket.gethostname()) if host not in {"127.0.0.1", "::1"} and len(host) < 1000]
    return [text.encode("utf-8", "surrogatepass") for text in texts]


def is_text(host: bytes) -> bool:
    """Whether RFC 4254 lets a host be this; a peer that sends anything else is cut off."""
    try:
        host.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.threat(
    1, "channels to metadata, LAN, 0.0.0.0, ::, 127.1, names, NUL", "refused; listeners off loopback see no SYN"
)
def test_other_places(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """Of every spelling that is not on the list no packet comes; a channel to loopback shows that one would be seen."""
    key, port = pair.system.certificate("alice", tmp_path), free_port()
    with everywhere(port) as listeners, sniffer(port) as wire, RawSSH.login(pair.backend.endpoint(), key) as peer:
        hosts = [host for host in spellings() if is_text(host)]
        granted = [host for host in hosts if not isinstance(asked(peer, host, port), Refused)]
        packets = wire.seen()
        reached = [sock for sock in listeners if select.select([sock], [], [], 0)[0]]
        figure(f"{len(hosts)} spellings: {len(granted)} granted, {packets} SYNs, {len(reached)} listeners reached")
        assert (granted, packets, reached) == ([], 0, [])
        assert isinstance(asked(peer, b"127.0.0.1", port), Opened)
        assert wire.seen()


@pytest.mark.threat(1, "channels to ports 0, 65536 and up to 2^32-1", "refused; listeners see no SYN")
def test_ports_that_do_not_exist(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """A port that TCP does not have is not taken for one that it has, such as its last sixteen bits."""
    key, port = pair.system.certificate("alice", tmp_path), free_port()
    with everywhere(port), sniffer(port) as wire, RawSSH.login(pair.backend.endpoint(), key) as peer:
        wrong = [*BEYOND, port + 2**16, port + 2**31]
        answers = [asked(peer, host, number) for host in (b"127.0.0.1", b"localhost", b"::1") for number in wrong]
        packets = wire.seen()
        figure(f"{len(answers)} requests: {sum(isinstance(answer, Opened) for answer in answers)} granted, {packets} SYNs")
        assert all(isinstance(answer, Refused) for answer in answers)
        assert packets == 0
