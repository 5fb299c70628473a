"""Which agents are connected at this moment, and how to speak to them. A space runs while its agent is here, or the ordinary
sshd that stands in for one."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel, ValidationError

from knot_server.fleet import Fleet
from knot_ssh.errors import BadInput, Conflict, KnotError, NotFound, Unavailable
from knot_ssh.names import Principal, SpaceId
from knot_ssh.rpc import Answer, Peer
from knot_ssh.wire import TARGETS_MAX, AgentReport, Farewell, Nothing, Spread, Target
from knot_ssh.words import printable

TELL_TIMEOUT = 5.0
"""Seconds an agent may take to read a notification before its connection is given up."""


SECONDS_A_LOGIN = 0.01
"""Of one processor, for an agent to log in, be welcomed and certified, with a margin."""
SMALL_FLEET = 50
"""Agents that need not be told: each hears at its welcome."""
SPREAD_MAX = 600.0
"""Seconds; a space should not wait longer for its server to know of it."""
AGENTS_MAY_REFUSE = frozenset({BadInput.http_status, NotFound.http_status, Conflict.http_status})
"""As what an agent's refusal may reach whoever asked: it has no say in who is authenticated, or what the server can do."""


class Line(Protocol):
    """The connection below a present agent."""

    def abort(self) -> None: ...


@dataclass(eq=False, slots=True)
class Present:
    """A connected agent: who it is, where its endpoint can be dialled, and the conversation with it."""

    space_id: SpaceId
    principal: Principal
    peer: Peer
    line: Line
    addresses: list[str] = field(default_factory=list)
    watches: set[SpaceId] = field(default_factory=set)
    name: str = ""
    """What the space is called now, for the log."""
    report: AgentReport | None = None
    """What it has said of itself last."""

    async def order(self, method: str, params: BaseModel, answer: type[Answer]) -> Answer:
        """Have the agent change something; raises as `ask` does.

        One that gives no answer may have done it or not. It is cut off, so that it comes anew and hears what holds.
        """
        try:
            return await self.ask(method, params, answer)
        except Unavailable:
            self.line.abort()
            raise

    async def ask(self, method: str, params: BaseModel, answer: type[Answer]) -> Answer:
        """Call the agent; raises what it refused with, or Unavailable when it is gone, silent, or makes no sense."""
        try:
            return answer.model_validate(await self.peer.call(method, params))
        except Unavailable:
            raise Unavailable(
                "the agent of that space did not answer; `knot port list` tells how it stands once it does"
            ) from None
        except ValidationError:
            raise Unavailable("the agent of that space answered what this server does not understand") from None
        except KnotError as error:
            if error.http_status in AGENTS_MAY_REFUSE:
                raise
            raise Unavailable(f"the agent of that space failed: {printable(str(error))}") from None


