"""Links: the agent's long-lived SSH connections, one to each target that a forward points to.

`linklife` decides what there should be: an attempt, a connection, a pause. Here it is done. A connection that was
replaced, or whose certificate has ended, goes on until its last channel has ended; new channels use the new one. A
channel that is wanted while there is none waits, up to a limit. Once nobody holds a link any more it ends with its last
channel.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import asyncssh
import structlog
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_agent.credentials import Credentials
from knot_agent.destinations import LOCALHOST
from knot_agent.linklife import Event, LinkLife, Path, Phase
from knot_agent.relaying import Relay
from knot_keys.certificates import CertificateRefused, check_endpoint, expires_at, signer
from knot_keys.connections import ClientConnection, close, connect, log_in
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import KnotError, NotFound, OtherZone, Unavailable
from knot_ssh.names import Port, Principal, SpaceId, SpaceName
from knot_ssh.planning import OTHER_ZONE, TARGET_GONE
from knot_ssh.racing import Runner, race
from knot_ssh.tasks import Tasks
from knot_ssh.wire import TARGETS_MAX, Target

log = structlog.get_logger(__name__)

ENDPOINT_LOGIN = "knot"
"""Login name at endpoints; ours ignore it, an ordinary sshd needs an account."""
HEAD_START = 0.05
"""Seconds that each address has before the next one is tried as well."""
RELAY_HEAD_START = 0.25
"""The same that the last address has before the relay."""
LOCATE_PATIENCE = 1.0
"""Seconds for the hub to say where a target is; then the attempt has failed, and the next one begins with what is known."""
LOCATE_AGAIN = 30.0
"""Seconds for which its answer holds, unless a connection is lost: it tells by itself when a target comes or moves."""

Locate = Callable[[SpaceId], Awaitable[Target]]
"""Asks the hub where a target is; raises NotFound or OtherZone when it is gone, Unavailable when the hub is away."""
Made = tuple[ClientConnection, Path]


@dataclass(frozen=True, slots=True)
class Up:
    """There is a connection, by this path. `since` is on the wall clock."""

    connection: ClientConnection
    path: Path
    since: float


@dataclass(frozen=True, slots=True)
class Down:
    """There is none, for this reason. `gone`: nor will there be, the target was deleted."""

    reason: str
    gone: bool = False


CONNECTING = Down("connecting")


class Link:
    """One target. `state` is Up or Down, and `on_state` is called when it has changed."""

    def __init__(self, plane: DataPlane, target: Target, credentials: Credentials, locate: Locate, relay: Relay) -> None:
        self.target = target
        self.state: Up | Down = CONNECTING
        self.tally = Tally()
        self.on_state: set[Callable[[], None]] = set()
        self.on_target: Callable[[Target], None] = lambda target: None
        self._plane = plane
        self._credentials = credentials
        self._locate = locate
        self._relay = relay
        self._loop = asyncio.get_running_loop()
        self._life = LinkLife(self._loop.time())
        self._current: ClientConnection | None = None
        self._connections: set[ClientConnection] = set()
        self._located_until = 0.0
        self._up = asyncio.Event()
        self._waiting = 0
        self._nobody_waits = asyncio.Event()
        self._nobody_waits.set()
        self._tasks = Tasks()
        self._attempt: asyncio.Task[None] | None = None
        self._attempted = "nothing"
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self._follow()

    def update(self, target: Target) -> None:
        """Take over what the hub says of the target, and try at once if it may be reached now."""
        if self._know(target):
            self._stop_attempt()  # at what is not true any more
        if target.gone:
            self._located_until = 0.0  # what the hub said before holds no more
        self._tell(Event.NEWS)

    def rename(self, name: SpaceName) -> None:
        """The target is called this now; nothing else has changed."""
        self._know(self.target.model_copy(update={"name": name}))

    def look_again(self) -> None:
        """The hub is back: it may know better where the target is."""
        self._located_until = 0.0
        self._tell(Event.NEWS)

    def renew(self) -> None:
        """Dial again with the new certificate, and let the present connection end with its last channel."""
        self._stop_attempt()
        self._tell(Event.RENEWED)

    def cut(self) -> None:
        """End every connection."""
        for connection in list(self._connections):
            connection.abort()

    @property
    def is_elsewhere(self) -> bool:
        """Whether the target is of another owner or zone than we are, by what we know of it."""
        return Principal(self.target.owner, self.target.zone) != self._credentials.principal

    def cut_elsewhere(self) -> None:
        """End what leads out of our zone, and ask where the target is now."""
        if self.is_elsewhere:
            self._stop_attempt()
            self.cut()
        self.look_again()

    def cut_revoked(self) -> None:
        """End connections to a host whose certificate is void now."""
        for connection in list(self._connections):
            certificate = connection.host_certificate
            if certificate and self._credentials.revoked.covers_certificate(certificate):
                connection.abort()

    def trust_anew(self) -> None:
        """A CA came or went: end connections to hosts that it has certified if it was given up by force, and have none of them
        carry anything new once it is not trusted."""
        membership, trusted = self._credentials.membership, self._credentials.host_cas
        for connection in list(self._connections):
            certificate = connection.host_certificate
            if certificate and signer(certificate) in membership.distrusted:
                connection.abort()
            elif certificate and connection is self._current and certificate.signing_key not in trusted:
                self.renew()

    def carry(self, channel: Channel, port: Port) -> bool:
        """Ask the target for a channel to this port, if the link is up; gives whether it is."""
        state = self.state
        if not self._credentials.is_current():
            self.cut()
            return False
        if isinstance(state, Up) and not state.connection.lost:
            channel.ask(state.connection, LOCALHOST, int(port))
            return True
        return False

    async def wait_up(self, patience: float) -> None:
        """Wait up to so many seconds for a connection; raises Unavailable. Whoever waits is served before the link ends."""
        self._waiting += 1
        self._nobody_waits.clear()
        try:
            async with asyncio.timeout(patience):
                while not isinstance(self.state, Up):  # it may be lost again before we are woken
                    if self.state.gone:
                        raise TimeoutError
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
        self._end()
        await asyncio.gather(*(connection.wait_idle() for connection in self._connections))
        await self.close()

    async def close(self) -> None:
        """End the link and every connection of it."""
        self._end()
        await self._tasks.cancel()
        await asyncio.gather(*(close(connection) for connection in list(self._connections)))

    # What happens, and what follows from it

    def _tell(self, event: Event, *, path: Path | None = None, good_until: float = math.inf, reason: str = "") -> None:
        """Let the life decide, and do what it wants."""
        if not self._ended:
            self._life.on(event, self._loop.time(), path=path, good_until=good_until, reason=reason)
            self._follow()

    def _follow(self) -> None:
        life = self._life
        if self._attempted != life.wants:
            self._stop_attempt()
        if self._attempt is None and life.wants != "nothing":
            self._attempted = life.wants
            self._attempt = self._tasks.start(self._try(direct_alone=life.wants == "a direct path"))
        if self._current and not life.is_connected:
            self._retire()
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_at(life.wake_at, self._wake) if life.wake_at < math.inf else None
        self._show()

    def _show(self) -> None:
        """Say how the link stands, to whom it concerns."""
        life, was = self._life, self.state
        if self._current and life.path:
            if isinstance(was, Up) and was.connection is self._current:
                return
            self.state = Up(self._current, life.path, time.time())
            self._up.set()
            log.info("link up", target=self.target.name, mode=life.path.mode, address=life.path.address)
        else:
            self.state = Down(life.reason, gone=life.phase is Phase.GONE) if life.reason else CONNECTING
            if self.state.gone:
                self._up.set()  # waiting is of no use
            else:
                self._up.clear()
            if self.state not in (was, CONNECTING):
                log.warning("link down", target=self.target.name, reason=life.reason)
        if self.state != was:
            for listener in list(self.on_state):
                listener()

    def _wake(self) -> None:
        event = self._life.due(self._loop.time())
        if event is Event.EXPIRED:
            self._tell(event, reason="the certificate of this space has expired; is the server reachable?")
        elif event:
            self._tell(event)
        else:
            self._follow()

    def _stop_attempt(self) -> None:
        if self._attempt:
            self._attempt.cancel()
        self._attempt = None
        self._attempted = "nothing"

    def _end(self) -> None:
        """Do nothing more by itself."""
        self._ended = True
        self._stop_attempt()
        if self._timer:
            self._timer.cancel()

    def _retire(self) -> None:
        """Let the present connection, which is good for nothing new, end with its last channel."""
        connection, self._current = self._current, None
        assert connection
        self._tasks.start(_drain(connection))

    def _heard(self, connection: ClientConnection, silent: bool) -> None:
        if connection is self._current:
            self._tell(Event.SILENT if silent else Event.HEARD)

    async def _hold(self, connection: ClientConnection) -> None:
        """Wait for the end of a connection, and forget it."""
        await connection.wait_closed()
        self._connections.discard(connection)
        if connection is self._current:
            self._current = None
            self._located_until = 0.0
            self._tell(Event.LOST, reason="connection lost")

    # Attempts

    async def _try(self, direct_alone: bool) -> None:
        """One attempt at every path, or at the direct ones."""
        task = asyncio.current_task()
        try:
            connection, path = await self._reach(direct_alone)
        except (NotFound, OtherZone) as error:
            self._attempt_over(task)
            self._tell(Event.MISSING, reason=OTHER_ZONE if isinstance(error, OtherZone) else TARGET_GONE)
        except Exception as error:
            if not isinstance(error, KnotError):
                log.error("unforeseen error, trying again", exc_info=error)
            self._attempt_over(task)
            self._tell(Event.FAILED, reason=str(error))
        else:
            self._attempt_over(task)
            self._take(connection, path)

    def _attempt_over(self, task: asyncio.Task[object] | None) -> None:
        if self._attempt is task:
            self._attempt = None
            self._attempted = "nothing"

    def _take(self, connection: ClientConnection, path: Path) -> None:
        """Carry what is new over this connection from now on."""
        connection.tally = self.tally
        self._connections.add(connection)
        self._tasks.start(self._hold(connection))
        connection.watch_silence(partial(self._heard, connection))
        escaping = self._life.phase is Phase.ESCAPING
        before, self._current = self._current, connection
        certificate = self._credentials.identity.certificate
        left = expires_at(certificate) - time.time() if certificate else 0
        if path.mode == "direct":
            self._know(self.target, worked=path.address)
        self._tell(Event.CONNECTED, path=path, good_until=self._loop.time() + left)
        if before:
            if escaping:
                _hand_over(before)
            self._tasks.start(_drain(before))

    async def _reach(self, direct_alone: bool) -> Made:
        """The first path that works; raises Unavailable, or NotFound or OtherZone when the target was deleted or moved."""
        if not self._credentials.certified:
            raise Unavailable("this space has no valid certificate; is the server reachable?")
        if not self._credentials.is_current():
            raise Unavailable("this space does not know what was revoked lately, and is strict; is the server reachable?")
        if self.is_elsewhere:
            self._located_until = 0.0
        known = [] if self.is_elsewhere else self.target.addresses
        ways = self._direct_ways(known)
        if not direct_alone:
            ways.append((RELAY_HEAD_START, partial(self._ask_hub, known)))
        return await self._first(ways)

    async def _ask_hub(self, tried: Collection[str]) -> Made:
        """What needs the hub: addresses that only it knows, and its relay."""
        if self._loop.time() >= self._located_until:
            try:
                async with asyncio.timeout(LOCATE_PATIENCE):
                    self._know(await self._locate(self.target.id))
            except TimeoutError:
                raise Unavailable("the server does not say where it is") from None
            self._located_until = self._loop.time() + LOCATE_AGAIN
        if self.is_elsewhere:
            raise OtherZone
        fresh = [address for address in self.target.addresses if address not in tried]
        return await self._first([*self._direct_ways(fresh), (RELAY_HEAD_START, self._dial_relay)])

    def _direct_ways(self, addresses: Sequence[str]) -> list[tuple[float, Runner[Made]]]:
        return [(HEAD_START, partial(self._dial, Address.parse(address))) for address in addresses]

    async def _first(self, ways: Sequence[tuple[float, Runner[Made]]]) -> Made:
        """The first of these to work; raises Unavailable, or NotFound or OtherZone when the target was deleted or moved."""
        if not ways:
            raise Unavailable("the target has no address")
        try:
            return await race(self._tasks, ways, _discard)
        except ExceptionGroup as group:
            errors = group.exceptions
            if not all(isinstance(error, KnotError) for error in errors):
                raise
            gone = next((error for error in errors if isinstance(error, NotFound | OtherZone)), None)
            if gone:
                raise gone from None
            if not self.target.running:
                raise Unavailable("the target is not running") from None
            raise Unavailable("; ".join(map(str, errors))) from None

    async def _dial(self, address: Address) -> Made:
        try:
            connection = await connect(self._plane, address, ENDPOINT_LOGIN, self._check, credential=self._credentials.identity)
        except asyncssh.PermissionDenied:
            raise Unavailable(f"{address}: the target refused our certificate") from None
        return connection, Path("direct", str(address))

    async def _dial_relay(self) -> Made:
        sock = await self._relay.open(self.target.id)
        try:
            connection = await log_in(
                self._plane, sock, "relay", ENDPOINT_LOGIN, self._check, credential=self._credentials.identity
            )
        except asyncssh.PermissionDenied:
            raise Unavailable("relay: the target refused our certificate") from None
        return connection, Path("relay", str(self._relay.hub))

    def _check(self, shown: SSHOpenSSHCertificate) -> None:
        """Whether this is the host certificate of exactly our target, which may have been renamed without our knowing."""
        credentials, target = self._credentials, self.target
        principal = Principal(target.owner, target.zone)
        check_endpoint(shown, credentials.host_cas, target.id, principal, credentials.revoked)
        if self.is_elsewhere:  # since we have dialled
            raise CertificateRefused(OTHER_ZONE)

    def _know(self, target: Target, worked: str = "") -> bool:
        """Take over what is said of the target; gives whether that is new.

        Addresses of one that is not running stay known: it may have lost the server and not us. What worked comes first.
        """
        known = self.target
        worked = worked or (known.addresses[0] if known.addresses else "")
        addresses = target.addresses or ([] if target.running else known.addresses)
        ordered = sorted(addresses, key=lambda address: address != worked)
        self.target = target.model_copy(update={"addresses": ordered})
        if self.target == known:
            return False
        self.on_target(self.target)
        return True


class Links:
    """The links of one agent by target. A link lives as long as somebody holds it, or a channel of it is open."""

    def __init__(self, plane: DataPlane, credentials: Credentials, locate: Locate, relay: Relay) -> None:
        self.on_target: Callable[[Target], None] = lambda target: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when a link has come, gone, or changed its state, or has one holder more or less."""
        self._relay = relay
        self._plane = plane
        self._credentials = credentials
        self._locate = locate
        self._links: dict[SpaceId, Link] = {}
        self._holders: dict[SpaceId, int] = {}
        self._finishing: set[Link] = set()
        self._tasks = Tasks()
        credentials.on_certificates.append(self._renew)
        credentials.on_revocations.append(self._cut_revoked)
        credentials.on_trust.append(self._trust_anew)
        credentials.on_moved.append(self._moved)
        credentials.on_outdated.append(self._cut_all)

    def hold(self, target: Target) -> Link:
        """The link to this target; `release` it when done."""
        link = self._links.get(target.id)
        if link is None:
            link = self._links[target.id] = Link(self._plane, target, self._credentials, self._locate, self._relay)
            link.on_target = self.on_target
            link.on_state.add(self.on_change)
            self._holders[target.id] = 0
        elif target.running:
            link.update(target)
        self._holders[target.id] += 1
        self.on_change()
        return link

    def release(self, link: Link) -> None:
        """Give a link back; without holders it ends with its last channel."""
        target_id = link.target.id
        self._holders[target_id] -= 1
        if self._holders[target_id] == 0:
            del self._links[target_id], self._holders[target_id]
            self._finishing.add(link)
            self._tasks.start(self._finish(link))
        self.on_change()

    def update(self, target: Target) -> None:
        """News of a target from the hub."""
        link = self._links.get(target.id)
        if link:
            link.update(target)

    def rename(self, names: Mapping[SpaceId, SpaceName]) -> None:
        """What targets are called now."""
        for target_id, name in names.items():
            link = self._links.get(target_id)
            if link:
                link.rename(name)

    def targets(self) -> list[SpaceId]:
        """The targets that we want to hear of."""
        return list(self._links)[:TARGETS_MAX]

    def modes(self) -> Counter[str]:
        """How many links there are by how their targets are reached: `direct`, `relay`, or `down`."""
        return Counter(link.state.path.mode if isinstance(link.state, Up) else "down" for link in self._links.values())

    def look_again(self) -> None:
        """The hub is back: whoever waits may try now."""
        for link in self._links.values():
            link.look_again()

    async def close(self) -> None:
        """End every link at once."""
        await self._tasks.cancel()
        await asyncio.gather(*(link.close() for link in self._all()))
        await self._relay.close()

    async def _finish(self, link: Link) -> None:
        await link.finish()
        self._finishing.discard(link)

    def _all(self) -> list[Link]:
        return [*self._links.values(), *self._finishing]

    def _renew(self) -> None:
        for link in self._links.values():
            link.renew()

    def _moved(self) -> None:
        """Our space is in another zone, where our targets may be, too."""
        for link in self._all():
            link.cut_elsewhere()

    def _cut_all(self) -> None:
        for link in self._all():
            link.cut()

    def _cut_revoked(self) -> None:
        for link in self._all():
            link.cut_revoked()

    def _trust_anew(self) -> None:
        for link in self._all():
            link.trust_anew()


async def _drain(connection: ClientConnection) -> None:
    """Let a connection that was replaced end with its last channel."""
    await connection.wait_idle()
    await close(connection)


def _discard(made: Made) -> None:
    """Another path was faster."""
    made[0].abort()


def _hand_over(connection: ClientConnection) -> None:
    """Give back the channels that the peer has not answered: their owners have them carried by another connection."""
    for channel in connection.unanswered():
        sock = channel.withdraw()
        if sock:
            channel.owner.channel_unanswered(channel, sock)
