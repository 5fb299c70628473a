"""What happens to spaces and forwards when agents, server and users come and go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.faults.beds import FULL
from tests.support.figures import Figure
from tests.support.services import answering, ask, connect, echo, free_port, outcome, read_all, serving
from tests.support.system import System, running_system
from tests.support.waiting import until


@pytest.fixture
def own(tmp_path: Path) -> Iterator[System]:
    """A system of the test's own, whose server may be stopped."""
    with running_system(tmp_path) as system:
        yield system


def forward_states(pair: Pair) -> dict[int, str]:
    return {forward["local_port"]: forward["state"] for forward in pair.frontend.forwards()}


def test_agent_restarts_without_a_token(pair: Pair) -> None:
    """A restarted agent uses the certificate it has, and needs no token."""
    agent = pair.system.space("restarts")
    agent.stop()
    running = agent.start()
    assert not any("joined" in line or "certified" in line for line in running.lines())


def test_lost_certificates_are_renewed_without_a_token(pair: Pair) -> None:
    """An agent whose certificates are gone or no good gets new ones by its enrolled key."""
    agent = pair.system.space("bare")
    agent.stop()
    for certificate in agent.folder.glob("*-cert.pub"):
        certificate.unlink()
    agent.start()
    until(lambda: len(list(agent.folder.glob("*-cert.pub"))) == 2, what="both certificates")


def test_persistent_forwards_survive_a_restart(pair: Pair) -> None:
    """After a restart the persistent forward is there and works; the other one is gone."""
    source = pair.system.space("keeps")
    kept, lost = free_port(), free_port()
    with serving(answering(b"kept")) as port:
        source.knot("port", "forward", str(kept), "backend-api", str(port), "--persistent")
        source.knot("port", "forward", str(lost), "backend-api", str(port))
        source.stop()
        source.start()
        until(source.forwards, what="the forward is restored")
        assert [forward["local_port"] for forward in source.forwards()] == [kept]
        assert ask(kept) == b"kept"
    source.knot("port", "stop", str(kept))
    source.stop()
    source.start()
    assert source.forwards() == []


def test_forward_made_for_a_stopped_source_starts_with_it(pair: Pair) -> None:
    """`--persistent` from the desktop pre-configures a source that is not running."""
    source = pair.system.space("later", run=False)
    local = free_port()
    with serving(answering(b"later")) as port:
        words = ("port", "forward", "later", str(local), "backend-api", str(port), "-p")
        assert pair.system.knot(*words, user="alice").startswith("Port forward stored")
        source.start(pair.system.knot("space", "token", "later", user="alice"))
        until(source.forwards, what="the forward is restored")
        assert ask(local) == b"later"


def test_target_restart_is_noticed(pair: Pair) -> None:
    """The port stays bound while the target restarts, and a connection made meanwhile is served when it is back."""
    target = pair.system.space("returns")
    local = free_port()
    with serving(answering(b"back")) as port:
        pair.frontend.knot("port", "forward", str(local), target.name, str(port))
        assert ask(local) == b"back"
        target.stop()
        until(lambda: forward_states(pair)[local] == "waiting", what="the forward waits")
        with connect(local) as sock:
            target.start()
            assert read_all(sock) == ("fin", b"back")
    pair.frontend.knot("port", "stop", str(local))


def test_waiting_connection_survives_a_replacement(pair: Pair) -> None:
    """A connection that waits for its target is served by it, although the forward leads elsewhere since."""
    target = pair.system.space("awaited")
    local = free_port()
    with serving(answering(b"awaited")) as port, serving(answering(b"other")) as other:
        pair.frontend.knot("port", "forward", str(local), "awaited", str(port))
        assert ask(local) == b"awaited"
        target.stop()
        until(lambda: forward_states(pair)[local] == "waiting", what="the forward waits")
        with connect(local) as sock:
            assert pair.frontend.running is not None
            pair.frontend.knot("port", "list")
            pair.frontend.knot("port", "forward", str(local), "backend-api", str(other))
            assert ask(local) == b"other"
            target.start()
            assert read_all(sock) == ("fin", b"awaited")
    pair.frontend.knot("port", "stop", str(local))


