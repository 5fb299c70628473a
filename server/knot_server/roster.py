"""Which agents are connected at this moment, and how to speak to them. A space runs while its agent is here."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pydantic import BaseModel

from knot_ssh.errors import Unavailable
from knot_ssh.names import Principal, SpaceId
from knot_ssh.rpc import Peer
from knot_ssh.wire import TARGETS_MAX, Farewell, Nothing, Spread, Target

Answer = TypeVar("Answer", bound=BaseModel)

TELL_TIMEOUT = 5.0
"""Seconds an agent may take to read a notification before its connection is given up."""


SECONDS_A_LOGIN = 0.01
"""Of one processor, for an agent to log in, be welcomed and certified, with a margin."""
SMALL_FLEET = 50
"""Agents that need not be told: each hears at its welcome."""
SPREAD_MAX = 600.0
"""Seconds; a space should not wait longer for its server to know of it."""


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

    async def ask(self, method: str, params: BaseModel, answer: type[Answer]) -> Answer:
        """Call the agent; raises what it raised, or Unavailable when it is gone or silent."""
        try:
            return answer.model_validate(await self.peer.call(method, params))
        except Unavailable:
            raise Unavailable(
                "the agent of that space did not answer; `knot port list` tells how it stands once it does"
            ) from None


class Roster:
    """The connected agents by space id."""

    def __init__(self) -> None:
        self._present: dict[SpaceId, Present] = {}
        self._told = SMALL_FLEET
        self._watchers: defaultdict[SpaceId, set[Present]] = defaultdict(set)
        self._locks: defaultdict[SpaceId, asyncio.Lock] = defaultdict(asyncio.Lock)

    def get(self, space_id: SpaceId) -> Present | None:
        return self._present.get(space_id)

    def lock(self, space_id: SpaceId) -> asyncio.Lock:
        """Held by whoever changes a space's forwards, so that store and agent see changes in one order."""
        return self._locks[space_id]

    def arrive(self, agent: Present) -> Present | None:
        """Enter an agent; gives the connection it takes the place of, for the caller to close."""
        before = self._present.get(agent.space_id)
        self._present[agent.space_id] = agent
        return before

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

    async def tell(self, method: str, message: BaseModel) -> None:
        """Notify every agent. A slow one holds up nobody."""
        await asyncio.gather(*(_tell(agent, method, message) for agent in list(self._present.values())))

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


async def _tell(agent: Present, method: str, message: BaseModel) -> None:
    try:
        async with asyncio.timeout(TELL_TIMEOUT):
            await agent.peer.notify(method, message)
    except (TimeoutError, Unavailable):
        agent.line.abort()
