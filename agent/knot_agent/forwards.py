"""The forwards of one agent, and who may change them.

They are made by command (the command line, the API, a script) or by the agent's file. On a port that both want the
file's stands, and covers the other, which is there again once the file lets go of the port.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import structlog

from knot_agent.forward import Forward, bind_port
from knot_agent.links import Links
from knot_agent.memory import Memory
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import Conflict, HeldByFile, KnotError, NotFound
from knot_ssh.names import BIND_HOST, Port
from knot_ssh.planning import complaint_about, is_same, make_plan, target_obstacle
from knot_ssh.tasks import Tasks, whole
from knot_ssh.wire import (
    FORWARDS_MAX,
    ApplyAnswer,
    ApplyOrder,
    ForwardList,
    ForwardOrder,
    ForwardStarted,
    ForwardStatus,
    ReplacedForward,
    StopRequest,
    WantedForward,
)

log = structlog.get_logger(__name__)

STOPPED = {"state": "stopped", "mode": None, "address": None, "reason": None, "link": None}
"""What a forward is once it is stopped."""


@dataclass(frozen=True, slots=True)
class Filed:
    """A forward that the agent's file asks for, bound at this literal address."""

    order: ForwardOrder
    bind: str = BIND_HOST


class Forwards:
    """The forwards of one agent by local port. Changes are made one after the other, each as a whole."""

    def __init__(self, plane: DataPlane, links: Links, patience: float, memory: Memory) -> None:
        self.unresolved: dict[Port, ForwardStatus] = {}
        """What the agent's file asks for and cannot be made yet."""
        self.file_error: str | None = None
        """What is wrong with that file."""
        self._plane = plane
        self._links = links
        self._memory = memory
        self._patience = patience
        self._forwards: dict[Port, Forward] = {}
        self._covered: dict[Port, ForwardOrder] = {}
        self._draining: set[Forward] = set()
        self._past = Tally()
        """What those have carried that are no more."""
        self._tasks = Tasks()
        self._changing = asyncio.Lock()
        self._closing = False

    # By command

    @whole
    async def start(self, order: ForwardOrder) -> ForwardStarted:
        """Make a forward, or replace the one on that port; the port is bound when this returns.

        Raises PortTaken, HeldByFile or Conflict, and then nothing has changed.
        """
        async with self._changing:
            standing = self._commanded()
            if order.local_port not in standing and len(standing) >= FORWARDS_MAX:
                raise Conflict(f"this space has {FORWARDS_MAX} forwards, the most there may be")
            started = self._make(order)
            self._remember()
            return started

    @whole
    async def stop(self, request: StopRequest) -> ForwardStatus:
        """Stop a forward, and reset its connections or let them drain; raises NotFound or HeldByFile."""
        async with self._changing:
            status = await self._stop_asked(request.local_port, drain=request.drain)
            self._remember()
            return status

    async def stop_alone(self, request: StopRequest) -> ForwardStatus:
        """The same while the server is away: it will be told."""
        order = self._commanded().get(request.local_port)
        if order and order.persistent and not self._held_by_file(order.local_port):
            self._memory.note_stopped(order)
        return await self.stop(request)

    @whole
    async def apply(self, request: ApplyOrder) -> ApplyAnswer:
        """Make these the forwards by command, and change no other; or find out what that would do."""
        async with self._changing:
            standing = self._visible()
            plan = make_plan(standing, request.forwards, self._obstacle)
            made: list[ReplacedForward] = []
            errors = plan.errors
            for order in sorted([*plan.make, *self._unbound(plan.unchanged)], key=lambda order: order.local_port):
                try:
                    if request.dry_run:
                        self._probe(order)
                    else:
                        self._make(order)
                except KnotError as error:
                    errors.append(complaint_about(order, error))
                else:
                    made.append(ReplacedForward(order=order, replaced=standing.get(order.local_port)))
            if not request.dry_run:
                for order in plan.stop:
                    await self._stop(order.local_port)
                wanted = {entry.order.local_port for entry in request.forwards}
                self._covered = {port: order for port, order in self._covered.items() if port in wanted}
                self._remember()
            return ApplyAnswer(
                applied=[ReplacedForward(order=_brief(change.order), replaced=_brief(change.replaced)) for change in made],
                stopped=[_brief(order) for order in plan.stop],
                errors=sorted(errors, key=lambda error: error.local_port),
            )

    @whole
    async def restore(self, stored: Sequence[ForwardOrder]) -> None:
        """Make the persistent forwards what the server has stored; others stay as they are."""
        wanted = {order.local_port: order for order in stored}
        async with self._changing:
            for port, order in self._commanded().items():
                if order.persistent and port not in wanted:
                    await self._stop_commanded(port)
            for order in stored:
                standing = self._forwards.get(order.local_port)
                if self._held_by_file(order.local_port):
                    self._covered[order.local_port] = order
                elif standing is None:
                    self._add(self._new(order))
                elif not is_same(standing.order, order):
                    self._retarget(standing, order)
                else:
                    standing.order = order  # perhaps made anew
            self._remember()

    # By the agent's file

    @whole
    async def set_filed(self, wanted: Sequence[Filed], unresolved: Sequence[ForwardStatus] = ()) -> None:
        """Make these the forwards by the agent's file; those that are so already are not touched.

        `unresolved` are shown as they stand, and hold their ports.
        """
        by_port = {filed.order.local_port: filed for filed in wanted}
        async with self._changing:
            self.unresolved = {status.local_port: status for status in unresolved}
            for port, forward in list(self._forwards.items()):
                if forward.origin == "file" and port not in by_port:
                    await self._let_go(forward)
            for filed in wanted:
                self._cover(filed)
            for port in self._covered.keys() - self._forwards.keys() - self.unresolved.keys():
                self._put(self._covered.pop(port), BIND_HOST)

    def _cover(self, filed: Filed) -> None:
        """Let the file have this port."""
        port = filed.order.local_port
        standing = self._forwards.get(port)
        if standing and standing.origin == "command":
            self._covered[port] = standing.known_order
            log.warning("forward covered by the agent's file", port=port, target=standing.order.target.name)
        self._put(filed.order, filed.bind).origin = "file"

    async def _let_go(self, forward: Forward) -> None:
        """The file lets go of this port, which goes back to whom it was taken from; or it wants it for nobody for now."""
        port = forward.order.local_port
        if port in self._covered and port not in self.unresolved:
            self._put(self._covered.pop(port), BIND_HOST).origin = "command"
        else:
            await self._stop(port)

    def _put(self, order: ForwardOrder, bind: str) -> Forward:
        """Have this forward on its port, touching no more than has to be."""
        standing = self._forwards.get(order.local_port)
        if standing and standing.bind != bind:
            self._drain(standing)
            standing = None
        if standing is None:
            standing = self._new(order, bind)
            self._add(standing)
        elif not is_same(standing.order, order):
            self._retarget(standing, order)
        return standing

    # All of them

    def list(self) -> ForwardList:
        """All of them, by local port; what stands after what drains there still, or what the file wants there."""
        draining, standing = ([forward.status() for forward in some] for some in (self._draining, self._forwards.values()))
        listed = [*draining, *self.unresolved.values(), *standing]
        return ForwardList(forwards=sorted(listed, key=lambda status: status.local_port), file_error=self.file_error)

    def states(self) -> Counter[str]:
        """How many forwards there are in each state."""
        standing = Counter(forward.state.value for forward in (*self._forwards.values(), *self._draining))
        return standing + Counter(status.state for status in self.unresolved.values())

    def carried(self) -> Tally:
        """What all forwards have carried since the agent was started, those that are no more included."""
        total = Tally()
        for tally in (self._past, *(forward.tally for forward in (*self._forwards.values(), *self._draining))):
            total.add(tally)
        return total

    def get(self, local_port: Port) -> ForwardOrder | None:
        """What stands on this port."""
        forward = self._forwards.get(local_port)
        return forward.order if forward else None

    def stop_accepting(self) -> None:
        for forward in self._forwards.values():
            forward.stop_accepting()

    async def wait_idle(self) -> None:
        """Wait until no connection is open."""
        await asyncio.gather(*(forward.wait_idle() for forward in (*self._forwards.values(), *self._draining)))

    async def close(self) -> None:
        """Stop every forward; what was persistent stays remembered."""
        async with self._changing:
            self._closing = True
            for port in list(self._forwards):
                await self._stop(port)
            for forward in list(self._draining):
                await self._end(forward)
        await self._tasks.cancel()

    # What they are made of

    def _commanded(self) -> dict[Port, ForwardOrder]:
        """The forwards by command, also those that the file covers."""
        return self._visible() | self._covered

    def _visible(self) -> dict[Port, ForwardOrder]:
        """Those that stand."""
        return {port: forward.known_order for port, forward in self._forwards.items() if forward.origin == "command"}

    def _obstacle(self, wanted: WantedForward) -> KnotError | None:
        """Why a forward cannot be made, as far as this can be known without its port."""
        return target_obstacle(wanted) or self._held_by_file(wanted.order.local_port)

    def _held_by_file(self, port: Port) -> HeldByFile | None:
        forward = self._forwards.get(port)
        if forward.origin == "command" if forward else port not in self.unresolved:
            return None
        return HeldByFile(f"the forward on port {port} is made by the agent's settings file: change it there")

    def _make(self, order: ForwardOrder) -> ForwardStarted:
        """Make a forward whose port is bound then; raises PortTaken, HeldByFile or Conflict."""
        if error := self._held_by_file(order.local_port):
            raise error
        standing = self._forwards.get(order.local_port)
        if standing is None:
            forward = self._new(order)
            try:
                forward.listen()
            except KnotError:
                self._links.release(forward.link)
                raise
            self._add(forward)
            return ForwardStarted(status=forward.status())
        replaced = standing.known_order
        if not standing.is_bound:
            standing.listen()
        self._retarget(standing, order)
        return ForwardStarted(status=standing.status(), replaced=replaced)

    def _probe(self, order: ForwardOrder) -> None:
        """Find out whether its port can be bound; raises PortTaken or Conflict."""
        standing = self._forwards.get(order.local_port)
        if standing is None or not standing.is_bound:
            bind_port(order.local_port, BIND_HOST).close()

    def _unbound(self, orders: Sequence[ForwardOrder]) -> Sequence[ForwardOrder]:
        """Those that stand, but whose port another process has."""
        return [order for order in orders if (forward := self._forwards.get(order.local_port)) and not forward.is_bound]

    def _new(self, order: ForwardOrder, bind: str = BIND_HOST) -> Forward:
        return Forward(self._plane, order, self._links.hold(order.target), self._patience, bind)

    def _add(self, forward: Forward) -> None:
        """Take in a forward whose port may be taken for now: it is there all the same, and says so."""
        self._forwards[forward.order.local_port] = forward
        if not forward.is_bound:
            forward.listen_when_free()

    def _retarget(self, forward: Forward, order: ForwardOrder) -> None:
        link = self._links.hold(order.target)
        self._links.release(forward.retarget(order, link))

    async def _stop_asked(self, local_port: Port, *, drain: bool) -> ForwardStatus:
        """Stop the forward that a user sees on this port; raises NotFound or HeldByFile."""
        if error := self._held_by_file(local_port):
            raise error
        forward = self._forwards.get(local_port)
        if forward is None:
            return await self._stop_draining(local_port, drain=drain)
        if drain and not forward.is_idle:
            self._drain(forward)
            return forward.status()
        return await self._stop(local_port)

    async def _stop_draining(self, local_port: Port, *, drain: bool) -> ForwardStatus:
        draining = [forward for forward in self._draining if forward.order.local_port == local_port]
        if not draining:
            raise NotFound(f"there is no forward on port {local_port} in this space")
        status = draining[0].status()
        if drain:
            return status
        for forward in draining:
            await self._end(forward)
        return status.model_copy(update=STOPPED)

    async def _stop_commanded(self, local_port: Port) -> None:
        """Stop a forward by command, also one that the file covers."""
        if self._covered.pop(local_port, None) is None:
            await self._stop(local_port)

    async def _stop(self, local_port: Port) -> ForwardStatus:
        forward = self._forwards.pop(local_port)
        self._bury(forward)
        status = forward.status().model_copy(update=STOPPED)
        self._links.release(await forward.close())
        log.info("forward stopped", port=local_port)
        return status

    def _drain(self, forward: Forward) -> None:
        """Free its port now, and end it once its connections have ended."""
        del self._forwards[forward.order.local_port]
        forward.drain()
        self._draining.add(forward)
        self._tasks.start(self._end_when_idle(forward))

    async def _end_when_idle(self, forward: Forward) -> None:
        await forward.wait_idle()
        await self._end(forward)

    async def _end(self, forward: Forward) -> None:
        """The end of one that drains, whoever is the first to find it."""
        if forward in self._draining:
            self._draining.remove(forward)
            self._bury(forward)
            self._links.release(forward.link)
            await forward.close()

    def _bury(self, forward: Forward) -> None:
        """It is no more one of ours, and its connections are reset before anything else happens; what it has carried counts
        on, without a moment in which it would not."""
        self._past.add(forward.tally)
        self._past.closed = self._past.opened

    def _remember(self) -> None:
        """Have the persistent ones on disk, for a start without the server."""
        if not self._closing:
            standing = self._commanded()
            self._memory.keep_forwards([standing[port] for port in sorted(standing) if standing[port].persistent])


@overload
def _brief(order: ForwardOrder) -> ForwardOrder: ...
@overload
def _brief(order: None) -> None: ...
def _brief(order: ForwardOrder | None) -> ForwardOrder | None:
    """Without the target's addresses, which the hub knows."""
    return order and order.model_copy(update={"target": order.target.model_copy(update={"addresses": []})})