def test_waiting_connection_is_reset_after_the_timeout(pair: Pair, tmp_path: Path) -> None:
    """A connection whose target does not come is reset after `connect_timeout`."""
    config = tmp_path / "agent.yaml"
    config.write_text("connect_timeout: 0.3\n")
    source, _ = pair.system.space("impatient", run=False), pair.system.space("never", run=False)
    source.start(pair.system.knot("space", "token", "impatient", user="alice"), options=("--config", str(config)))
    local = free_port()
    source.knot("port", "forward", str(local), "never", "3000", "--force")
    assert outcome(local) == ("reset", b"")


def test_agents_come_back_after_a_server_restart(own: System) -> None:
    """A server restart closes no direct connection, and agents return by themselves."""
    source, target = own.space("source"), own.space("target")
    local = free_port()
    with serving(echo) as port:
        source.knot("port", "forward", str(local), "target", str(port))
        with connect(local) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            assert own.server is not None
            assert own.server.stop() == 0
            sock.sendall(b"b")
            assert sock.recv(1) == b"b"
            own.start()
            until(lambda: source.is_running() and target.is_running(), what="both agents are back")
            sock.sendall(b"c")
            assert sock.recv(1) == b"c"
        another = free_port()
        source.knot("port", "forward", str(another), "target", str(port))


def test_list_and_stop_work_inside_while_the_server_is_away(own: System) -> None:
    """Inside a space forwards can be listed and stopped without the server; making one says that it is away."""
    source = own.space("source")
    own.space("target")
    local = free_port()
    source.knot("port", "forward", str(local), "target", "3000")
    assert own.server is not None
    own.server.stop()
    assert f"{local} -> target:3000" in source.knot("port", "list")
    until(lambda: "hub lost" in "\n".join(source.running.lines() if source.running else []), what="the agent noticed")
    assert "not reachable" in source.knot("port", "forward", "8081", "target", "3000", code=1)
    source.knot("port", "stop", str(local))
    assert source.knot("port", "list") == "No active port forwards."


def test_deleted_space_is_cut_off_at_once(pair: Pair) -> None:
    """Deleting a space ends its agent, and its links with open connections, in both directions."""
    doomed = pair.system.space("doomed")
    out, into = free_port(), free_port()
    with serving(echo) as port:
        doomed.knot("port", "forward", str(out), "backend-api", str(port))
        pair.frontend.knot("port", "forward", str(into), "doomed", str(port))
        with connect(out) as a, connect(into) as b:
            for sock in (a, b):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            pair.system.knot("space", "delete", "doomed", user="alice")
            assert read_all(a)[0] == "reset"
            assert read_all(b)[0] == "reset"
    assert doomed.running is not None
    assert doomed.running.wait() == 1
    assert "was deleted" in doomed.running.lines()[-1]
    until(lambda: forward_states(pair)[into] == "failed", what="the forward says that its target is gone")
    doomed.start_without_waiting()
    assert doomed.running.wait() == 1
    assert "no longer accepts" in doomed.running.lines()[-1]
    pair.frontend.knot("port", "stop", str(into))


