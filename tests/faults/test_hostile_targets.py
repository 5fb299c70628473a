"""A target with a good certificate that breaks the rules: whoever forwards to it hurts nobody but its own connections."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_CONFIRMATION,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_GLOBAL_REQUEST,
)
from asyncssh.packet import Boolean, String, UInt32

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import load_key
from knot_ssh.dataplane.limits import WINDOW
from tests.faults.beds import FULL, forward, start_agent, stop_forward
from tests.faults.victims import GREEDY, Victim, steadily
from tests.support.measures import Growth
from tests.support.rawssh import PACKET, Ended, Opened, RawSSH
from tests.support.services import TIMEOUT, connect, free_port, read_all
from tests.support.system import AgentOf, System

MOST = 2**32 - 1
NOWHERE = UInt32(4711)
UNANSWERED = 50
"""Connections whose channel the target neither opens nor refuses."""
PATIENCE = 25
"""Seconds after which they must have been given up: ANSWER_TIMEOUT, and some."""
RUDE_SECONDS = 2
RUDE_LOGINS = 10
"""Logins in that time at a target that hangs up after each."""
FLOOD = 100_000
ONE_LINE = 1024
"""Characters of a log line that quotes a peer."""


class Impostor(NamedTuple):
    """A space's agent, and the socket on which others find what they take for its endpoint."""

    agent: AgentOf
    listener: socket.socket
    nobody: int
    """A port on which nobody listens: that is where the agent itself leads whoever reaches it by relay."""


class Hostile:
    """A target that is made by hand: the source dials it, and a forward on port `local` goes to it."""

    def __init__(self, source: AgentOf, agent: AgentOf, listener: socket.socket, nobody: int) -> None:
        self.source = source
        self._agent = agent
        self._listener = listener
        self._nobody = nobody
        self.local = 0

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Forward to it meanwhile."""
        self.local = forward(self.source, self._agent.name, self._nobody)
        try:
            yield
        finally:
            stop_forward(self.source, self.local)

    def link(self, patience: float = TIMEOUT) -> RawSSH:
        """Let the source log in; earlier attempts of it may still stand in the queue. Raises TimeoutError."""
        deadline = time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            self._listener.settimeout(left)
            sock, _ = self._listener.accept()
            key = load_key(self._agent.folder / "host_key")
            shown = read_certificate((self._agent.folder / "host_key-cert.pub").read_text())
            peer = RawSSH(sock, server_key=key, shown=shown.public_data)
            try:
                peer.greet()
                peer.exchange_keys()
                peer.let_in()
            except (Ended, OSError):
                peer.close()
            else:
                return peer
        raise TimeoutError("the source does not log in")

    def first_window(self) -> int:
        """What the source grants on a channel when there is no other."""
        with self.forward(), self.link() as peer, connect(self.local):
            return self.asked(peer).window

    def asked(self, peer: RawSSH) -> Opened:
        """The next channel that the source asks for; its number is `theirs`, as of any channel of theirs."""
        _, packet = peer.expect(MSG_CHANNEL_OPEN)
        packet.get_string()
        return Opened(peer.number(), packet.get_uint32(), packet.get_uint32(), packet.get_uint32())


@pytest.fixture(scope="session")
def impostors(system: System) -> Iterator[Callable[[str], Impostor]]:
    """Hostile spaces by name, each made when first asked for: its agent runs, but says that its endpoint is ours."""
    made: dict[str, Impostor] = {}
    with contextlib.ExitStack() as stack:

        def impostor(name: str) -> Impostor:
            if name not in made:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                advertised = f"127.0.0.1:{listener.getsockname()[1]}"
                made[name] = Impostor(start_agent(system, name, {"advertise": [advertised]}), listener, free_port())
            return made[name]

        yield impostor


@pytest.fixture
def hostile(request: pytest.FixtureRequest, victim: Victim, impostors: Callable[[str], Impostor]) -> Iterator[Hostile]:
    """A hostile target, and the source of the victim's bed, which must have every byte of its windows back in the end."""
    hostile = Hostile(victim.bed.source, *impostors(f"impostor-{request.node.callspec.params['victim']}"))
    yield hostile
    assert hostile.first_window() == WINDOW


@dataclass(frozen=True, slots=True)
class Attack:
    """What a target sends that has opened a channel; the window it was granted is in there, too."""

    name: str
    packets: Callable[[RawSSH, Opened], bytes]


