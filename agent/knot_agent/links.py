"""Links: the agent's long-lived SSH connections, one to each target that a forward points to.

A link keeps trying until it is released. While it has a connection it is up, and channels open at once; otherwise a
channel waits for it, up to a limit. When our certificate is replaced the link dials again, new channels use the new
connection, and the old one ends with its last channel. So does the whole link once nobody holds it any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncssh
import structlog

from knot_agent.admission import LOCALHOST
from knot_agent.credentials import Credentials
from knot_keys.certificates import check_host
from knot_keys.connections import ClientConnection, HostRefused, close, connect
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import NotFound, Unavailable
from knot_ssh.names import Port, Principal, SpaceId, qualified_name
from knot_ssh.retrying import backoff, until_done
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Target

log = structlog.get_logger(__name__)

ENDPOINT_LOGIN = "knot"
"""Login name at endpoints; ours ignore it, an ordinary sshd needs an account."""

STEADY = 10.0
"""Seconds a connection must have lasted for the next one to be made without a wait."""

Locate = Callable[[SpaceId], Awaitable[Target]]
"""Asks the hub where a target is; raises NotFound when it is gone, Unavailable when the hub is away."""


@dataclass(frozen=True, slots=True)
class Up:
    """There is a connection to this address."""

    connection: ClientConnection
    address: Address


@dataclass(frozen=True, slots=True)
class Down:
    """There is none, for this reason. `gone`: nor will there be, the target was deleted."""

    reason: str
    gone: bool = False


CONNECTING = Down("connecting")


class Link:
    """One target. `state` is Up or Down."""

    def __init__(self, plane: DataPlane, target: Target, credentials: Credentials, locate: Locate) -> None:
        self.target = target
        self.state: Up | Down = CONNECTING
        self.tally = Tally()
        self._plane = plane
        self._credentials = credentials
        self._locate = locate
        self._connections: set[ClientConnection] = set()
        self._news = asyncio.Event()
        self._up = asyncio.Event()
        self._renew = asyncio.Event()
        self._waiting = 0
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()
        self._tasks = Tasks()
        self._keeper = self._tasks.start(self._keep())

    def update(self, target: Target) -> None:
        """Take over what the hub says of the target, and try at once if it may be reached now."""
        self.target = target
        self._news.set()

    def renew(self) -> None:
        """Dial again with the new certificate, and let the present connection end with its last channel."""
        self._renew.set()

    def cut_revoked(self) -> None:
        """End connections to a host whose certificate is void now."""
        for connection in list(self._connections):
            certificate = connection.host_certificate
            if certificate and self._credentials.revoked.covers_certificate(certificate):
                connection.abort()

    def carry(self, channel: Channel, port: Port) -> bool:
        """Ask the target for a channel to this port, if the link is up; gives whether it is."""
        state = self.state
        if isinstance(state, Up):
            channel.ask(state.connection, LOCALHOST, int(port))
            return True
        return False

    async def wait_up(self, patience: float) -> None:
        """Wait up to so many seconds for a connection; raises Unavailable. Whoever waits is served before the link ends."""
        if isinstance(self.state, Down) and self.state.gone:
            raise Unavailable(f"{self.target.name}: {self.state.reason}")
        self._waiting += 1
        self._nobody_waits.clear()
        try:
            async with asyncio.timeout(patience):
                while not isinstance(self.state, Up):  # it may be lost again before we are woken
                    await self._up.wait()
        except TimeoutError:
            reason = self.state.reason if isinstance(self.state, Down) else "no answer"
            raise Unavailable(f"{self.target.name}: {reason}") from None
        finally:
            self._waiting -= 1
            if self._waiting == 0:
                self._nobody_waits.set()

    async def finish(self) -> None:
        """Serve whoever waits already, dial no more, let every open channel end, then close."""
        await self._nobody_waits.wait()
        self._keeper.cancel()
        await asyncio.gather(*(connection.wait_idle() for connection in self._connections))
        await self.close()

    async def close(self) -> None:
        """End the link and every connection of it."""
        await self._tasks.cancel()
        await asyncio.gather(*(close(connection) for connection in list(self._connections)))

    async def _keep(self) -> None:
        """Connect, stay connected, start again: at once, unless the last connection did not last."""
        loop = asyncio.get_running_loop()
        short_lives = 0
        while True:
            try:
                up = await until_done(self._connect, self._trouble, final=(NotFound,), wake=self._news)
            except NotFound:
                self.state = Down("target gone", gone=True)
                log.warning("link ended", target=self.target.name, reason="the target was deleted")
                self._news.clear()
                await self._news.wait()
                continue
            self.state = up
            self._up.set()
            up_at = loop.time()
            log.info("link up", target=self.target.name, address=str(up.address))
            holding = self._tasks.start(self._hold(up.connection))
            renewing = asyncio.ensure_future(self._renew.wait())
            try:
                await asyncio.wait((holding, renewing), return_when=asyncio.FIRST_COMPLETED)
            finally:
                renewing.cancel()
                self._up.clear()
            if holding.done():
                self.state = Down("connection lost")
                log.warning("link down", target=self.target.name, reason="connection lost")
                short_lives = 0 if loop.time() - up_at > STEADY else short_lives + 1
                await self._wait_for_news(backoff(short_lives) if short_lives else 0)
            else:
                self.state = CONNECTING
                self._tasks.start(_retire(up.connection))

    async def _wait_for_news(self, patience: float) -> None:
        """Wait so many seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._news.wait()

    async def _connect(self) -> Up:
        """One attempt at every address. Raises Unavailable, or NotFound when the target was deleted."""
        self._renew.clear()
        self._news.clear()
        with contextlib.suppress(Unavailable):  # without the hub, what is known has to do
            self.target = await self._locate(self.target.id)
        target, credentials = self.target, self._credentials
        if not credentials.certified:
            raise Unavailable("this agent has no valid certificate; is the server reachable?")
        if not target.addresses:
            raise Unavailable("the target is not reachable" if target.running else "the target is not running")
        names = [str(target.id), qualified_name(target.name, Principal(target.owner, target.zone))]
        problems = []
        for address in map(Address.parse, target.addresses):
            try:
                connection = await connect(
                    self._plane,
                    address,
                    ENDPOINT_LOGIN,
                    lambda shown: check_host(shown, [credentials.host_ca], names, credentials.revoked),
                    credential=credentials.identity,
                )
            except asyncssh.PermissionDenied:
                problems.append(f"{address}: the target refused our certificate")
            except (Unavailable, HostRefused) as error:
                problems.append(str(error))
            else:
                connection.tally = self.tally
                self._connections.add(connection)
                return Up(connection, address)
        raise Unavailable("; ".join(problems))

    async def _hold(self, connection: ClientConnection) -> None:
        """Wait for the end of a connection, and forget it."""
        await connection.wait_closed()
        self._connections.discard(connection)

    def _trouble(self, reason: str) -> None:
        self.state = Down(reason)
        log.warning("link down", target=self.target.name, reason=reason)


