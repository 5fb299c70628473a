"""Forwards: a listening socket each, whose connections are carried over the link to the target.

The listener belongs to the forward and not to a link: the port stays bound whatever becomes of connections to the
target, and replacing a forward only changes where new connections go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from knot_agent.forwardlife import Event, State, forward_life
from knot_agent.links import CONNECTING, Down, Link, Links, Up
from knot_agent.memory import Memory
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.listening import Listener, born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.windows import Budget
from knot_ssh.errors import Conflict, KnotError, NotFound, PortTaken, Unavailable
from knot_ssh.listening import bind
from knot_ssh.logs import Sparing
from knot_ssh.names import Port
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Counters, ForwardList, ForwardOrder, ForwardStarted, ForwardStatus, LinkStatus

log = structlog.get_logger(__name__)

BIND_HOST = "127.0.0.1"
BIND_AGAIN = 1.0
"""Seconds between attempts to get a port that another process has."""
STOPPED = {"state": "stopped", "mode": None, "address": None, "reason": None, "link": None}
"""What a forward is once it is stopped."""


class Forward:
    """One local port."""

    def __init__(self, plane: DataPlane, order: ForwardOrder, link: Link, patience: float) -> None:
        self.plane = plane
        self.tally = Tally()
        self.order = order
        self._link = link
        self._patience = patience
        self._listener: Listener | None = None
        self._channels = Channels()
        self._tasks = Tasks()
        self._last_error: str | None = None
        self._obstacle = ""
        self._sparing = Sparing()
        self._life = forward_life(_now())

    @property
    def budget(self) -> Budget:
        return self.plane.budget

    @property
    def is_bound(self) -> bool:
        return self._listener is not None

    def listen(self) -> None:
        """Bind the port and start accepting; raises PortTaken or Conflict."""
        try:
            sock = self._bind()
        except KnotError as error:
            self._obstacle = str(error)
            self._on(Event.PORT_TAKEN)
            raise
        self._listener = self.plane.listen(born_to_reset(sock), self._accepted)
        self._obstacle = ""
        self._on(Event.BOUND)
        self._link.on_state.add(self._link_changed)
        order = self.order
        log.info("forward started", port=order.local_port, target=order.target.name, remote_port=order.remote_port)
        self._link_changed()

    def listen_when_free(self) -> None:
        """Bind the port, now or when whoever has it lets go."""
        try:
            self.listen()
        except KnotError as error:
            log.error("forward failed", port=self.order.local_port, target=self.order.target.name, reason=str(error))
            self._tasks.start(self._keep_trying())

    def retarget(self, order: ForwardOrder, link: Link) -> Link:
        """Send new connections elsewhere; gives the link that is not needed for new ones any more."""
        before, self._link = self._link, link
        before.on_state.discard(self._link_changed)
        link.on_state.add(self._link_changed)
        self.order = order
        self._last_error = None
        self._link_changed()
        return before

    def status(self) -> ForwardStatus:
        """How it stands."""
        order, state = self.order, self._link.state
        known = ForwardStatus(
            local_port=order.local_port,
            space=order.target.name,
            space_id=order.target.id,
            remote_port=order.remote_port,
            persistent=order.persistent,
            state=self._life.phase.value,
            reason=self._obstacle or self._trouble or self._last_error,
            counters=Counters(**self.tally.as_dict()),
        )
        if not isinstance(state, Up):
            return known
        link = LinkStatus(
            **self._link.tally.as_dict(),
            round_trip=state.connection.round_trip or None,
            up_since=datetime.fromtimestamp(int(state.since), UTC),
        )
        return known.model_copy(update={"mode": state.path.mode, "address": state.path.address, "link": link})

    @property
    def _trouble(self) -> str:
        """Why the target cannot be reached."""
        state = self._link.state
        return state.reason if isinstance(state, Down) and state is not CONNECTING else ""

    def stop_accepting(self) -> None:
        if self._listener:
            self._listener.close()

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        await self._channels.wait_idle()

    async def close(self) -> Link:
        """Free the port and reset its connections; gives back the link."""
        self._on(Event.STOP)
        self._link.on_state.discard(self._link_changed)
        self.stop_accepting()
        self._channels.abort()
        await self._tasks.cancel()
        return self._link

    # What becomes of a connection

    def channel_opened(self, channel: Channel) -> None:
        self._last_error = None

    def channel_refused(self, channel: Channel, reason: str) -> None:
        self.tally.refuse(reason)
        self._last_error = f"last connection failed: {reason}"
        order = self.order
        self._sparing.warning(log, "connection refused", port=order.local_port, target=order.target.name, reason=reason)

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        """Nothing has been said on it: have the next connection to the target carry it."""
        self._channels.remove(channel)
        if self._life.phase is State.STOPPED:
            sock.close()
        else:
            self._carry(sock, channel.since)

    def channel_gone(self, channel: Channel) -> None:
        self._channels.remove(channel)

    def _accepted(self, sock: socket.socket) -> None:
        self._carry(sock, self.plane.reactor.now)

    def _carry(self, sock: socket.socket, since: float) -> None:
        """Carry a connection, which is there since then, at once, or have it wait for the link."""
        channel = Channel(self, sock, since)
        self._channels.add(channel)
        link, port = self._link, self.order.remote_port
        if not link.carry(channel, port):
            self._tasks.start(self._carry_later(channel, link, port))

    async def _carry_later(self, channel: Channel, link: Link, port: Port) -> None:
        until = channel.since + self._patience
        try:
            await link.wait_up(until - _now())
            while not channel.is_gone and not link.carry(channel, port):
                await link.wait_up(until - _now())
                await asyncio.sleep(0)  # a connection that was lost just now
        except Unavailable as error:
            self.channel_refused(channel, str(error))
            channel.abort()

    # The port and the link

    def _bind(self) -> socket.socket:
        port = self.order.local_port
        try:
            return bind(Address(BIND_HOST, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"port {port} is taken by another process on this space") from None
            raise Conflict(f"port {port} cannot be bound on this space: {error.strerror}") from None

    async def _keep_trying(self) -> None:
        while True:
            await asyncio.sleep(BIND_AGAIN)
            if self.is_bound:  # by an order in the meantime
                return
            with contextlib.suppress(KnotError):
                self.listen()

    def _link_changed(self) -> None:
        """What the link says counts once the port is ours."""
        if self.is_bound:
            state = self._link.state
            if isinstance(state, Up):
                self._on(Event.LINK_UP)
            elif state is CONNECTING:
                self._on(Event.LINK_STARTS)
            else:
                self._on(Event.TARGET_GONE if state.gone else Event.LINK_DOWN)

    def _on(self, event: Event) -> None:
        if self._life.phase is not State.STOPPED:
            self._life.on(event, _now())


class Forwards:
    """The forwards of one agent by local port."""

    def __init__(self, plane: DataPlane, links: Links, patience: float, memory: Memory) -> None:
        self._plane = plane
        self._links = links
        self._memory = memory
        self._patience = patience
        self._forwards: dict[Port, Forward] = {}
        self._changing = asyncio.Lock()
        self._closing = False

    async def start(self, order: ForwardOrder) -> ForwardStarted:
        """Make a forward, or replace the one on that port; the port is bound when this returns.

        Raises PortTaken or Conflict, and then nothing has changed.
        """
        async with self._changing:
            link = self._links.hold(order.target)
            standing = self._forwards.get(order.local_port)
            try:
                if standing:
                    replaced = standing.order
                    if not standing.is_bound:
                        standing.listen()
                    self._links.release(standing.retarget(order, link))
                    self._remember()
                    return ForwardStarted(status=standing.status(), replaced=replaced)
                forward = Forward(self._plane, order, link, self._patience)
                forward.listen()
            except KnotError:
                self._links.release(link)
                raise
            self._add(forward)
            self._remember()
            return ForwardStarted(status=forward.status())

    async def stop(self, local_port: Port) -> ForwardStatus:
        """Stop a forward and reset its connections; raises NotFound."""
        async with self._changing:
            status = await self._stop(local_port)
            self._remember()
            return status

    async def stop_alone(self, local_port: Port) -> ForwardStatus:
        """The same while the server is away: it will be told. Raises NotFound."""
        order = self.get(local_port)
        if order and order.persistent:
            self._memory.note_stopped(order)
        return await self.stop(local_port)

    def list(self) -> ForwardList:
        """All of them, by local port."""
        return ForwardList(forwards=[self._forwards[port].status() for port in sorted(self._forwards)])

    def get(self, local_port: Port) -> ForwardOrder | None:
        """What stands on this port."""
        forward = self._forwards.get(local_port)
        return forward.order if forward else None

    async def restore(self, stored: Sequence[ForwardOrder]) -> None:
        """Make the persistent forwards what the server has stored; others stay as they are."""
        wanted = {order.local_port: order for order in stored}
        async with self._changing:
            for port, forward in list(self._forwards.items()):
                if forward.order.persistent and port not in wanted:
                    await self._stop(port)
            for order in stored:
                standing = self._forwards.get(order.local_port)
                if standing is None:
                    self._add(Forward(self._plane, order, self._links.hold(order.target), self._patience))
                elif not _same(standing.order, order):
                    self._links.release(standing.retarget(order, self._links.hold(order.target)))
            self._remember()

    def _add(self, forward: Forward) -> None:
        """Take in a forward whose port may be taken for now: it is there all the same, and says so."""
        self._forwards[forward.order.local_port] = forward
        if not forward.is_bound:
            forward.listen_when_free()

    async def _stop(self, local_port: Port) -> ForwardStatus:
        forward = self._forwards.pop(local_port, None)
        if forward is None:
            raise NotFound(f"there is no forward on port {local_port} in this space")
        status = forward.status().model_copy(update=STOPPED)
        self._links.release(await forward.close())
        log.info("forward stopped", port=local_port)
        return status

    def _remember(self) -> None:
        """Have the persistent ones on disk, for a start without the server."""
        if not self._closing:
            orders = [self._forwards[port].order for port in sorted(self._forwards)]
            self._memory.keep_forwards([order for order in orders if order.persistent])

    def stop_accepting(self) -> None:
        for forward in self._forwards.values():
            forward.stop_accepting()

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        await asyncio.gather(*(forward.wait_idle() for forward in self._forwards.values()))

    async def close(self) -> None:
        """Stop every forward; what was persistent stays remembered."""
        self._closing = True
        for port in list(self._forwards):
            with contextlib.suppress(NotFound):
                await self.stop(port)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _same(standing: ForwardOrder, order: ForwardOrder) -> bool:
    """Whether the two mean the same forward, whatever is known of the target's whereabouts."""
    return (standing.target.id, standing.remote_port, standing.persistent) == (
        order.target.id,
        order.remote_port,
        order.persistent,
    )
