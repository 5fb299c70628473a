"""Stock ssh when connections break: what keeps it up comes back, and a broken stream is told where OpenSSH can tell."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.support.forgery import Forge, signed
from tests.support.plainssh import WAYS, Desk, Way, set_up
from tests.support.services import (
    Ends,
    answering,
    ask,
    connect,
    free_port,
    is_refused,
    noise,
    outcome,
    read_all,
    reset,
    serving,
)
from tests.support.system import AgentOf, Running
from tests.support.waiting import until

PART = noise(100_000)
SHORT = 8
"""Seconds that a certificate lasts."""
KEEPING_UP = {"AUTOSSH_GATETIME": "0", "AUTOSSH_POLL": "10"}
"""Seconds: the first connection need not have lasted, and the pause between tries stays short (autossh(1))."""


@pytest.fixture(scope="module")
def target(pair: Pair) -> AgentOf:
    """A space whose agent may be killed; its endpoint comes back to the same port."""
    made = pair.system.api("alice").post("api", "spaces", body={"name": "plain-target", "zone": "eu"})
    agent = AgentOf(pair.system, "plain-target", "alice", made["id"])
    agent.start(made["join_token"], listen=f"127.0.0.1:{free_port()}")
    return agent


@pytest.fixture(scope="module")
def desk(pair: Pair, target: AgentOf, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk that knows the target."""
    return set_up(pair.system, tmp_path_factory.mktemp("desk"), "alice")


@pytest.fixture(params=WAYS)
def breakable(request: pytest.FixtureRequest, desk: Desk, target: AgentOf) -> Way:
    """Each way to that target."""
    return WAYS[request.param](desk, target)


def again(agent: AgentOf) -> Callable[[], None]:
    """What starts the agent anew, where it was."""
    _, port = agent.endpoint()
    return lambda: void(agent.start(listen=f"127.0.0.1:{port}"))


def void(_: Running) -> None:
    """Nobody asks."""


def answers(local: int) -> Callable[[], bool]:
    return lambda: not is_refused(local) and ask(local) == b"up"


def children(running: Running) -> list[str]:
    """The processes that this one has started and that still run (proc(5))."""
    pid = running.process.pid
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def has_others(running: Running, before: list[str]) -> bool:
    return children(running) != before


@pytest.mark.skipif(not shutil.which("autossh"), reason="autossh is not installed")
def test_autossh_comes_back(breakable: Way, target: AgentOf) -> None:
    """`autossh -M 0`: the forward is back after the agent was killed, and after it was stopped in order, under a new ssh."""
    local = free_port()
    with (
        serving(answering(b"up")) as port,
        breakable.running("-L", f"127.0.0.1:{local}:127.0.0.1:{port}", program="autossh -M 0", **KEEPING_UP) as running,
    ):
        until(answers(local), what="the forward is up")
        for end in (target.kill, target.stop):
            start, before = again(target), children(running)
            end()
            until(partial(has_others, running, before), what="ssh has noticed")
            start()
            until(answers(local), what="the forward is back")


@pytest.mark.skipif(not shutil.which("autossh"), reason="autossh is not installed")
def test_autossh_outlives_its_certificate(pair: Pair, tmp_path: Path) -> None:
    """When an idle forward's certificate runs out, autossh comes again with a new one, and the forward is back."""
    desk, local = set_up(pair.system, tmp_path, "alice"), free_port()
    certificate, state = desk.folder / "id-cert.pub", desk.folder / "state.json"
    key = signed(valid=f"-1m:+{SHORT}s", key=lambda _: desk.folder / "id_ed25519")(Forge(pair.system, tmp_path))
    short = key.with_name(f"{key.name}-cert.pub").replace(certificate).read_bytes()
    way = Way(desk, "backend-api.knot")
    with (
        serving(answering(b"up")) as port,
        way.running("-L", f"127.0.0.1:{local}:127.0.0.1:{port}", program="autossh -M 0", **KEEPING_UP) as running,
    ):
        until(answers(local), what="the forward is up")
        state.write_text(json.dumps(json.loads(state.read_text()) | {"renew_after": 0}))
        running.wait_for("the certificate has expired; connect again with a new one", SHORT + 20)
        until(answers(local), what="the forward is back")
    assert certificate.read_bytes() != short


def test_killed_ssh(breakable: Way) -> None:
    """ssh is killed amid an upload: the service sees a reset, never a clean end."""
    ends, local = Ends(b"go on"), free_port()
    with serving(ends) as port, breakable.running("-v", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}") as running:
        running.wait_for("Local forwarding listening on")
        with connect(local) as sock:
            assert sock.recv(5) == b"go on"
            sock.sendall(PART)
            running.kill()
            until(lambda: ends.seen, what="the service has seen the end")
    ((how, got),) = ends.seen
    assert (how, PART.startswith(got)) == ("reset", True)


def test_killed_agent_with_stdio(breakable: Way, target: AgentOf) -> None:
    """The agent is killed amid a download over `-W`: what had come is there, and exit code 255 says that it is not all."""
    start = again(target)
    with serving(Ends(PART)) as port:
        command = ["ssh", "-F", str(breakable.desk.config), *breakable.options, "-W", f"127.0.0.1:{port}", breakable.host]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=breakable.desk.environment
        ) as ssh:
            assert ssh.stdout
            assert ssh.stdout.read(len(PART)) == PART
            target.kill()
            assert ssh.stdout.read() == b""
            assert ssh.wait(20) == 255
    start()


def test_killed_agent_with_local_forward(breakable: Way, target: AgentOf) -> None:
    """The same over `-L` looks to the program like an end: OpenSSH has no other. That ssh itself ends with 255 tells."""
    start, local = again(target), free_port()
    with serving(Ends(PART)) as port, breakable.running("-L", f"127.0.0.1:{local}:127.0.0.1:{port}") as running:
        until(lambda: not is_refused(local), what="ssh listens")
        with connect(local) as sock:
            assert receive(sock, len(PART)) == PART
            target.kill()
            assert read_all(sock) == ("fin", b"")
        assert running.wait() == 255
    start()


def receive(sock: socket.socket, size: int) -> bytes:
    with sock.makefile("rb") as stream:
        return stream.read(size)


def test_service_that_resets(breakable: Way) -> None:
    """The service resets amid a download: even `-W` ends with 0, as documented: OpenSSH does not look at how a channel ends."""

    def broken(sock: socket.socket) -> None:
        sock.sendall(PART)
        assert sock.recv(1) == b"!"
        reset(sock)

    with serving(broken) as port:
        result = breakable.run("-W", f"127.0.0.1:{port}", data=b"!")
    assert (result.returncode, PART.startswith(result.stdout)) == (0, True)


def test_refused_port(breakable: Way) -> None:
    """Nothing listens in the space: `-W` says so and fails; over `-L` the program sees an end, and ssh's stderr says why."""
    closed, local = free_port(), free_port()
    result = breakable.run("-W", f"127.0.0.1:{closed}")
    assert result.returncode == 255
    assert f"open failed: connect failed: port {closed}: connection refused" in result.stderr.decode()
    with breakable.running("-L", f"127.0.0.1:{local}:127.0.0.1:{closed}") as running:
        until(lambda: not is_refused(local), what="ssh listens")
        assert outcome(local) == ("fin", b"")
        running.wait_for("connection refused")