class Roster:
    """The connected agents by space id."""

    def __init__(self) -> None:
        self.fleet = Fleet()
        self._present: dict[SpaceId, Present] = {}
        self._told = SMALL_FLEET
        self._watchers: defaultdict[SpaceId, set[Present]] = defaultdict(set)
        self._locks: defaultdict[SpaceId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._registered: Counter[SpaceId] = Counter()

    def __len__(self) -> int:
        return len(self._present)

    def get(self, space_id: SpaceId) -> Present | None:
        return self._present.get(space_id)

    def runs(self, space_id: SpaceId) -> bool:
        """Whether others may reach this space: its agent is here, or the sshd that stands in for one is registered."""
        return space_id in self._present or space_id in self._registered

    @property
    def registered(self) -> int:
        """Spaces whose sshd is registered."""
        return len(self._registered)

    def sshd_came(self, space_id: SpaceId) -> None:
        """An sshd has registered for being relayed to; several connections of one may be here at a time."""
        self._registered[space_id] += 1

    def sshd_left(self, space_id: SpaceId) -> None:
        """One of those has ended."""
        self._registered[space_id] -= 1
        if not self._registered[space_id]:
            del self._registered[space_id]

    def lock(self, space_id: SpaceId) -> asyncio.Lock:
        """Held by whoever changes a space's forwards, so that store and agent see changes in one order."""
        return self._locks[space_id]

    def arrive(self, agent: Present) -> Present | None:
        """Enter an agent; gives the connection it takes the place of, for the caller to close."""
        before = self._present.get(agent.space_id)
        if before:
            self._forget_report(before)
        self._present[agent.space_id] = agent
        return before

    def report(self, agent: Present, report: AgentReport) -> None:
        """Take down what an agent says of itself; one whose place another connection has taken has no say any more."""
        if self._present.get(agent.space_id) is agent:
            self.fleet.take(agent.report, report)
            agent.report = report

    @property
    def spread(self) -> float:
        """Seconds over which the agents are to spread when they all come back at once."""
        return min(len(self._present) * SECONDS_A_LOGIN, SPREAD_MAX)

    async def tell_when_grown(self) -> None:
        """Tell everybody how far to spread, each time that the fleet has doubled."""
        if len(self._present) >= 2 * self._told:
            self._told = len(self._present)
            await self.tell("fleet.spread", Spread(spread=self.spread))

    def leave(self, agent: Present) -> None:
        """Take an agent out, unless another connection of its space has taken its place."""
        if self._present.get(agent.space_id) is agent:
            del self._present[agent.space_id]
            self._forget_report(agent)
        for target in agent.watches:
            self._watchers[target].discard(agent)
            if not self._watchers[target]:
                del self._watchers[target]
        agent.watches.clear()

    def watch(self, agent: Present, targets: Iterable[SpaceId]) -> None:
        """This agent has links to these spaces, and is to hear when one comes or moves."""
        for target in targets:
            if len(agent.watches) < TARGETS_MAX:
                agent.watches.add(target)
                self._watchers[target].add(agent)

    async def tell(self, method: str, message: BaseModel) -> int:
        """Notify every agent; gives how many took it. A slow one holds up nobody."""
        return sum(await asyncio.gather(*(_tell(agent, method, message) for agent in list(self._present.values()))))

    async def tell_each(self, method: str, message: Callable[[Present], BaseModel]) -> None:
        """Notify every agent of what is made for it."""
        await asyncio.gather(*(_tell(agent, method, message(agent)) for agent in list(self._present.values())))

    async def tell_watchers(self, target: Target) -> None:
        """Notify who has links to this space, if owner and zone are the same."""
        await self._tell_of(target, self._watchers.get(target.id, ()))

    async def tell_neighbours(self, target: Target) -> None:
        """Notify every agent of the same owner and zone: one may have a link to this space and never have asked for it."""
        await self._tell_of(target, self._present.values())

    async def _tell_of(self, target: Target, agents: Iterable[Present]) -> None:
        principal = Principal(target.owner, target.zone)
        hearers = [agent for agent in agents if agent.principal == principal]
        await asyncio.gather(*(_tell(agent, "target.changed", target) for agent in hearers))

    async def dismiss(self, agent: Present, reason: str) -> None:
        """Tell an agent that its key is void, and end the conversation."""
        await _tell(agent, "agent.farewell", Farewell(reason=reason))
        agent.peer.close()

    async def supersede(self, agent: Present) -> None:
        """Tell an agent that another connection of its space has taken its place, and end the conversation."""
        await _tell(agent, "agent.superseded", Nothing())
        agent.peer.close()

    def _forget_report(self, agent: Present) -> None:
        if agent.report:
            self.fleet.forget(agent.report)
        agent.report = None


async def _tell(agent: Present, method: str, message: BaseModel) -> bool:
    """Gives whether it was taken; who does not take it is cut off."""
    try:
        async with asyncio.timeout(TELL_TIMEOUT):
            await agent.peer.notify(method, message)
    except (TimeoutError, Unavailable):
        agent.line.abort()
        return False
    return True
