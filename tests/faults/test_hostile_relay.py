"""Callers and endpoints that break the rules of the relay: the hub holds no more for them than it may, others do not notice,
and once they are gone nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_SUCCESS,
)
from asyncssh.packet import String, UInt32

from knot_keys.certificates import check_hub, issue_host, read_certificate
from knot_keys.connections import Credential, close, connect
from knot_keys.identity import HubIdentity
from knot_keys.keyfiles import load_key, parse_public_key
from knot_ssh.addresses import Address
from knot_ssh.errors import KnotError
from knot_ssh.names import SpaceId
from knot_ssh.rpc import Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import TARGETS_MAX, Hello
from tests.faults.beds import forward, meter, start_agent
from tests.faults.victims import FAULTS
from tests.support.measures import MIB, Growth, Meter
from tests.support.planes import stock_plane
from tests.support.rawhub import RawHub
from tests.support.rawssh import PACKET, Opened, Refused
from tests.support.services import connect as connect_local
from tests.support.system import AgentOf, Running, System, knot_command
from tests.support.waiting import until

RELAYED_MAX = 256
"""Relayed connections of one owner, as the documentation says."""
SLIGHT = 16 * MIB
"""What the hub may keep of memory after an attack: free, but not given back to the system yet."""
HELD = 64 * MIB
"""Bytes that the hub may hold for the readers of one owner."""
POOL = 9
"""Descriptors that the server's store may have taken meanwhile, for connections that it keeps; each is three."""
FLOOD = 5_000
MANY_TIMES = 30
"""Together more windows of the smallest size than the hub may promise to all."""
FEW_LINES = 20
"""Lines that the log may grow by, however often the same is refused."""
SOON = 3
"""Seconds for another owner's new relayed connection, on a machine that others use, too."""


@dataclass(frozen=True, slots=True)
class Scene:
    """alice's forward through the relay, which must go on working; mallory's spaces, of which `far` does not run by itself."""

    system: System
    agents: tuple[AgentOf, AgentOf]
    local: int
    near: AgentOf
    honest: AgentOf
    far: AgentOf

    @property
    def name(self) -> str:
        """What the endpoint is called that attacks."""
        return f"{self.far.name}.mallory.eu.knot"

    @property
    def meters(self) -> list[Meter]:
        assert self.system.server
        pid = self.system.server.process.pid
        return [Meter("hub", pid), *(meter(agent.name, agent) for agent in (*self.agents, self.honest))]

    @property
    def running(self) -> list[Running]:
        found = [self.system.server, *(agent.running for agent in (*self.agents, self.honest))]
        return [running for running in found if running]

    def works(self) -> None:
        """A new connection through the forward is served soon."""
        began = time.monotonic()
        with connect_local(self.local) as sock:
            sock.sendall(b"still there?")
            sock.shutdown(socket.SHUT_WR)
            assert sock.makefile("rb").read() == b"still there?"
        assert time.monotonic() - began < SOON

    @contextlib.contextmanager
    def unharmed(self, lines: int = 10 * FEW_LINES, keeps: int = SLIGHT) -> Iterator[Growth]:
        """Whatever happens meanwhile, nothing is left of it, and others' connections are served. Gives the hub's growth."""
        self.works()
        before = [meter.descriptors() for meter in self.meters]
        logs = [len(running.lines()) for running in self.running]
        growth = Growth(self.meters[0])
        yield growth
        self.works()
        for running, start in zip(self.running, logs, strict=True):
            assert running.process.poll() is None, f"{running.log.name} is dead"
            said = running.lines()[start:]
            assert not [line for line in said if any(word in line for word in FAULTS)]
            assert len(said) < lines, said[-3:]
        most = [before[0] + POOL, *before[1:]]
        until(lambda: all(map(operator.le, self._descriptors(), most)), what=f"descriptors as before: {before}")
        print(f"\n{growth}")
        until(lambda: growth.memory < keeps, 5, f"memory as before: {growth}")

    def _descriptors(self) -> list[int]:
        return [meter.descriptors() for meter in self.meters]

    def registered(self, far: RawHub) -> RawHub:
        """An endpoint that is relayed to."""
        assert far.register(self.name)
        return far


@pytest.fixture(scope="module")
def scene(system: System, echo: int) -> Scene:
    source = system.space("relay-source")
    target = start_agent(system, "relay-target", {"advertise": ["127.0.0.1:1"]})
    local = forward(source, target.name, echo)
    near, honest, far = (system.space(f"relay-{name}", owner="mallory") for name in ("near", "honest", "far"))
    far.stop()
    near.stop()
    return Scene(system, (source, target), local, near, honest, far)


