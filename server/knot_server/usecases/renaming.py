"""Give a space another name. Nothing else changes: whatever is stored, certified or open goes by the space's id.

The store comes first; then the hub relays under the new name, the space's own agent is certified under it, and its
neighbours hear of it. Whoever is away hears at the next hello.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.identity import host_key_ids
from knot_server.actor import Actor
from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, RevokedCertificate, Space, StoredForward
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.lookup import visible_space
from knot_ssh.errors import KnotError, NameTaken
from knot_ssh.names import SpaceId, SpaceName
from knot_ssh.wire import Nothing

log = structlog.get_logger(__name__)

CERTIFY_SECONDS = 5.0
"""For the space's agent to be certified under the new name, before the rename is done without it."""
MINUTE = 60


class Renaming:
    """The use case. `on_rename` is called with each new name as soon as it is stored."""

    def __init__(self, database: Database, roster: Roster, enrolment: Enrolment, forwarding: Forwarding, audit: Audit) -> None:
        self._database = database
        self._roster = roster
        self._audit = audit
        self._enrolment = enrolment
        self._forwarding = forwarding
        self.on_rename: list[Callable[[SpaceId, SpaceName], None]] = []

    async def rename(self, actor: Actor, reference: str, name: SpaceName) -> Space:
        """Gives the space as it is now. Raises NotFound or NameTaken, and then nothing has changed.

        To give it the name that it has tells everybody again, should a store that did not answer have kept us from it.
        """
        async with self._database.reading() as session:
            space_id = (await visible_space(session, actor, reference)).space_id
        async with self._roster.lock(space_id):  # an agent that says hello meanwhile hears one name or the other
            space, before = await self._store(actor, space_id, name)
            for listener in self.on_rename:
                listener(space_id, name)
            log.info("space renamed", before=before, space=name, owner=space.owner, zone=space.zone)
            await self._certify(space)
            await self._roster.tell_neighbours(await self._forwarding.target(actor, space_id))
        return space

    async def _store(self, actor: Actor, space_id: SpaceId, name: SpaceName) -> tuple[Space, str]:
        """Gives what the space was called before, too."""
        async with self._database.writing() as session:
            space = await visible_space(session, actor, space_id)
            before = space.name
            if before != name:
                await check_free(session, space, name)
                space.name = str(name)
                self._audit.record(
                    session, Event.SPACE_CHANGED, actor, owner=space.owner, space_id=space.id, space=space.name, before=before
                )
                forwards = update(StoredForward).where(StoredForward.target_id == space.id)
                await session.execute(forwards.values(target_name=space.name))
        return space, before

    async def _certify(self, space: Space) -> None:
        """Have the space's agent take the name over, if it is there: stock clients ask its certificate for it."""
        agent = self._roster.get(space.space_id)
        if agent is None:
            return
        agent.name = space.name
        try:
            async with asyncio.timeout(CERTIFY_SECONDS):
                await agent.ask("membership.changed", self._enrolment.membership(space), Nothing)
        except (TimeoutError, KnotError) as error:
            log.warning("agent not certified under its new name yet", space=space.name, owner=space.owner, reason=str(error))


async def check_free(session: AsyncSession, space: Space, name: SpaceName) -> None:
    """Raise NameTaken when another space of the same owner has this name, or a host certificate for it that is still good.

    Our own agents tell spaces by their ids; stock ssh knows names alone, and would take the one space for the other.
    """
    if await session.scalar(select(Space.id).where(Space.owner == space.owner, Space.name == str(name))):
        raise NameTaken(f"you have a space {name!r} already")
    revoked = select(RevokedCertificate.serial).where(RevokedCertificate.frees_name)
    of_others = select(func.max(Certificate.expires_at)).where(
        Certificate.key_id.startswith(host_key_ids(space.principal, name), autoescape=True),
        Certificate.space_id != space.id,
        Certificate.serial.not_in(revoked),
    )
    held_until = await session.scalar(of_others)
    if held_until and held_until > time.time():
        end = datetime.fromtimestamp(held_until + MINUTE, UTC)
        raise NameTaken(
            f"the name {name!r} is held back until {end:%Y-%m-%d %H:%M} UTC: "
            "a space that has had it is certified under it until then"
        )
