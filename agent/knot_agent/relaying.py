"""Both ends of a relayed connection, as an agent sees them: a socket, whose other end is a channel of a hub connection.

On the source's side the `Relay` asks the hub for a channel to a space, by its id, which no rename changes. On the target's
side the hub opens one (`Inlet`), because the agent has registered its name. Between the two sockets runs the SSH session that
would run over TCP otherwise.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable

import asyncssh

from knot_agent.credentials import Credentials
from knot_keys.certificates import check_hub
from knot_keys.connections import ClientConnection, WrongHost, close, connect
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.transport import joined_pair
from knot_ssh.dataplane.windows import Budget
from knot_ssh.errors import Unavailable
from knot_ssh.names import RELAY_PORT, SpaceId
from knot_ssh.tasks import Tasks

RELAY_LOGIN = "knot"
"""Login name at the hub for who shows a certificate; any that is neither `join` nor a space's id."""

IDLE_SECONDS = 5
"""How long a hub connection waits for its first channel."""


class _Owner:
    """Owns one channel whose other side is one of two joined sockets."""

    def __init__(self, plane: DataPlane, sock: socket.socket | None) -> None:
        self.plane = plane
        self.tally = Tally()
        self.channel = Channel(self, sock)

    @property
    def budget(self) -> Budget:
        return self.plane.budget

    def channel_opened(self, channel: Channel) -> None:
        """Both sides have agreed."""

    def channel_refused(self, channel: Channel, reason: str) -> None:
        """The hub would not."""

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        sock.close()

    def channel_gone(self, channel: Channel) -> None:
        """The other socket has heard of it."""


class Inlet(_Owner):
    """One channel that the hub opens to us, for the endpoint."""

    def __init__(self, plane: DataPlane, hub: ClientConnection, accept: Callable[[socket.socket], None]) -> None:
        super().__init__(plane, None)
        self.connection = hub
        self._accept = accept

    def begin(self, channel: Channel) -> None:
        """Join it to a socket that the endpoint serves like any other."""
        try:
            ours, theirs = joined_pair()
        except OSError as error:
            channel.refuse(asyncssh.OPEN_RESOURCE_SHORTAGE, os.strerror(error.errno or errno.EIO).lower())
            return
        channel.confirm(ours)
        self._accept(theirs)

    def give_up(self) -> None:
        """There is nothing to give up: it is opened at once."""


class _Outlet(_Owner):
    """One channel that we ask the hub for."""

    def __init__(self, plane: DataPlane, sock: socket.socket) -> None:
        super().__init__(plane, sock)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def channel_opened(self, channel: Channel) -> None:
        if not self.answer.done():
            self.answer.set_result(None)

    def channel_refused(self, channel: Channel, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(Unavailable(f"relay: {reason}"))

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        super().channel_unanswered(channel, sock)
        self.channel_refused(channel, "the hub was lost")


class Relay:
    """Leads to endpoints through the hub, over one connection that is made when needed and ends when idle."""

    def __init__(self, plane: DataPlane, hub: Address, credentials: Credentials) -> None:
        self.hub = hub
        self._plane = plane
        self._credentials = credentials
        self._connection: ClientConnection | None = None
        self._connecting = asyncio.Lock()
        self._tasks = Tasks()
        credentials.on_certificates.append(self._start_afresh)

    async def open(self, space_id: SpaceId) -> socket.socket:
        """A socket that leads to the endpoint of this space; raises Unavailable."""
        async with self._connecting:
            connection = await self._connected()
        try:
            ours, theirs = joined_pair()
        except OSError as error:
            raise Unavailable(f"relay: {os.strerror(error.errno or errno.EIO).lower()}") from None
        outlet = _Outlet(self._plane, theirs)
        outlet.channel.ask(connection, space_id, RELAY_PORT)
        try:
            await outlet.answer
        except BaseException:
            outlet.channel.abort()
            ours.close()
            raise
        return ours

    async def close(self) -> None:
        """End the connection, and with it whatever goes through."""
        await self._tasks.cancel()
        if self._connection:
            await close(self._connection)

    async def _connected(self) -> ClientConnection:
        connection = self._connection
        if connection is None or connection.lost or connection.is_silent:
            connection = self._connection = await self._connect()
            self._tasks.start(self._keep(connection))
        return connection

    async def _connect(self) -> ClientConnection:
        host_cas = self._credentials.host_cas
        try:
            return await connect(
                self._plane,
                self.hub,
                RELAY_LOGIN,
                lambda shown: check_hub(shown, host_cas),
                credential=self._credentials.identity,
            )
        except asyncssh.PermissionDenied:
            raise Unavailable("relay: the hub refused our certificate") from None
        except WrongHost as error:
            raise Unavailable(f"relay: {error}") from None

    async def _keep(self, connection: ClientConnection) -> None:
        """Until nothing goes through any more."""
        try:
            await asyncio.sleep(IDLE_SECONDS)
            while not connection.is_idle:
                await connection.wait_idle()
        finally:
            if self._connection is connection:
                self._connection = None
            await close(connection)

    def _start_afresh(self) -> None:
        """Open the next channel with the new certificate; what goes through the present connection still does."""
        self._connection = None