def test_absent_spaces(scene: Scene) -> None:
    """Thousands of requests for what does not exist are refused one by one, and hardly fill the log."""
    with scene.unharmed(FEW_LINES) as growth, RawHub.caller(scene.near) as near:
        near.flood_and_read(b"".join(near.opening(22, host=f"absent-{number}") for number in range(FLOOD)))
    assert growth.peak < SLIGHT


def test_requests_to_be_relayed_to(scene: Scene) -> None:
    """Thousands of requests to be relayed to, under good names and bad ones, come to nothing and hardly fill the log."""
    with scene.unharmed(FEW_LINES) as growth:
        for name in (scene.name, "relay-target.alice.eu.knot", "x" * 1000):
            with RawHub.member(scene.far) as far:
                far.flood_and_read(b"".join(far.registering(name) for _ in range(FLOOD)))
        with RawHub.caller(scene.near) as near:
            until(lambda: isinstance(near.relayed(scene.name), Refused), what="nobody is relayed to")
    assert growth.peak < SLIGHT


def test_endpoint_that_never_answers(scene: Scene) -> None:
    """Callers that wait for an endpoint which says nothing are limited for their owner alone, and may leave at any time."""
    with scene.unharmed(), RawHub.member(scene.far) as far:
        scene.registered(far)
        with RawHub.caller(scene.near) as near:
            near.sock.sendall(b"".join(near.opening(22, host=scene.name) for _ in range(RELAYED_MAX + 1)))
            refused = near.answer()
            assert isinstance(refused, Refused)
            assert "too many" in refused.reason
            scene.works()
        channels = [far.asked() for _ in range(RELAYED_MAX)]
        for channel in channels[::2]:
            far.grant(channel)
        for channel in channels[1::2]:
            far.refuse(channel)
        for _ in channels[::2]:
            far.expect(MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE)
        far.sock.sendall(b"".join(far.closing(channel) for channel in channels[::2]))
        with RawHub.caller(scene.near) as near:
            near.sock.sendall(near.opening(22, host=scene.name))
            far.refuse(far.asked())
            assert "too many" not in getattr(near.answer(), "reason", "")


def test_silent_endpoint_does_not_shut_its_owner_out(scene: Scene) -> None:
    """What was asked of an endpoint that says nothing does not count once the caller has gone."""
    with scene.unharmed(), RawHub.member(scene.far) as far:
        scene.registered(far)
        with RawHub.caller(scene.near) as near:
            near.sock.sendall(b"".join(near.opening(22, host=scene.name) for _ in range(RELAYED_MAX)))
            for _ in range(RELAYED_MAX):
                far.asked()
        with RawHub.caller(scene.near) as near:
            until(lambda: isinstance(near.relayed(scene.honest.name), Opened), 5, "its owner's other spaces are relayed to")


def test_windows_are_left_for_others(scene: Scene) -> None:
    """However often callers of one owner come and go, another's new connection is promised as much as ever."""
    with scene.unharmed(), RawHub.member(scene.far) as far:
        scene.registered(far)
        before = window_of_another(scene)
        for _ in range(MANY_TIMES):
            with RawHub.caller(scene.near) as near:
                near.sock.sendall(b"".join(near.opening(22, host=scene.name) for _ in range(RELAYED_MAX)))
                for _ in range(RELAYED_MAX):
                    far.asked()
        until(lambda: window_of_another(scene) == before, 2, f"a window of {before}")


def window_of_another(scene: Scene) -> int:
    """What the hub promises alice on a new channel."""
    with RawHub.caller(scene.agents[0]) as near:
        channel = near.relayed(scene.agents[1].name)
        assert isinstance(channel, Opened)
        return channel.window


def test_callers_that_vanish(scene: Scene) -> None:
    """Callers that hang up in the middle of opening, or right after, leave nothing behind."""
    with scene.unharmed(), RawHub.member(scene.far) as far:
        scene.registered(far)
        for answers in (False, True) * 10:
            with RawHub.caller(scene.near) as near:
                near.sock.sendall(b"".join(near.opening(22, host=scene.name) for _ in range(10)))
                channels = [far.asked() for _ in range(10)]
                if answers:
                    for channel in channels:
                        far.grant(channel)
                    near.answer()
        with RawHub.caller(scene.near) as near:
            near.flood_and_read(b"".join(near.opening(22, host=scene.honest.name) for _ in range(50)))