def confirming(peer: RawSSH, channel: Opened, *, window: int = PACKET, packet: int = PACKET) -> bytes:
    return peer.to(MSG_CHANNEL_OPEN_CONFIRMATION, channel, UInt32(channel.ours), UInt32(window), UInt32(packet))


VIOLATIONS = [
    Attack("two confirmations", confirming),
    Attack(
        "refusal after confirmation",
        lambda peer, channel: peer.to(MSG_CHANNEL_OPEN_FAILURE, channel, UInt32(1), String(""), String("")),
    ),
    Attack(
        "confirmation of nothing",
        lambda peer, _: peer.seal(MSG_CHANNEL_OPEN_CONFIRMATION, NOWHERE, UInt32(0), UInt32(1), UInt32(PACKET)),
    ),
    Attack("data for nothing", lambda peer, _: peer.seal(MSG_CHANNEL_DATA, NOWHERE, String(b"x"))),
    Attack("window overflow", lambda peer, channel: peer.to(MSG_CHANNEL_WINDOW_ADJUST, channel, UInt32(MOST))),
    Attack(
        "data beyond the window",
        lambda peer, channel: b"".join(peer.data(channel, bytes(PACKET)) for _ in range(16 * channel.window // PACKET)),
    ),
    Attack("data after the end", lambda peer, channel: peer.eof(channel) + peer.data(channel, b"x")),
    Attack("two closes", lambda peer, channel: peer.closing(channel) + peer.closing(channel)),
    Attack("altered packet", lambda peer, channel: peer.data(channel, b"x" * 100)[:-1] + b"!"),
    Attack("data of 4 GiB", lambda peer, channel: peer.to(MSG_CHANNEL_DATA, channel, UInt32(MOST), b"x")),
    Attack("half of the answer, and gone", lambda peer, channel: peer.data(channel, b"half") + b"gone!"),
]


@steadily
def test_violations_of_a_target(victim: Victim, hostile: Hostile) -> None:
    """A target that breaks the protocol loses the link; its local clients see a reset, never a clean end; the link is made
    anew; other forwards do not notice."""
    ends = {}
    with victim.unharmed() as watch:
        for attack in VIOLATIONS:
            with hostile.forward(), hostile.link() as peer, connect(hostile.local) as client:
                channel = hostile.asked(peer)
                peer.sock.sendall(confirming(peer, channel))
                peer.flood(attack.packets(peer, channel))
                if attack is VIOLATIONS[-1]:
                    peer.close()
                ends[attack.name] = read_all(client)[0]
    print(f"\n{len(VIOLATIONS)} violations of a target: {watch}")
    clean = [name for name, end in ends.items() if end != "reset"]
    assert clean in ([], ["data after the end"]), "FIN may be out already when something comes after the end"


@steadily
def test_terms_that_a_target_sets(victim: Victim, hostile: Hostile) -> None:
    """A target that takes only packets of one byte loses the link; one that takes packets of 4 GiB, in a window of as much,
    gets sane ones."""
    with victim.unharmed():
        with hostile.forward(), hostile.link() as peer, connect(hostile.local) as client:
            peer.sock.sendall(confirming(peer, hostile.asked(peer), packet=1))
            assert read_all(client)[0] == "reset"
        with hostile.forward(), hostile.link() as peer, connect(hostile.local) as client:
            peer.sock.sendall(confirming(peer, hostile.asked(peer), window=MOST, packet=MOST))
            client.sendall(bytes(1_000_000))
            got = 0
            while got < 1_000_000:
                _, packet = peer.expect(MSG_CHANNEL_DATA)
                packet.get_uint32()
                size = len(packet.get_string())
                assert size <= 256 * 1024
                got += size


@pytest.mark.skipif(not FULL, reason="takes half a minute; set KNOT_FULL=1")
@steadily
def test_target_that_never_answers(victim: Victim, hostile: Hostile) -> None:
    """Connections for which the target neither opens nor refuses a channel are reset in time, and hold nothing from then on."""
    with victim.unharmed(), hostile.forward(), hostile.link() as peer, contextlib.ExitStack() as stack:
        before = victim.bed.meters[0].descriptors()
        clients = [stack.enter_context(connect(hostile.local)) for _ in range(UNANSWERED)]
        for _ in clients:
            hostile.asked(peer)
        for client in clients[::2]:
            client.close()
        deadline = time.monotonic() + PATIENCE
        while victim.bed.meters[0].descriptors() > before and time.monotonic() < deadline:
            peer.attend()
        assert {read_all(client)[0] for client in clients[1::2]} == {"reset"}
        assert victim.bed.meters[0].descriptors() <= before
        with connect(hostile.local):
            assert hostile.asked(peer).window > WINDOW * 3 // 4, "others who are connected have theirs"


@steadily
def test_target_that_hangs_up_after_the_login(victim: Victim, hostile: Hostile) -> None:
    """A target that ends every connection right after the login is not dialled in a tight loop."""
    with victim.unharmed() as watch, hostile.forward():
        growth = Growth(victim.bed.meters[0])
        logins = 0
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            while (left := began + RUDE_SECONDS - time.monotonic()) > 0:
                with hostile.link(left):
                    logins += 1
    print(f"\n{logins} logins in {RUDE_SECONDS} s: {growth}; {watch.trips}")
    assert logins < RUDE_LOGINS


@steadily
def test_channels_that_a_target_asks_for(victim: Victim, hostile: Hostile) -> None:
    """A target opens no channel towards us, of whatever kind, nor does it bring anything else about."""
    place = String("127.0.0.1") + UInt32(22)
    kinds = {"direct-tcpip": place + place, "forwarded-tcpip": place + place, "session": b"", "x11": place,
             "auth-agent@openssh.com": b"", "forwarded-streamlocal@openssh.com": String("/x") + String("")}  # fmt: skip
    with victim.unharmed(), hostile.forward(), hostile.link() as peer:
        for kind, about in kinds.items():
            peer.send(MSG_CHANNEL_OPEN, String(kind), UInt32(0), UInt32(PACKET), UInt32(PACKET), about)
            peer.expect(MSG_CHANNEL_OPEN_FAILURE)


@pytest.mark.parametrize("request_name", ["hostkeys-00@openssh.com", "x"])
@steadily
def test_requests_that_a_target_floods(victim: Victim, hostile: Hostile, request_name: str) -> None:
    """A target that floods requests and reads no answer is held little for."""
    with victim.unharmed() as watch, hostile.forward(), hostile.link() as peer:
        growth = Growth(victim.bed.meters[0])
        watch.trips.mark()
        packets = b"".join(peer.seal(MSG_GLOBAL_REQUEST, String(request_name), Boolean(True)) for _ in range(FLOOD))
        peer.flood(packets)
        print(f"\n{request_name} x {FLOOD} from a target: {growth}")
        assert growth.peak < GREEDY


@steadily
def test_words_of_a_target(victim: Victim, hostile: Hostile) -> None:
    """What a target gives as its reason for a refusal reaches log and terminal short, in one line, and harmless."""
    words = "\x1b[2J\x1b]0;owned\x07\r\n2026-01-01 error fake=line \u202e" + "x" * 30_000
    running = victim.bed.source.running
    assert running
    with victim.unharmed(), hostile.forward(), hostile.link() as peer:
        before = len(running.lines())
        with connect(hostile.local) as client:
            peer.sock.sendall(
                peer.to(MSG_CHANNEL_OPEN_FAILURE, hostile.asked(peer), UInt32(2), String(words), String("\x1b[2J"))
            )
            assert read_all(client)[0] == "reset"
        shown = victim.bed.source.knot("port", "list") + victim.bed.source.knot("port", "list", "-o", "wide")
        logged = running.lines()[before:]
    assert all(character.isprintable() or character == "\n" for character in shown), repr(shown)
    assert not any("fake=line" in line and "connection refused" not in line for line in logged), logged
    assert all(len(line) < ONE_LINE and line.isprintable() for line in logged), logged


@steadily
def test_target_that_ends_in_every_way(victim: Victim, hostile: Hostile) -> None:
    """EOF and CLOSE are a clean end, CLOSE alone and a lost link are resets, whatever came before."""
    with victim.unharmed(), hostile.forward(), hostile.link() as peer:
        for last, expected in ((MSG_CHANNEL_EOF, "fin"), (None, "reset")):
            with connect(hostile.local) as client:
                channel = hostile.asked(peer)
                peer.sock.sendall(confirming(peer, channel) + peer.data(channel, b"answer"))
                if last:
                    peer.sock.sendall(peer.to(last, channel))
                assert client.recv(6, socket.MSG_WAITALL) == b"answer"
                peer.sock.sendall(peer.to(MSG_CHANNEL_CLOSE, channel))
                assert read_all(client) == (expected, b"")
        with connect(hostile.local) as client:
            channel = hostile.asked(peer)
            peer.sock.sendall(confirming(peer, channel) + peer.data(channel, b"answer"))
            assert client.recv(6, socket.MSG_WAITALL) == b"answer"
            peer.close()
            assert read_all(client) == ("reset", b"")
