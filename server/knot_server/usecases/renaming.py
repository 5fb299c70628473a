"""Give a space another name, or move it to another zone.

A name changes nothing else: whatever is stored, certified or open goes by the space's id. The zone is a border: with it all of
the space's certificates become void, and what is open across the border ends.

The store comes first; then the hub relays under the new name and zone, the space's own agent is certified under them, and its
neighbours hear of it. Whoever is away hears at the next hello.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
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
from knot_server.usecases.lookup import gone, visible_space
from knot_server.usecases.revocation import Revocations
from knot_ssh.errors import Conflict, KnotError, NameTaken
from knot_ssh.names import Principal, SpaceId, SpaceName, Zone
from knot_ssh.tasks import whole
from knot_ssh.wire import Nothing

log = structlog.get_logger(__name__)

CERTIFY_SECONDS = 5.0
"""For the space's agent to be certified under the new name, before the rename is done without it."""
MINUTE = 60


OnChange = Callable[[SpaceId, SpaceName, Principal], None]
PEOPLE = "person/{}/{}/-/-"
"""The key id of certificates that name one owner and one zone alone."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A space as it is now, and what it was called, and where it was, before."""

    space: Space
    name: SpaceName
    principal: Principal

    @property
    def has_moved(self) -> bool:
        return self.space.principal != self.principal

    @property
    def is_news(self) -> bool:
        return self.has_moved or self.space.space_name != self.name

    def told(self) -> dict[str, str]:
        """What the audit record says of it."""
        return {"space": self.space.name, "before": str(self.name), "zone": self.space.zone}


class Renaming:
    """The use case. `on_change` is called with each new name and zone as soon as they are stored."""

    def __init__(
        self,
        database: Database,
        roster: Roster,
        enrolment: Enrolment,
        forwarding: Forwarding,
        revocations: Revocations,
        audit: Audit,
    ) -> None:
        self._database = database
        self._revocations = revocations
        self._roster = roster
        self._audit = audit
        self._enrolment = enrolment
        self._forwarding = forwarding
        self.on_change: list[OnChange] = []

    async def rename(self, actor: Actor, reference: str, name: SpaceName) -> Space:
        """Only the name; as `change`."""
        return await self.change(actor, reference, name=name)

    @whole
    async def change(self, actor: Actor, reference: str, *, name: SpaceName | None = None, zone: Zone | None = None) -> Space:
        """Gives the space as it is now. Raises NotFound, NameTaken or Conflict, and then nothing has changed.

        To give it what it has already tells everybody again, should a store that did not answer have kept us from it.
        """
        async with self._database.reading() as session:
            space_id = (await visible_space(session, actor, reference)).space_id
        async with self._roster.lock(space_id):  # an agent that says hello meanwhile hears of it or gets what was before
            changed = await self._store(actor, space_id, name, zone)
            space = changed.space
            for listener in self.on_change:
                listener(space_id, space.space_name, space.principal)
            log.info("space changed", before=changed.name, space=space.name, owner=space.owner, zone=space.zone)
            await asyncio.gather(self._certify(space), *([self._cut()] if zone else []))
            if changed.has_moved:
                await self._roster.tell_neighbours(gone(space, changed.principal, moved=True))
            asker = Actor(space.principal.owner, zone=space.principal.zone)
            await self._roster.tell_neighbours(await self._forwarding.target(asker, space_id))
        return space

    async def _store(self, actor: Actor, space_id: SpaceId, name: SpaceName | None, zone: Zone | None) -> Changed:
        async with self._database.writing() as session:
            space = await visible_space(session, actor, space_id)
            changed = Changed(space, space.space_name, space.principal)
            if zone not in (None, changed.principal.zone) and space.agentless:
                raise Conflict(
                    f"the space {space.name!r} has an ordinary sshd, whose configuration names the zone: "
                    "make a space in the other zone, and run its `knot space sshd` there"
                )
            space.zone = str(zone or space.zone)
            if name not in (None, changed.name) or changed.has_moved:
                await check_free(session, space, name or changed.name)
                space.name = str(name or changed.name)
                forwards = update(StoredForward).where(StoredForward.target_id == space.id)
                await session.execute(forwards.values(target_name=space.name))
            if changed.has_moved:
                await self._leave(session, actor, changed)
            if changed.is_news:
                self._audit.record(session, Event.SPACE_CHANGED, actor, owner=space.owner, space_id=space.id, **changed.told())
        return changed

    async def _leave(self, session: AsyncSession, actor: Actor, changed: Changed) -> None:
        """Void the space's certificates, and those of people for a zone in which they own nothing any more."""
        space, before = changed.space, changed.principal
        reason = f"space {changed.name} moved to zone {space.zone}"
        own = Certificate.space_id == space.id
        voided = await self._revocations.record(session, own, None, reason, owner=space.owner)
        await session.flush()
        others = select(Space.id).where(Space.owner == space.owner, Space.zone == str(before.zone))
        if await session.scalar(others) is None:
            peoples = Certificate.key_id == PEOPLE.format(before.owner, before.zone)
            voided += await self._revocations.record(session, peoples, None, reason, owner=space.owner)
        self._audit.record(
            session,
            Event.REVOKED,
            actor,
            owner=space.owner,
            space_id=space.id,
            space=space.name,
            kind="move",
            what=space.name,
            reason=reason,
            certificates=voided,
        )

    async def _cut(self) -> None:
        """The old zone's certificates are void everywhere."""
        await asyncio.sleep(0)  # the space's own agent hears first what it is now
        await self._revocations.publish([], "")

    async def _certify(self, space: Space) -> None:
        """Have the space's agent take the name over, if it is there: stock clients ask its certificate for it."""
        agent = self._roster.get(space.space_id)
        if agent is None:
            return
        agent.name, agent.principal = space.name, space.principal
        try:
            async with asyncio.timeout(CERTIFY_SECONDS):
                await agent.ask("membership.changed", self._enrolment.membership(space), Nothing)
        except (TimeoutError, KnotError) as error:
            log.warning("agent not certified anew yet", space=space.name, owner=space.owner, reason=str(error))


async def check_free(session: AsyncSession, space: Space, name: SpaceName) -> None:
    """Raise NameTaken when another space of the same owner has this name, or a host certificate for it that is still good.

    Our own agents tell spaces by their ids; stock ssh knows names alone, and would take the one space for the other.
    """
    taken = select(Space.id).where(Space.owner == space.owner, Space.name == str(name), Space.id != space.id)
    if await session.scalar(taken):
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
