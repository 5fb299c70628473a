"""Spaces: made, listed, deleted, and invited to join."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.authority import Authority
from knot_keys.jointoken import JoinToken as JoinTokenText
from knot_keys.jointoken import hash_secret
from knot_server.actor import Actor
from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, JoinToken, Space
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.lookup import check_current, find_space, gone, visible_space
from knot_server.usecases.renaming import check_free
from knot_server.usecases.revocation import Revocations
from knot_ssh.names import Owner, SpaceId, SpaceName, Zone

TOKEN_LIFETIME = 30 * 60
"""Seconds in which a join token must be used: enough to start a container, too short to be found in a log next week."""
REUSABLE_LIFETIME = 30 * 24 * 3600
REUSABLE_USES = 1000
"""A reusable token, for templates that are rebuilt often: a month, and so many joins."""


class Spaces:
    """Use cases around spaces. Users see their own alone."""

    def __init__(
        self, database: Database, authority: Authority, revocations: Revocations, roster: Roster, audit: Audit
    ) -> None:
        self._database = database
        self._authority = authority
        self._revocations = revocations
        self._roster = roster
        self._audit = audit

    async def create(self, actor: Actor, name: SpaceName, zone: Zone) -> tuple[Space, str]:
        """Make a space and a join token for it; raises NameTaken."""
        space = Space(id=str(SpaceId.new()), name=str(name), owner=str(actor.owner), zone=str(zone), created_at=_now())
        async with self._database.writing() as session:
            await check_current(session, actor)
            await check_free(session, space, name)
            session.add(space)
            await session.flush()
            self._audit.record(
                session, Event.SPACE_MADE, actor, owner=space.owner, space_id=space.id, space=space.name, zone=space.zone
            )
            token = self._add_token(session, actor, space, reusable=False)
        return space, token

    async def listing(self, actor: Actor) -> Sequence[Space]:
        """The actor's spaces, by name."""
        async with self._database.reading() as session:
            return list(await session.scalars(select(Space).where(Space.owner == str(actor.owner)).order_by(Space.name)))

    async def show(self, actor: Actor, reference: str) -> Space:
        """One of the actor's spaces; raises NotFound."""
        async with self._database.reading() as session:
            return await find_space(session, actor, reference)

    async def new_token(self, actor: Actor, reference: str, *, reusable: bool) -> tuple[Space, str]:
        """Another join token for a space: whoever joins with it takes the place of the agent before. Raises NotFound."""
        async with self._database.writing() as session:
            await check_current(session, actor)
            space = await visible_space(session, actor, reference)
            return space, self._add_token(session, actor, space, reusable=reusable)

    async def delete(self, actor: Actor, reference: str) -> Space:
        """Delete a space, cut its agent off at once, and tell whoever has forwards to it; raises NotFound."""
        async with self._database.writing() as session:
            space = await visible_space(session, actor, reference)
            await self._forget(session, space)
            self._audit.record(
                session, Event.SPACE_DELETED, actor, owner=space.owner, space_id=space.id, space=space.name, zone=space.zone
            )
        await self.cut([space.space_id], f"the space {space.name} was deleted")
        await self._roster.tell_watchers(gone(space, space.principal))
        return space

    async def forget_all(self, session: AsyncSession, owner: Owner) -> list[SpaceId]:
        """Delete an owner's spaces, and void their own certificates, within a transaction; call `cut` with the ids once
        it is committed."""
        reason = f"user {owner} deleted"
        await self._revocations.record(session, Certificate.owner == str(owner), None, reason, owner=owner, frees_name=True)
        spaces = list(await session.scalars(select(Space).where(Space.owner == str(owner))))
        for space in spaces:
            await self._forget(session, space)
        return [space.space_id for space in spaces]

    async def cut(self, space_ids: Sequence[SpaceId], reason: str) -> None:
        """Void the keys everywhere, then end the connections of these spaces' agents."""
        await self._revocations.publish(space_ids, reason)

    async def _forget(self, session: AsyncSession, space: Space) -> None:
        reason = f"space {space.name} deleted"
        own = Certificate.space_id == space.id
        await self._revocations.record(session, own, space.enrolled_key, reason, owner=space.owner, frees_name=True)
        await session.delete(space)
        await session.flush()

    def _add_token(self, session: AsyncSession, actor: Actor, space: Space, *, reusable: bool) -> str:
        token = JoinTokenText.new(*self._authority.host_cas)
        lifetime, uses = (REUSABLE_LIFETIME, REUSABLE_USES) if reusable else (TOKEN_LIFETIME, 1)
        session.add(
            JoinToken(
                id=token.id,
                secret_hash=hash_secret(token.secret),
                space_id=space.id,
                uses_left=uses,
                expires_at=actor.at_most(_now() + lifetime),
                host_cas=" ".join(sorted(self._authority.hosts.keys.names)),
            )
        )
        self._audit.record(
            session,
            Event.TOKEN_MADE,
            actor,
            owner=space.owner,
            space_id=space.id,
            space=space.name,
            kind="join",
            token=token.id,
            reusable=reusable,
            seconds=lifetime,
        )
        return str(token)


async def drop_old_tokens(database: Database) -> None:
    """Forget join tokens a day after they ran out; until then the error can say that they did."""
    async with database.writing() as session:
        await session.execute(delete(JoinToken).where(JoinToken.expires_at < _now() - 24 * 3600))


def _now() -> int:
    return int(time.time())