@pytest.mark.threat(22, "a space is deleted, another of its name is made", "the forward says that its target is gone")
def test_a_new_space_of_the_same_name_is_another(pair: Pair, figure: Figure) -> None:
    """A forward stays with the space it was made for: a re-created name does not inherit it."""
    first = pair.system.space("phoenix")
    local = free_port()
    with serving(answering(b"x")) as port:
        pair.frontend.knot("port", "forward", str(local), "phoenix", str(port), "--persistent")
        pair.system.knot("space", "delete", "phoenix", user="alice")
        second = pair.system.space("phoenix", run=False)
        second.folder = first.folder.with_name("phoenix-again")
        second.start(pair.system.knot("space", "token", "phoenix", user="alice"))
        until(lambda: forward_states(pair)[local] == "failed", what="the forward has failed")
        listing = json.loads(pair.frontend.knot("port", "list", "--json"))["forwards"]
        assert next(f["reason"] for f in listing if f["local_port"] == local) == "target gone"
        assert ask(local) == b""
    figure("failed: target gone, no byte from the other")
    pair.frontend.knot("port", "stop", str(local))


def test_rebuilt_space_joins_again_and_the_old_key_is_dead(pair: Pair) -> None:
    """With a new token a rebuilt agent takes the space's place: forwards stay, the old agent is cut off for good."""
    old = pair.system.space("rebuilt")
    local = free_port()
    with serving(answering(b"mine")) as port:
        old.knot("port", "forward", str(local), "backend-api", str(port), "--persistent")
        token = pair.system.knot("space", "token", "rebuilt", user="alice")
        fresh = type(old)(pair.system, "rebuilt", "alice", old.id)
        fresh.folder = old.folder.with_name("rebuilt-again")
        fresh.start_without_waiting(token)
        assert old.running is not None
        assert old.running.wait() == 1
        assert "joined again" in old.running.lines()[-1]
        fresh_running = fresh.running
        assert fresh_running is not None
        fresh_running.wait_for("hub connected")
        until(lambda: fresh.forwards() and fresh.forwards()[0]["state"] == "listening", what="the forward is back")
        assert ask(local) == b"mine"
        old.start_without_waiting()
        assert old.running.wait() == 1
        assert "no longer accepts" in old.running.lines()[-1]
        assert fresh.is_running()


def test_same_token_again_after_a_restart_is_no_new_join(pair: Pair) -> None:
    """A container that keeps its folder and its environment restarts with its used token as if it had none."""
    agent = pair.system.space("container", run=False)
    token = pair.system.knot("space", "token", "container", user="alice")
    agent.start(token)
    agent.stop()
    agent.start(token)


def test_reusable_token_serves_many_builds(pair: Pair) -> None:
    """A reusable token lets build after build take the space's place."""
    agent = pair.system.space("template", run=False)
    token = pair.system.knot("space", "token", "template", "--reusable", user="alice")
    for build in range(3):
        agent.folder = agent.folder.with_name(f"template-{build}")
        agent.start(token)
        agent.stop()


def test_deleted_user_loses_every_agent(pair: Pair) -> None:
    """Deleting a user cuts their agents off, and the name is held back while a certificate of theirs is good."""
    agent = pair.system.space("hers", owner="carol")
    pair.system.knot("user", "delete", "carol", user="admin")
    assert agent.running is not None
    assert agent.running.wait() == 1
    assert "held back" in pair.system.knot("user", "create", "carol", user="admin", code=1)


@pytest.mark.skipif(not FULL, reason="takes twenty seconds, and the faults have transfers past renewals; set KNOT_FULL=1")
def test_certificates_are_renewed_while_data_flows(tmp_path: Path) -> None:
    """Through several short certificate lives an open connection goes on and new ones are served."""
    with running_system(tmp_path, "--certificate-lifetime", "10") as system, serving(echo) as port:
        source, target = system.space("source"), system.space("target")
        local = free_port()
        source.knot("port", "forward", str(local), "target", str(port))

        def renewals() -> int:
            logs = [agent.running.lines() for agent in (source, target) if agent.running]
            return min(len([line for line in lines if "certified" in line]) for lines in logs)

        with connect(local) as long:

            def alive() -> bool:
                long.sendall(b"x")
                with connect(local) as short:
                    short.sendall(b"y")
                    return long.recv(1) == b"x" and short.recv(1) == b"y" and renewals() >= 4

            until(alive, 60, "four renewals")
