"""Users and their API tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_server.actor import Actor
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, User
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.lookup import administrators_only, check_current
from knot_server.usecases.spaces import Spaces
from knot_server.usecases.tokens import add_token, token_id
from knot_ssh.errors import Conflict, NameTaken, NotFound
from knot_ssh.names import Owner, TokenName

FIRST_TOKEN = TokenName("first")
"""What the token is called that a new user gets."""


@dataclass(frozen=True, slots=True)
class NewUser:
    """A user just made, with the one token that is ever shown."""

    name: Owner
    token: str
    expires_at: int | None = None
    """When the token ends, in seconds since 1970 (UTC), if it does."""


async def add_user(session: AsyncSession, name: Owner, *, admin: bool, expires_at: int | None = None) -> NewUser:
    """Add a user and a token; raises NameTaken, also while certificates of an earlier user of that name are good."""
    if await session.get(User, str(name)):
        raise NameTaken(f"there is a user {name!r} already")
    held_until = await session.scalar(select(func.max(Certificate.expires_at)).where(Certificate.owner == str(name)))
    if held_until and held_until > time.time():
        minutes = max(1, round((held_until - time.time()) / 60))
        raise NameTaken(f"the name {name!r} is held back until its last certificate has expired, for {minutes} min")
    now = int(time.time())
    session.add(User(name=str(name), admin=admin, created_at=now))
    await session.flush()
    _, token = add_token(session, name, FIRST_TOKEN, expires_at=expires_at)
    return NewUser(name, token, expires_at)


class Users:
    """Use cases around users. Only administrators make and delete them."""

    def __init__(self, database: Database, spaces: Spaces, audit: Audit) -> None:
        self._database = database
        self._spaces = spaces
        self._audit = audit

    async def create(self, actor: Actor, name: Owner, *, admin: bool = False) -> NewUser:
        """Make a user, whose first token lives no longer than the actor's; raises Forbidden or NameTaken."""
        administrators_only(actor)
        async with self._database.writing() as session:
            await check_current(session, actor)
            made = await add_user(session, name, admin=admin, expires_at=actor.expires_at)
            record_user(self._audit, session, actor, made, admin=admin)
            return made

    async def listing(self, actor: Actor) -> list[User]:
        """All users for an administrator, else only oneself; by name."""
        everybody = select(User).order_by(User.name)
        async with self._database.reading() as session:
            return list(await session.scalars(everybody if actor.admin else everybody.where(User.name == str(actor.owner))))

    async def delete(self, actor: Actor, name: Owner) -> None:
        """Delete a user and their spaces, cutting every agent of theirs at once; raises Forbidden, NotFound, Conflict."""
        administrators_only(actor)
        if name == actor.owner:
            raise Conflict("you cannot delete yourself")
        async with self._database.writing() as session:
            await check_current(session, actor)
            user = await session.get(User, str(name))
            if user is None:
                raise NotFound(f"there is no user {name!r}")
            gone = await self._spaces.forget_all(session, name)
            await session.delete(user)
            self._audit.record(session, Event.USER_DELETED, actor, owner=name, spaces=len(gone))
        await self._spaces.cut(gone, f"the user {name} was deleted")


def record_user(audit: Audit, session: AsyncSession, actor: Actor | str, made: NewUser, *, admin: bool) -> None:
    """A user and their first token."""
    audit.record(session, Event.USER_MADE, actor, owner=made.name, admin=admin)
    audit.record(
        session, Event.TOKEN_MADE, actor, owner=made.name, kind="api", token=token_id(made.token), name=str(FIRST_TOKEN)
    )
