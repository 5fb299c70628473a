"""Spaces without an agent: their sshd is registered with the relay, and runs for as long as it is."""

from __future__ import annotations

import structlog

from knot_server.actor import Actor
from knot_server.roster import Roster
from knot_server.store.schema import Space
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.lastseen import LastSeen
from knot_ssh.errors import KnotError
from knot_ssh.names import SpaceId
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)


class Registrations:
    """Takes down who comes and goes, and tells who has forwards there."""

    def __init__(self, roster: Roster, forwarding: Forwarding, last_seen: LastSeen) -> None:
        self._roster = roster
        self._forwarding = forwarding
        self._last_seen = last_seen
        self._tasks = Tasks()
        self._untold: set[SpaceId] = set()

    def came(self, space: Space) -> None:
        """The space's sshd can be relayed to from now on."""
        self._roster.sshd_came(space.space_id)
        log.info("sshd registered", space=space.name, owner=space.owner, zone=space.zone)
        self._changed(space)

    def left(self, space: Space) -> None:
        """One registration of it has ended."""
        self._roster.sshd_left(space.space_id)
        log.info("sshd left", space=space.name, owner=space.owner, zone=space.zone)
        self._changed(space)

    async def close(self) -> None:
        """Tell nobody any more."""
        await self._tasks.cancel()

    def _changed(self, space: Space) -> None:
        self._last_seen.note(space.space_id)
        if space.space_id not in self._untold:
            self._untold.add(space.space_id)
            self._tasks.start(self._tell(space))

    async def _tell(self, space: Space) -> None:
        """How it stands by then: one that comes and goes without end has each hearer told as often as that can be heard."""
        actor = Actor(space.principal.owner, zone=space.principal.zone)
        async with self._roster.lock(space.space_id):
            self._untold.discard(space.space_id)
            try:
                target = await self._forwarding.target(actor, space.space_id)
            except KnotError:  # deleted, which is told elsewhere; or a store that fails, and agents ask again by themselves
                return
            await self._roster.tell_watchers(target)
