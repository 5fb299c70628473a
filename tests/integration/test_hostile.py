"""Enrolled agents that behave badly: towards the hub, and towards the spaces of others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import asyncssh
import pytest

from knot_keys.certificates import check_hub, read_certificate
from knot_keys.connections import ClientConnection, Credential, close, connect
from knot_keys.keyfiles import load_key, parse_public_key, public_line
from knot_keys.possession import for_host_key, prove
from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput, Conflict, KnotError, Unavailable
from knot_ssh.names import SpaceId
from knot_ssh.rpc import Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import CertificateRequest, Hello, OnSpace
from tests.conftest import Pair
from tests.support.planes import stock_plane
from tests.support.ports import free_ports
from tests.support.services import answering, ask, free_port, serving
from tests.support.system import AgentOf
from tests.support.waiting import becomes, until


@contextlib.asynccontextmanager
async def hub_connection(agent: AgentOf) -> AsyncIterator[ClientConnection]:
    """A connection to the hub with an agent's enrolled key, which says nothing by itself."""
    ca = parse_public_key(agent.system.api(agent.owner).get("api", "ca")["host_ca"])
    credential = Credential(load_key(agent.identity()[0]))
    check = lambda shown: check_hub(shown, [ca])  # noqa: E731
    connection = await connect(stock_plane(), Address.parse(agent.system.hub), agent.id, check, credential=credential)
    try:
        yield connection
    finally:
        await close(connection)


@contextlib.asynccontextmanager
async def conversation(agent: AgentOf) -> AsyncIterator[Peer]:
    """A control conversation that says only what the test says."""
    tasks = Tasks()
    async with hub_connection(agent) as connection:
        stdin, stdout, _ = await connection.open_session(subsystem="knot-control", encoding=None)
        peer = Peer(stdout, stdin, {})
        tasks.start(peer.run())
        try:
            yield peer
        finally:
            await tasks.cancel()


async def test_nothing_is_answered_before_hello(pair: Pair) -> None:
    """An agent that has not said hello can ask nothing."""
    agent = pair.system.space("mute")
    agent.stop()
    async with conversation(agent) as peer:
        with pytest.raises(Conflict, match="hello"):
            await peer.call("port.list", OnSpace(source="frontend"))


async def test_silent_connection_does_not_outlive_its_space(pair: Pair) -> None:
    """A connection that never said hello ends with its space like any other."""
    agent = pair.system.space("lurker")
    agent.stop()
    async with hub_connection(agent) as connection, asyncio.timeout(10):
        await asyncio.to_thread(pair.system.knot, "space", "delete", "lurker", user="alice")
        await connection.wait_closed()


async def test_only_ones_own_host_key_is_certified(pair: Pair) -> None:
    """bob's agent has alice's public host key, and cannot have it certified for itself."""
    agent = pair.system.space("forger", owner="bob")
    agent.stop()
    stolen = next(space["host_key"] for space in pair.system.spaces("alice") if space["name"] == "backend-api")
    own = load_key(agent.folder / "host_key")
    async with conversation(agent) as peer:
        await peer.call("agent.hello", Hello(version="0", addresses=[]))
        for key in (own, load_key(agent.identity()[0])):
            request = CertificateRequest(host_key=stolen, signature=prove(key, for_host_key(SpaceId(agent.id))))
            with pytest.raises(BadInput, match="possession"):
                await peer.call("agent.certify", request)
        other = CertificateRequest(host_key=public_line(own), signature=prove(own, for_host_key(SpaceId(pair.backend.id))))
        with pytest.raises(BadInput, match="possession"):
            await peer.call("agent.certify", other)


async def test_addresses_that_are_none_are_refused(pair: Pair) -> None:
    """A hello with nonsense for an address is refused, so that no source ever dials it."""
    agent = pair.system.space("nonsense")
    agent.stop()
    async with conversation(agent) as peer:
        with pytest.raises(BadInput):
            await peer.call("agent.hello", Hello.model_construct(version="0", addresses=["nonsense"]))


async def test_hub_opens_no_second_session_and_no_other_subsystem(pair: Pair) -> None:
    """One subsystem, once: nothing else can be started on a connection to the hub."""
    agent = pair.system.space("curious")
    agent.stop()
    async with hub_connection(agent) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_session(subsystem="knot-join", encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_session(subsystem="knot-control", encoding=None)
    async with hub_connection(agent) as connection:
        with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError)):
            await connection.forward_remote_port("", 0, "127.0.0.1", 1)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", 22)


def test_deleting_a_space_disturbs_nobody_else(pair: Pair) -> None:
    """When bob deletes spaces, alice's link is not even dialled again."""
    with serving(answering(b"x")) as port:
        local = pair.forward(port)
        assert ask(local) == b"x"
        assert pair.frontend.running is not None
        before = [line for line in pair.frontend.running.lines() if "link up" in line]
        for number in range(3):
            pair.system.space(f"brief-{number}", owner="bob")
            pair.system.knot("space", "delete", f"brief-{number}", user="bob")
        assert ask(local) == b"x"
        assert [line for line in pair.frontend.running.lines() if "link up" in line] == before