def test_endpoints_that_vanish(scene: Scene) -> None:
    """Endpoints that hang up in the middle of being asked: their callers hear it, and nothing is left."""
    with scene.unharmed(), RawHub.caller(scene.near) as near:
        for _ in range(10):
            with RawHub.member(scene.far) as far:
                scene.registered(far)
                near.sock.sendall(b"".join(near.opening(22, host=scene.name) for _ in range(10)))
                for _ in range(5):
                    far.grant(far.asked())
                for _ in range(5):
                    far.asked()
                opened = [near.answer() for _ in range(5)]
            refused = [near.answer() for _ in range(5)]
            assert all(isinstance(answer, Opened) for answer in opened)
            assert all(isinstance(answer, Refused) and "lost" in answer.reason for answer in refused)
            for _ in opened:
                near.expect(MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE)


def test_half_open(scene: Scene) -> None:
    """Relayed connections of which one side ended, closed, or never did either, end with their caller or their endpoint."""
    for stays in ("near", "far"):
        with scene.unharmed(), RawHub.caller(scene.near) as near, RawHub.member(scene.far) as far:
            scene.registered(far)
            pairs = []
            for _ in range(30):
                near.sock.sendall(near.opening(22, host=scene.name))
                there = far.asked()
                far.grant(there)
                here = near.answer()
                assert isinstance(here, Opened)
                pairs.append((here, there))
            for number, (here, there) in enumerate(pairs):
                match number % 5:
                    case 0:
                        near.sock.sendall(near.eof(here))
                    case 1:
                        far.sock.sendall(far.eof(there))
                    case 2:
                        near.sock.sendall(near.data(here, b"x") + near.closing(here))
                    case 3:
                        far.sock.sendall(far.data(there, b"x") + far.closing(there))
            (far if stays == "near" else near).close()
            (near if stays == "near" else far).ask_something()


@pytest.mark.parametrize("slow", ["caller", "endpoint"])
def test_who_does_not_read(scene: Scene, slow: str) -> None:
    """For those who never read the hub holds what it has promised and no more; what they have cost it can be used again."""
    count = 24
    with scene.unharmed(keeps=HELD) as growth, RawHub.caller(scene.near) as near, RawHub.member(scene.far) as far:
        scene.registered(far)
        sent = 0
        for _ in range(count):
            near.sock.sendall(near.opening(22, host=scene.name, window=0))
            there = far.asked()
            far.grant(there, window=0)
            here = near.answer()
            assert isinstance(here, Opened)
            peer, channel = (near, here) if slow == "endpoint" else (far, there)
            left = channel.window
            while left:
                size = min(left, PACKET)
                peer.sock.sendall(peer.data(channel, bytes(size)))
                left -= size
                sent += size
        (near if slow == "endpoint" else far).ask_something()
        scene.works()
        assert count * MIB < sent < HELD + count * 64 * 1024
    assert growth.peak < HELD + SLIGHT


def test_endpoints_are_not_shut_out(scene: Scene) -> None:
    """Callers that get through to an honest endpoint and say nothing there leave room for those who log in."""
    with scene.unharmed(), RawHub.caller(scene.near) as near:
        near.sock.sendall(b"".join(near.opening(22, host=scene.honest.name) for _ in range(RELAYED_MAX)))
        answers = [near.answer() for _ in range(RELAYED_MAX)]
        assert all(isinstance(answer, Opened) for answer in answers)
        key, certificate = scene.near.identity()
        began = time.monotonic()
        with RawHub.login(scene.honest.endpoint(), key):
            assert time.monotonic() - began < SOON
        assert certificate.exists()


async def test_targets_to_watch(scene: Scene) -> None:
    """An agent that says hello again and again, each time with other targets, has the hub remember hardly any of them."""
    with scene.unharmed():
        growth = Growth(scene.meters[0])
        ca = parse_public_key(scene.system.api("mallory").get("api", "ca")["host_ca"])
        credential = Credential(load_key(scene.far.identity()[0]))
        line = await connect(
            stock_plane(),
            Address.parse(scene.system.hub),
            scene.far.id,
            lambda shown: check_hub(shown, [ca]),
            credential=credential,
        )
        tasks = Tasks()
        try:
            stdin, stdout, _ = await line.open_session(subsystem="knot-control", encoding=None)
            peer = Peer(stdout, stdin, {})
            tasks.start(peer.run())
            for _ in range(15):
                hello = Hello(version="0", addresses=[], targets=[SpaceId.new() for _ in range(TARGETS_MAX)])
                with contextlib.suppress(KnotError):
                    await peer.call("agent.hello", hello)
            assert growth.memory < 2 * SLIGHT, str(growth)
        finally:
            await tasks.cancel()
            await close(line)
        await asyncio.sleep(0)


