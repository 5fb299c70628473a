"""A client and a server connection in one process, over real TCP, and what is forwarded between them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from typing import Any

import asyncssh
from asyncssh.connection import SSHClientConnectionOptions, SSHServerConnectionOptions
from asyncssh.packet import UInt32

from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.connection import CarryingConnection
from knot_ssh.dataplane.dialling import Dial
from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import AsyncioReactor
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, FakeOwner, connected

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
SIDES = ["fast-fast", "fast-stock", "stock-fast", "stock-stock"]
"""The data planes of client and server."""
OPTIONS: dict[str, Any] = {
    "encryption_algs": ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"],
    "mac_algs": ["hmac-sha2-256-etm@openssh.com"],
    "compression_algs": ["none"],
    "keepalive_interval": 0,
}
BUFFERS = 256 * 1024
"""Bytes that the sockets of an application hold."""


class Counted(CarryingConnection):
    """Knows how often keys were exchanged, and what it was lost for."""

    exchanges = 0
    error: Exception | None = None

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        self.exchanges += 1

    def _cleanup(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        super()._cleanup(exc)

    def exchange_keys(self) -> None:
        """Begin to exchange keys now, as asyncssh does after a while."""
        self._send_kexinit()
        self._kexinit_sent = True


class ClientConnection(Counted, asyncssh.SSHClientConnection):
    """A connection that we made."""


class ServerConnection(Counted, asyncssh.SSHServerConnection):
    """A connection that came in."""


class Door(asyncssh.SSHServer):
    """Lets everybody in, to every port of this machine. Owns the channels of its connection."""

    connection: ServerConnection

    def __init__(self, plane: DataPlane) -> None:
        self.owner = FakeOwner(plane)

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, ServerConnection)
        self.connection = conn

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return Channel(self.owner), Dial(self.connection, ["127.0.0.1"], dest_port)


class Stream:
    """A forwarded connection: what the application and the service have in their hands."""

    def __init__(self, channel: Channel, app: socket.socket, service: socket.socket) -> None:
        self.channel = channel
        self.app = app
        self.service = service

    async def exchange(self, there: bytes, back: bytes) -> None:
        """Both say everything at once and end; each reads what the other has said, and its end."""
        work = read_all(self.service), read_all(self.app), say(self.app, there), say(self.service, back)
        got = await asyncio.gather(*work, return_exceptions=True)
        for result in got:
            if isinstance(result, BaseException):
                raise result
        assert (got[0] == there) is True
        assert (got[1] == back) is True

    async def ask(self, question: bytes = b"question", answer: bytes = b"answer") -> None:
        """One step of a conversation."""
        loop = asyncio.get_running_loop()
        for one, other, text in ((self.app, self.service, question), (self.service, self.app, answer)):
            await loop.sock_sendall(one, text)
            got = b""
            async with asyncio.timeout(PATIENCE):
                while len(got) < len(text):
                    got += await loop.sock_recv(other, len(text)) or b"END"
            assert (got == text) is True

    async def is_reset(self) -> None:
        """Both ends see a reset."""
        for sock in (self.app, self.service):
            try:
                await read_all(sock)
            except ConnectionResetError:
                continue
            raise AssertionError("a clean end")


class Duo:
    """A client, its server, and the owners of their channels."""

    def __init__(self, client: ClientConnection, server: ServerConnection) -> None:
        self.client = client
        self.server = server
        self.owner = FakeOwner(client.plane)

    @property
    def doors(self) -> FakeOwner:
        """The owner of the server's channels."""
        door = self.server.get_owner()
        assert isinstance(door, Door)
        return door.owner

    def ask(self, near: socket.socket, port: int) -> Channel:
        """Have this socket carried to this port."""
        channel = Channel(self.owner, near)
        channel.ask(self.client, "127.0.0.1", port)
        return channel

    @asynccontextmanager
    async def forwarded(self) -> AsyncIterator[Stream]:
        """A forwarded connection."""
        with closing(listener()) as listening:
            near, app = connected(BUFFERS)
            channel = self.ask(near, listening.getsockname()[1])
            async with asyncio.timeout(PATIENCE):
                service, _ = await asyncio.get_running_loop().sock_accept(listening)
        with app, service:
            yield Stream(channel, app, service)

    def send(self, kind: int, channel: Channel, payload: bytes = b"") -> None:
        """Send the server a packet for this channel of the client's."""
        self.client.send_packet(kind, UInt32(channel._peer_number), payload)

    async def server_lost(self) -> Exception | None:
        """Wait until the server has given the connection up; gives the reason."""
        await becomes(lambda: self.server.lost, PATIENCE)
        return self.server.error


