"""Agents that run out of file descriptors."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults.beds import Bed, Beds, Settings, settings_file
from tests.faults.conftest import PLANES
from tests.faults.victims import FAULTS
from tests.support.figures import Figure
from tests.support.load import Pinging
from tests.support.measures import KIB, Growth
from tests.support.services import connect, outcome
from tests.support.system import AgentOf, Running, System, knot_command
from tests.support.waiting import until

DESCRIPTORS = 64
"""Hard limit of the agent: some twelve are in use when it does nothing."""
TOO_MANY = 100
"""Connections beyond that."""
LIVE = 5
"""Connections that stand before."""
OUT_OF_DESCRIPTORS = "out of system resource"
"""What asyncio says with a traceback; ours is one line."""
LOG_BYTES = 64 * KIB
"""What an agent may have logged at the end of all this."""
CPU_SHARE = 0.5
"""Of a core, while there is nothing to be done but wait."""


def start_short(system: System, kind: str, settings: Settings) -> AgentOf:
    """An agent that may have few descriptors."""
    name = f"short-{kind}-{len(system.processes)}"
    agent = system.space(name, run=False)
    token = system.knot("space", "token", name, user="alice")
    command = knot_command("agent", "run", "--data", str(agent.folder), "--server", system.hub, "--listen", "127.0.0.1:0")
    agent.running = Running(
        [*command, "--config", str(settings_file(agent, settings))],
        agent.folder.with_suffix(".log"),
        system.environment({"KNOT_JOIN_TOKEN": token}),
        prefix=("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}"),
    )
    system.processes.append(agent.running)
    agent.running.wait_for("hub connected")
    until((agent.folder / "host_key-cert.pub").exists, what="certificates")
    return agent


@pytest.fixture(params=PLANES)
def short_source(request: pytest.FixtureRequest, system: System, beds: Beds) -> Iterator[Bed]:
    """A source with few descriptors, and a target with enough."""
    plane = request.param
    target = beds.agent(f"target-{plane}", {"data_plane": plane})
    source = start_short(system, "source", {"data_plane": plane, "connect_timeout": 2})
    yield Bed(source, target, ("", 0), beds.key)
    source.stop()


@pytest.fixture(params=PLANES)
def short_target(request: pytest.FixtureRequest, system: System, beds: Beds) -> Iterator[Bed]:
    """The other way round."""
    plane = request.param
    source = beds.agent(f"source-{plane}", {"data_plane": plane})
    target = start_short(system, "target", {"data_plane": plane})
    yield Bed(source, target, target.endpoint(), beds.key)
    target.stop()


@contextlib.contextmanager
def live(local: int) -> Iterator[None]:
    """Connections that stand before and after, and work."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(local)) for _ in range(LIVE)]
        for sock in socks:
            assert says(sock, b"before")
        yield
        for sock in socks:
            assert says(sock, b"after")


def says(sock: socket.socket, words: bytes) -> bool:
    sock.sendall(words)
    return sock.recv(len(words), socket.MSG_WAITALL) == words


def works(local: int) -> bool:
    """Whether a new connection is served."""
    try:
        with connect(local) as sock:
            return says(sock, b"hello")
    except OSError:
        return False


def check_sound(agent: AgentOf) -> None:
    assert agent.running
    assert agent.running.process.poll() is None
    lines = agent.running.lines()
    faults = [line for line in lines if any(word in line for word in FAULTS) and OUT_OF_DESCRIPTORS not in line]
    assert not faults, faults[0]
    assert sum(map(len, lines)) < LOG_BYTES, f"{len(lines)} lines, the last: {lines[-1]}"


def exhausted(bed: Bed, index: int) -> bool:
    return bed.meters[index].descriptors() >= DESCRIPTORS - 1


@pytest.mark.fault("source out of descriptors", "live connections unbroken, who waits is served afterwards")
def test_source_without_descriptors(short_source: Bed, echo: int, figure: Figure) -> None:
    """A source that has no descriptor left serves the connections it has, sleeps instead of spinning, and accepts again once
    some are free: whoever waited is served, too."""
    bed = short_source
    local = bed.forward(echo)
    with Pinging(local) as trips, live(local), contextlib.ExitStack() as stack:
        socks = [stack.enter_context(connect(local)) for _ in range(TOO_MANY)]
        until(lambda: exhausted(bed, 0), what="no descriptor is left")
        growth = Growth(bed.meters[0])
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 1, what="a second of it")
        busy = growth.cpu / (time.monotonic() - began)
        served = 0
        while socks:
            sock = socks.pop(0)
            served += says(sock, b"hello")
            sock.close()
    until(lambda: works(local), what="new connections are served")
    figure(f"no descriptor left in the source, {busy:.2f} of a core meanwhile; {served} of {TOO_MANY} served; {trips}")
    check_sound(bed.source)
    assert served == TOO_MANY
    assert busy < CPU_SHARE


@pytest.mark.fault("target out of descriptors", "live connections unbroken, new ones served afterwards")
def test_target_without_descriptors(short_target: Bed, echo: int, figure: Figure) -> None:
    """A target that has no descriptor left refuses new channels, and keeps the ones it has; afterwards new ones work, and so
    do new SSH connections."""
    bed = short_target
    local = bed.forward(echo)
    with Pinging(local) as trips, live(local):
        with contextlib.ExitStack() as stack:
            refused = 0
            for _ in range(TOO_MANY):
                try:
                    says(stack.enter_context(connect(local)), b"hello")
                except OSError:
                    refused += 1
            assert exhausted(bed, 1)
        until(lambda: works(local), what="new channels are served")
        with bed.peer() as peer:
            peer.ask_something()
    figure(f"no descriptor left in the target: {TOO_MANY - refused} of {TOO_MANY} served, {refused} refused; {trips}")
    check_sound(bed.target)
    assert 0 < refused < TOO_MANY


@pytest.mark.fault("strangers take all descriptors of a target", "live connections unbroken, logins afterwards")
def test_endpoint_without_descriptors(short_target: Bed, echo: int, figure: Figure) -> None:
    """Strangers who take every descriptor of a target by connecting to its endpoint break no connection that stands; when
    they go, others can log in."""
    bed = short_target
    local = bed.forward(echo)
    with Pinging(local) as trips, live(local):
        with contextlib.ExitStack() as stack:
            for _ in range(TOO_MANY):
                stack.enter_context(connect(bed.endpoint[1]))
            until(lambda: exhausted(bed, 1), what="no descriptor is left")
            assert outcome(local)[0] == "reset"
        with bed.peer() as peer:
            peer.ask_something()
        until(lambda: works(local), what="new channels are served")
    figure(f"no descriptor left in the target, because of strangers: {trips}")
    check_sound(bed.target)
