"""One forward: a listening socket, whose connections are carried over the link to the target.

The listener belongs to the forward and not to a link: the port stays bound whatever becomes of connections to the
target, and replacing a forward only changes where new connections go.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from datetime import UTC, datetime

import structlog

from knot_agent.forwardlife import Event, State, forward_life
from knot_agent.links import CONNECTING, Down, Link, Up
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.listening import Listener, born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.windows import Budget
from knot_ssh.errors import Conflict, KnotError, PortTaken, Unavailable
from knot_ssh.listening import bind
from knot_ssh.logs import Sparing
from knot_ssh.names import BIND_HOST, Port
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Counters, ForwardOrder, ForwardStatus, LinkStatus, Origin

log = structlog.get_logger(__name__)

BIND_AGAIN = 1.0
"""Seconds between attempts to get a port that another process has."""


class Forward:
    """One local port, bound at `bind`."""

    def __init__(self, plane: DataPlane, order: ForwardOrder, link: Link, patience: float, bind: str = BIND_HOST) -> None:
        self.plane = plane
        self.tally = Tally()
        self.order = order
        self.origin: Origin = "command"
        self.bind = bind
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
    def link(self) -> Link:
        return self._link

    @property
    def state(self) -> State:
        return self._life.phase

    @property
    def known_order(self) -> ForwardOrder:
        """The order, with all that is known of the target now: it may have moved, or have another name."""
        return self.order.model_copy(update={"target": self._link.target})

    @property
    def is_bound(self) -> bool:
        return self._listener is not None

    def listen(self) -> None:
        """Bind the port and start accepting; raises PortTaken or Conflict."""
        try:
            sock = bind_port(self.order.local_port, self.bind)
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
        log.info("forward replaced", port=order.local_port, target=order.target.name, remote_port=order.remote_port)
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
            bind=self.bind,
            origin=self.origin,
            space=self._link.target.name,
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

    @property
    def is_idle(self) -> bool:
        return not self._channels

    def drain(self) -> None:
        """Free the port; connections that are open go on until they end, or until `close`."""
        self._on(Event.DRAIN)
        self.stop_accepting()

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
        port, target = self.order.local_port, self._link.target.name
        self._sparing.warning(log, "connection refused", port=port, target=target, reason=reason)

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


def _now() -> float:
    return asyncio.get_running_loop().time()


def bind_port(port: Port, host: str) -> socket.socket:
    """A listening socket; raises PortTaken or Conflict."""
    try:
        return bind(Address(host, int(port)))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"port {port} is taken by another process on this space") from None
        where = "" if host == BIND_HOST else f" at {host}"
        raise Conflict(f"port {port} cannot be bound{where} on this space: {error.strerror}") from None
