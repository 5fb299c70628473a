"""An SSH connection inside a channel of another, as a relayed link is: whole streams, ends, and what is left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from asyncssh.connection import SSHClientConnectionOptions

from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.limits import MIB
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.transport import joined_pair
from tests.support.reactors import on_both
from tests.support.services import noise
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, FakeOwner
from tests.unit.knot_ssh.dataplane.duo import OPTIONS, ClientConnection, Duo, ServerConnection, connect, server_options, serving


@asynccontextmanager
async def nested(plane: DataPlane) -> AsyncIterator[tuple[Duo, Duo]]:
    """Gives the outer connection, which goes over TCP, and the inner one, which goes through a channel of it."""
    async with serving(plane) as (inner_port, inner_made), serving(plane) as (outer_port, outer_made):
        outer = await connect(plane, "127.0.0.1", outer_port)
        ours, theirs = joined_pair()
        owner = FakeOwner(plane)
        Channel(owner, theirs).ask(outer, "127.0.0.1", inner_port)
        inner = await logged_in(plane, ours)
        try:
            yield Duo(outer, outer_made[0]), Duo(inner, inner_made[0])
        finally:
            for connection in (inner, outer):
                connection.abort()
                await connection.wait_gone()
            await becomes(lambda: owner.heard == ["opened", "gone"], PATIENCE)


@asynccontextmanager
async def joined_directly(plane: DataPlane) -> AsyncIterator[Duo]:
    """A client and a server over the two ends of a pair."""
    made: list[ServerConnection] = []
    make = await server_options(plane, made)
    near, far = joined_pair()
    plane.accept(far, make())
    client = await logged_in(plane, near)
    try:
        yield Duo(client, made[0])
    finally:
        for connection in (client, made[0]):
            connection.abort()
            await connection.wait_gone()


async def logged_in(plane: DataPlane, sock: socket.socket) -> ClientConnection:
    """A client over this socket."""
    built = await SSHClientConnectionOptions.construct(
        config=None, host="joined", port=0, username="user", client_keys=None, agent_path=None, known_hosts=None,
        x509_trusted_certs=None, x509_trusted_cert_paths=[], gss_host=None, encoding=None, **OPTIONS,
    )  # fmt: skip
    built.waiter = asyncio.get_running_loop().create_future()
    connection = ClientConnection(plane, asyncio.get_running_loop(), built, wait="auth")
    async with asyncio.timeout(PATIENCE):
        await plane.carry(sock, connection)
        await built.waiter
    return connection


@on_both
async def test_over_a_pair(plane: DataPlane) -> None:
    """An SSH connection over two joined sockets carries streams both ways, whole, and has no address to name."""
    async with joined_directly(plane) as duo, duo.forwarded() as stream:
        await stream.exchange(noise(3 * MIB), noise(2 * MIB))
        assert not duo.server.get_extra_info("peername")


@on_both
async def test_in_a_channel(plane: DataPlane) -> None:
    """So does one inside a channel of another, also for several streams at once; half-closed ones, too."""
    async with nested(plane) as (_, inner), inner.forwarded() as one, inner.forwarded() as other:
        await asyncio.gather(one.exchange(noise(2 * MIB), b"short"), other.exchange(b"", noise(MIB)))


@on_both
async def test_conversation(plane: DataPlane) -> None:
    """Small questions and answers cross without waiting for more."""
    async with nested(plane) as (_, inner), inner.forwarded() as stream, asyncio.timeout(PATIENCE):
        for _ in range(200):
            await stream.ask()


@pytest.mark.parametrize("side", ["client", "server"])
@on_both
async def test_outer_connection_is_lost(plane: DataPlane, side: str) -> None:
    """When the outer connection is lost the inner one is, on both ends, and its streams are reset."""
    async with nested(plane) as (outer, inner), inner.forwarded() as stream:
        await stream.ask()
        (outer.client if side == "client" else outer.server).abort()
        await stream.is_reset()
        await becomes(lambda: inner.client.lost and inner.server.lost, PATIENCE)


@pytest.mark.parametrize("side", ["client", "server"])
@on_both
async def test_inner_connection_is_lost(plane: DataPlane, side: str) -> None:
    """When the inner connection ends its streams are reset, its channel of the outer one ends, and that one goes on."""
    async with nested(plane) as (outer, inner):
        async with inner.forwarded() as stream:
            await stream.ask()
            (inner.client if side == "client" else inner.server).abort()
            await stream.is_reset()
        await becomes(lambda: outer.client.is_idle and outer.server.is_idle, PATIENCE)
        async with outer.forwarded() as stream:
            await stream.ask()


@on_both
async def test_slow_reader(plane: DataPlane) -> None:
    """A reader inside that stops holds up its own stream alone, and gets everything when it goes on."""
    data = noise(24 * MIB)
    loop = asyncio.get_running_loop()
    async with nested(plane) as (_, inner), inner.forwarded() as slow, inner.forwarded() as other:
        sending = asyncio.ensure_future(loop.sock_sendall(slow.app, data))
        for _ in range(20):
            await other.ask()
        assert not sending.done()
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(slow.service, 1 << 20)
        await sending
        assert (bytes(got) == data) is True