def test_hundred_forwards_at_once(pair: Pair) -> None:
    """A hundred commands at the same moment inside one space all succeed."""
    source = pair.system.space("busy")
    ports = free_ports(100)

    def forward(port: int) -> object:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(source.folder / "agent.sock"))
            params = {"forward": {"local_port": port, "space": "backend-api", "remote_port": 3000}}
            request = {"jsonrpc": "2.0", "id": 1, "method": "port.forward", "params": params}
            sock.sendall(json.dumps(request).encode() + b"\n")
            return json.loads(sock.makefile().readline()).get("error")

    with ThreadPoolExecutor(len(ports)) as pool:
        assert set(pool.map(forward, ports)) == {None}
    assert [entry["local_port"] for entry in source.forwards()] == ports


def test_agents_survive_a_store_that_is_locked(pair: Pair) -> None:
    """While another process locks the store an agent that has certificates connects all the same; writers are told."""
    agent = pair.system.space("patient")
    agent.stop()
    store = sqlite3.connect(pair.system.folder / "server" / "store.db", isolation_level=None)
    try:
        store.execute("BEGIN IMMEDIATE")
        running = agent.start_without_waiting()
        running.wait_for("hub connected")
        with pytest.raises(Unavailable) as caught:
            pair.system.api("alice").post("api", "spaces", body={"name": "while-locked", "zone": "eu"})
        assert caught.value.code == "store_unavailable"
        store.execute("ROLLBACK")
    finally:
        store.close()
    assert agent.is_running()


def test_two_agents_with_one_key_do_not_fight(pair: Pair) -> None:
    """A copied data folder started twice makes a few reconnections with growing pauses, and both are told."""
    import shutil

    agent = pair.system.space("twin")
    twin = AgentOf(pair.system, "twin", "alice", agent.id)
    twin.folder = agent.folder.with_name("copy")
    shutil.copytree(agent.folder, twin.folder, ignore=shutil.ignore_patterns("*.sock"))
    running = twin.start_without_waiting()
    assert agent.running is not None
    for one in (agent.running, running):
        one.wait_for("another agent has connected with this space's key")
    arrivals = [line for line in running.lines() + agent.running.lines() if "hub connected" in line]
    assert len(arrivals) < 20
    assert running.stop() == 0


def test_joining_again_in_the_same_folder(pair: Pair) -> None:
    """An agent that joins with a new token in its old folder is reached again."""
    agent = pair.system.space("again")
    local = free_port()
    with serving(answering(b"again")) as port:
        pair.frontend.knot("port", "forward", str(local), "again", str(port))
        assert ask(local) == b"again"
        agent.stop()
        agent.start(pair.system.knot("space", "token", "again", user="alice"))
        until(lambda: ask(local) == b"again", what="the forward works again")


def test_api_wants_json(pair: Pair) -> None:
    """A body that is not said to be JSON is refused with 415, a huge one with 413."""
    api = pair.system.api("alice")
    api._headers = api._headers | {"Content-Type": "text/plain"}
    with pytest.raises(KnotError) as caught:
        api.post("api", "spaces", body={"name": "x", "zone": "eu"})
    assert caught.value.http_status == 415
    with pytest.raises(KnotError) as caught:
        pair.system.api("alice").post("api", "spaces", body={"name": "x" * 600_000, "zone": "eu"})
    assert caught.value.http_status == 413


async def test_agent_that_does_not_read_cannot_delay_its_end(pair: Pair) -> None:
    """A deleted space whose agent stopped reading, with answers piled up for it, is refused everywhere in seconds."""
    agent = pair.system.space("deaf")
    agent.stop()
    identity, certificate = agent.identity()
    credential = Credential(load_key(identity), read_certificate(certificate.read_text()))
    async with hub_connection(agent) as connection:
        stdin, stdout, _ = await connection.open_session(subsystem="knot-control", encoding=None, window=2048)
        stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"agent.hello","params":{"version":"0","addresses":[]}}\n')
        while b"membership" not in await stdout.readline():
            pass
        stdout.channel.pause_reading()
        for number in range(2000):
            stdin.write(b'{"jsonrpc":"2.0","id":%d,"method":"no.such.method","params":{}}\n' % number)
        async with asyncio.timeout(15):
            await asyncio.to_thread(pair.system.knot, "space", "delete", "deaf", user="alice")
        host, port = pair.backend.endpoint()
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(stock_plane(), Address(host, port), "knot", lambda _certificate: None, credential=credential)
        async with asyncio.timeout(15):
            await connection.wait_closed()


async def test_who_is_gone_before_the_answer(pair: Pair) -> None:
    """Who hangs up before a refusal has reached them is no failure of the hub's: its log has the reason, and no more."""
    system, server = pair.system, pair.system.server
    assert server
    ca = parse_public_key(system.api("alice").get("api", "ca")["host_ca"])
    check = lambda shown: check_hub(shown, [ca])  # noqa: E731
    token = system.knot("space", "token", "backend-api", user="alice").strip()
    before = len(server.lines())
    for is_patient in (False, False, True):
        connection = await connect(stock_plane(), Address.parse(system.hub), "join", check, password=token)
        stdin, _, stderr = await connection.open_session(subsystem="knot-join-sshd", encoding=None)
        stdin.write(b"not a request\n")
        stdin.write_eof()
        if is_patient:
            assert b"the request must be two public key lines" in await stderr.read()
        else:
            stdin.channel.close()
        await close(connection)
    await becomes(lambda: len([line for line in server.lines()[before:] if "not answered" in line]) == 3)
    assert not [line for line in server.lines()[before:] if "task failed" in line]
