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

import structlog

from knot_agent.links import CONNECTING, Down, Link, Links
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.listening import Listener, born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import Conflict, KnotError, NotFound, PortTaken, Unavailable
from knot_ssh.listening import bind
from knot_ssh.logs import Sparing
from knot_ssh.names import Port
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Counters, ForwardList, ForwardOrder, ForwardStarted, ForwardStatus, LinkStatus

log = structlog.get_logger(__name__)

BIND_HOST = "127.0.0.1"
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
        self._sparing = Sparing()

    def listen(self) -> None:
        """Bind the port and start accepting; raises PortTaken or Conflict."""
        port = self.order.local_port
        try:
            sock = bind(Address(BIND_HOST, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(f"port {port} is taken by another process on this space") from None
            raise Conflict(f"port {port} cannot be bound on this space: {error.strerror}") from None
        self._listener = self.plane.listen(born_to_reset(sock), self._accepted)

    def retarget(self, order: ForwardOrder, link: Link) -> Link:
        """Send new connections elsewhere; gives the link that is not needed for new ones any more."""
        before, self._link = self._link, link
        self.order = order
        self._last_error = None
        return before

    def status(self) -> ForwardStatus:
        """How it stands."""
        state = self._link.state
        order = self.order
        known = ForwardStatus(
            local_port=order.local_port,
            space=order.target.name,
            space_id=order.target.id,
            remote_port=order.remote_port,
            persistent=order.persistent,
            state="listening",
            reason=self._last_error,
            counters=Counters(**self.tally.as_dict()),
        )
        if state is CONNECTING:
            return known.model_copy(update={"state": "starting"})
        if isinstance(state, Down):
            return known.model_copy(update={"state": "failed" if state.gone else "waiting", "reason": state.reason})
        link = LinkStatus(**self._link.tally.as_dict(), round_trip=state.connection.round_trip or None)
        return known.model_copy(update={"mode": "direct", "address": str(state.address), "link": link})

    def stop_accepting(self) -> None:
        if self._listener:
            self._listener.close()

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        await self._channels.wait_idle()

    async def close(self) -> Link:
        """Free the port and reset its connections; gives back the link."""
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

    def channel_gone(self, channel: Channel) -> None:
        self._channels.remove(channel)

    def _accepted(self, sock: socket.socket) -> None:
        """Carry a new connection at once, or have it wait for the link."""
        channel = Channel(self, sock)
        self._channels.add(channel)
        link, port = self._link, self.order.remote_port
        if not link.carry(channel, port):
            self._tasks.start(self._carry_later(channel, link, port))

    async def _carry_later(self, channel: Channel, link: Link, port: Port) -> None:
        try:
            await link.wait_up(self._patience)
        except Unavailable as error:
            self.channel_refused(channel, str(error))
            channel.abort()
        else:
            if not channel.is_gone:
                link.carry(channel, port)


class Forwards:
    """The forwards of one agent by local port."""

    def __init__(self, plane: DataPlane, links: Links, patience: float) -> None:
        self._plane = plane
        self._links = links
        self._patience = patience
        self._forwards: dict[Port, Forward] = {}
        self._changing = asyncio.Lock()

    async def start(self, order: ForwardOrder) -> ForwardStarted:
        """Make a forward, or replace the one on that port; the port is bound when this returns.

        Raises PortTaken or Conflict, and then nothing has changed.
        """
        async with self._changing:
            link = self._links.hold(order.target)
            standing = self._forwards.get(order.local_port)
            if standing:
                replaced = standing.order
                self._links.release(standing.retarget(order, link))
                return ForwardStarted(status=standing.status(), replaced=replaced)
            forward = Forward(self._plane, order, link, self._patience)
            try:
                forward.listen()
            except KnotError:
                self._links.release(link)
                raise
            self._forwards[order.local_port] = forward
            log.info("forward started", port=order.local_port, target=order.target.name, remote_port=order.remote_port)
            return ForwardStarted(status=forward.status())

    async def stop(self, local_port: Port) -> ForwardStatus:
        """Stop a forward and reset its connections; raises NotFound."""
        async with self._changing:
            forward = self._forwards.pop(local_port, None)
            if forward is None:
                raise NotFound(f"there is no forward on port {local_port} in this space")
            status = forward.status().model_copy(update=STOPPED)
            self._links.release(await forward.close())
            log.info("forward stopped", port=local_port)
            return status

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
        for port, forward in list(self._forwards.items()):
            if forward.order.persistent and port not in wanted:
                await self.stop(port)
        for order in stored:
            standing = self.get(order.local_port)
            if standing and _same(standing, order):
                continue
            try:
                await self.start(order)
            except KnotError as error:
                log.error("forward not restored", port=order.local_port, target=order.target.name, reason=str(error))

    def stop_accepting(self) -> None:
        for forward in self._forwards.values():
            forward.stop_accepting()

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        await asyncio.gather(*(forward.wait_idle() for forward in self._forwards.values()))

    async def close(self) -> None:
        """Stop every forward."""
        for port in list(self._forwards):
            with contextlib.suppress(NotFound):
                await self.stop(port)


def _same(standing: ForwardOrder, order: ForwardOrder) -> bool:
    """Whether the two mean the same forward, whatever is known of the target's whereabouts."""
    return (standing.target.id, standing.remote_port, standing.persistent) == (
        order.target.id,
        order.remote_port,
        order.persistent,
    )