class Links:
    """The links of one agent by target. A link lives as long as somebody holds it, or a channel of it is open."""

    def __init__(self, plane: DataPlane, credentials: Credentials, locate: Locate) -> None:
        self._plane = plane
        self._credentials = credentials
        self._locate = locate
        self._links: dict[SpaceId, Link] = {}
        self._holders: dict[SpaceId, int] = {}
        self._finishing: set[Link] = set()
        self._tasks = Tasks()
        credentials.on_certificates.append(self._renew)
        credentials.on_revocations.append(self._cut_revoked)

    def hold(self, target: Target) -> Link:
        """The link to this target; `release` it when done."""
        link = self._links.get(target.id)
        if link is None:
            link = self._links[target.id] = Link(self._plane, target, self._credentials, self._locate)
            self._holders[target.id] = 0
        elif target.running:
            link.update(target)
        self._holders[target.id] += 1
        return link

    def release(self, link: Link) -> None:
        """Give a link back; without holders it ends with its last channel."""
        target_id = link.target.id
        self._holders[target_id] -= 1
        if self._holders[target_id] == 0:
            del self._links[target_id], self._holders[target_id]
            self._finishing.add(link)
            self._tasks.start(self._finish(link))

    def update(self, target: Target) -> None:
        """News of a target from the hub."""
        link = self._links.get(target.id)
        if link:
            link.update(target)

    def look_again(self) -> None:
        """The hub is back: whoever waits may try now."""
        for link in self._links.values():
            link.update(link.target)

    async def close(self) -> None:
        """End every link at once."""
        await self._tasks.cancel()
        await asyncio.gather(*(link.close() for link in self._all()))

    async def _finish(self, link: Link) -> None:
        await link.finish()
        self._finishing.discard(link)

    def _all(self) -> list[Link]:
        return [*self._links.values(), *self._finishing]

    def _renew(self) -> None:
        for link in self._links.values():
            link.renew()

    def _cut_revoked(self) -> None:
        for link in self._all():
            link.cut_revoked()


async def _retire(connection: ClientConnection) -> None:
    """Let a connection that was replaced end with its last channel."""
    await connection.wait_idle()
    await close(connection)