class Relay:
    """A network between client and server that alters or drops what it carries, when told to."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.listening = listener()
        self.silent = False
        self.flip: str = ""
        self.carried = 0
        self._tasks: list[asyncio.Task[None]] = [asyncio.ensure_future(self._accept())]
        self._sockets: list[socket.socket] = []

    @property
    def address(self) -> tuple[str, int]:
        name = self.listening.getsockname()
        return name[0], name[1]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for sock in [*self._sockets, self.listening]:
            sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        client, _ = await loop.sock_accept(self.listening)
        server = socket.socket()
        server.setblocking(False)
        self._sockets += [client, server]
        for sock in client, server:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(server, ("127.0.0.1", self.port))
        self._tasks.append(asyncio.ensure_future(self._carry(client, server, "there")))
        self._tasks.append(asyncio.ensure_future(self._carry(server, client, "back")))

    async def _carry(self, source: socket.socket, target: socket.socket, direction: str) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(source, 65536):
            self.carried += len(data)
            if self.silent:
                continue
            if self.flip == direction:
                data = bytes([*data[:-1], data[-1] ^ 1])
            with suppress(OSError):
                await loop.sock_sendall(target, data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def listener() -> socket.socket:
    """A socket that listens on this machine."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFERS)
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    return sock


def stock() -> DataPlane:
    """A data plane over asyncio, for any loop."""
    return DataPlane(AsyncioReactor(), Limits(), fast=False)


def planes(plane: DataPlane, sides: str, limits: Limits | None = None) -> tuple[DataPlane, DataPlane]:
    """The data planes of client and server; `limits` are the server's."""
    client, server = (
        DataPlane(plane.reactor if kind == "fast" else AsyncioReactor(), Limits(), fast=kind == "fast")
        for kind in sides.split("-")
    )
    server.limits = limits or server.limits
    return client, server


async def server_options(plane: DataPlane, made: list[ServerConnection], **options: Any) -> Callable[[], ServerConnection]:
    """Makes server connections, and notes them."""
    built = await SSHServerConnectionOptions.construct(
        config=None, server_factory=lambda: Door(plane), server_host_keys=[HOST_KEY], gss_host=None, encoding=None,
        x509_trusted_certs=None, x509_trusted_cert_paths=[], **(OPTIONS | options),
    )  # fmt: skip

    def make() -> ServerConnection:
        made.append(ServerConnection(plane, asyncio.get_running_loop(), built))
        return made[-1]

    return make


async def connect(plane: DataPlane, host: str, port: int, **options: Any) -> ClientConnection:
    """A client that is logged in."""
    built = await SSHClientConnectionOptions.construct(
        config=None, host=host, port=port, username="user", client_keys=None, agent_path=None, known_hosts=None,
        x509_trusted_certs=None, x509_trusted_cert_paths=[], gss_host=None, encoding=None, **(OPTIONS | options),
    )  # fmt: skip
    built.waiter = asyncio.get_running_loop().create_future()
    connection = ClientConnection(plane, asyncio.get_running_loop(), built, wait="auth")
    async with asyncio.timeout(PATIENCE):
        await plane.connect(host, port, connection)
        await built.waiter
    return connection


@asynccontextmanager
async def serving(plane: DataPlane, **options: Any) -> AsyncIterator[tuple[int, list[ServerConnection]]]:
    """A server; gives its port, and the connections that came in."""
    sock = listener()
    made: list[ServerConnection] = []
    server = plane.serve(sock, await server_options(plane, made, **options))
    try:
        yield sock.getsockname()[1], made
    finally:
        server.close()
        for connection in made:
            connection.abort()
            await connection.wait_gone()


def for_client(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are not the server's alone."""
    return {name: value for name, value in options.items() if not name.startswith("server_")}


@asynccontextmanager
async def joined(client: DataPlane, server: DataPlane, **options: Any) -> AsyncIterator[Duo]:
    """A client and its server; both are gone at the end."""
    async with serving(server, **options) as (port, made):
        connection = await connect(client, "127.0.0.1", port, **for_client(options))
        try:
            yield Duo(connection, made[0])
        finally:
            connection.abort()
            await connection.wait_gone()


@asynccontextmanager
async def relayed(client: DataPlane, server: DataPlane, **options: Any) -> AsyncIterator[tuple[Duo, Relay]]:
    """The same over a network that the test is master of."""
    async with serving(server, **options) as (port, made):
        relay = Relay(port)
        try:
            connection = await connect(client, *relay.address, **for_client(options))
            yield Duo(connection, made[0]), relay
            connection.abort()
            await connection.wait_gone()
        finally:
            await relay.close()


@contextmanager
def app_socket() -> Iterator[socket.socket]:
    """The near end of an application's connection; the far end is closed at the end."""
    near, far = connected()
    with far:
        yield near


async def say(sock: socket.socket, data: bytes) -> None:
    """Send everything, then end the stream."""
    async with asyncio.timeout(4 * PATIENCE):
        await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


async def read_all(sock: socket.socket) -> bytes:
    """Everything to the end."""
    data = bytearray()
    async with asyncio.timeout(4 * PATIENCE):
        while part := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            data += part
    return bytes(data)