def test_refusals_of_all_kinds(scene: Scene) -> None:
    """An endpoint that refuses in rude words, with codes that do not exist, has its callers refused in plain ones."""
    with scene.unharmed(), RawHub.caller(scene.near) as near, RawHub.member(scene.far) as far:
        scene.registered(far)
        for code, reason in ((2**32 - 1, b"\x1b[31m\n" * 5000), (0, b""), (1, b"x" * 30_000)):
            near.sock.sendall(near.opening(22, host=scene.name))
            channel = far.asked()
            far.send(MSG_CHANNEL_OPEN_FAILURE, UInt32(channel.theirs), UInt32(code), String(reason), String(""))
            answer = near.answer()
            assert isinstance(answer, Refused)
            assert answer.reason.isprintable()
            assert len(answer.reason) < 1000


# A hub that is hostile itself


UNASKED = 500
"""Connections that a hub passes on to an agent; more than may wait for a login."""
WAITING = 256
"""How many those are."""


@dataclass(frozen=True, slots=True)
class Bait:
    """An agent that takes us for its hub."""

    agent: Running
    hub: RawHub


@pytest.fixture
def bait(scene: Scene) -> Iterator[Bait]:
    """mallory's `far`, which is certified already, connected to a hub made by hand that has the hub's own key."""
    folder = scene.system.folder / "server"
    key = load_key(folder / "hub_key")
    shown = read_certificate(issue_host(load_key(folder / "host_ca"), key.convert_to_public(), HubIdentity()).line)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        server = f"127.0.0.1:{listener.getsockname()[1]}"
        command = knot_command("agent", "run", "--data", str(scene.far.folder), "--server", server, "--listen", "127.0.0.1:0")
        running = Running(command, scene.far.folder.with_suffix(".bait"), scene.system.environment({}))
        scene.system.processes.append(running)
        stack.callback(running.stop)
        listener.settimeout(20)
        sock, _ = listener.accept()
        hub = stack.enter_context(RawHub(sock, server_key=key, shown=shown.public_data))
        hub.greet()
        hub.exchange_keys()
        hub.let_in()
        yield Bait(running, hub)


def passing_on(hub: RawHub) -> bytes:
    """A sealed request of the hub to open a channel for a caller."""
    ends = (String("x"), UInt32(22), String("127.0.0.1"), UInt32(1))
    return hub.seal(MSG_CHANNEL_OPEN, String("forwarded-tcpip"), *map(UInt32, (hub.number(), PACKET, PACKET)), *ends)


def test_agent_that_has_not_asked(bait: Bait) -> None:
    """Before it has asked to be relayed to, an agent takes nothing that a hub passes on."""
    hub = bait.hub
    hub.expect(MSG_CHANNEL_OPEN)
    hub.sock.sendall(b"".join(passing_on(hub) for _ in range(UNASKED)))
    answers = [hub.answer() for _ in range(UNASKED)]
    assert all(isinstance(answer, Refused) for answer in answers)
    assert bait.agent.process.poll() is None


def test_hub_that_passes_on_too_much(bait: Bait) -> None:
    """Of what a hub passes on, and does not log in, an agent holds so much; when the hub goes, nothing."""
    hub = bait.hub
    session = passed(hub)
    hub.grant(session)
    hub.expect(MSG_CHANNEL_REQUEST)
    hub.send(MSG_CHANNEL_SUCCESS, UInt32(session.theirs))
    asked = hub.receive()[1].get_remaining_payload()
    while not asked.startswith(String("tcpip-forward")):
        asked = hub.receive()[1].get_remaining_payload()
    agent = Meter("agent", bait.agent.process.pid)
    before = agent.descriptors()
    hub.sock.sendall(b"".join(passing_on(hub) for _ in range(UNASKED)))
    answers = [hub.answer() for _ in range(UNASKED)]
    assert all(isinstance(answer, Opened) for answer in answers)
    most = before + UNASKED + WAITING
    until(lambda: agent.descriptors() <= most, 5, f"a channel each, and {WAITING} that wait for a login")
    hub.close()
    until(lambda: agent.descriptors() <= before, what="nothing is left")
    assert not [line for line in bait.agent.lines() if any(word in line for word in FAULTS)]


def passed(hub: RawHub) -> Opened:
    """The session that the agent opens."""
    _, packet = hub.expect(MSG_CHANNEL_OPEN)
    assert packet.get_string() == b"session"
    return Opened(hub.number(), packet.get_uint32(), packet.get_uint32(), packet.get_uint32())
