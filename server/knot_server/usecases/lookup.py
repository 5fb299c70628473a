"""Find what a request names, within what the asker may see. Another owner's space is never told apart from none."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.actor import Actor
from knot_server.store.schema import ApiToken, BarredKey, Space
from knot_ssh.errors import BadInput, Forbidden, NotAuthenticated, NotFound
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, space_reference
from knot_ssh.wire import Target


async def find_space(session: AsyncSession, actor: Actor, reference: str | None) -> Space:
    """The space by this id or name that the actor may act on; without a reference, the agent's own.

    Raises NotFound, which says the same whether it does not exist or is not theirs.
    """
    if reference is None:
        if actor.space is None:
            raise BadInput("name a source space")
        reference = actor.space
    space = await visible_space(session, actor, reference)
    if not actor.can_act_on(space.id, space.zone):
        raise _missing(reference)
    return space


async def visible_space(session: AsyncSession, actor: Actor, reference: str) -> Space:
    """The actor's space by this id or name, in whatever zone; raises NotFound, or NotAuthenticated as `check_current`."""
    await check_current(session, actor)
    found = space_reference(reference)
    column = Space.id if isinstance(found, SpaceId) else Space.name
    space = await session.scalar(select(Space).where(Space.owner == actor.owner, column == str(found)))
    if space is None:
        raise _missing(reference)
    return space


async def names_now(session: AsyncSession, actor: Actor, space_ids: Sequence[SpaceId]) -> dict[SpaceId, SpaceName]:
    """What those of these spaces are called that are of the actor's owner and zone."""
    own = select(Space).where(Space.owner == actor.owner, Space.zone == actor.zone)
    spaces = await session.scalars(own.where(Space.id.in_([str(space_id) for space_id in space_ids])))
    return {space.space_id: space.space_name for space in spaces}


async def check_current(session: AsyncSession, actor: Actor) -> None:
    """Raise NotAuthenticated when the actor's API token was revoked since it was shown, which is before the body of a request
    was read: it is to change nothing more."""
    if actor.token is None:
        return
    if await session.scalar(select(ApiToken.id).where(ApiToken.id == actor.token)) is None:
        raise NotAuthenticated("that API token was revoked")


def administrators_only(actor: Actor) -> None:
    """Raise Forbidden for anybody else."""
    if not actor.admin:
        raise Forbidden


async def is_barred(session: AsyncSession, owner: Owner | str, fingerprint: str) -> bool:
    """Whether a key is certified no more for this owner."""
    return await session.get(BarredKey, (str(owner), fingerprint)) is not None


def gone(space: Space, principal: Principal, *, moved: bool = False) -> Target:
    """A space that was deleted, or has moved, as agents of this owner and zone hear of it."""
    return Target(
        id=space.space_id,
        name=space.space_name,
        owner=principal.owner,
        zone=principal.zone,
        addresses=[],
        running=False,
        gone=True,
        moved=moved,
    )


def _missing(reference: str) -> NotFound:
    return NotFound(f"there is no space {reference!r} of yours; `knot space list` shows what there is")
