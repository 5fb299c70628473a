"""API tokens: `knot_`, a public id to find it by, and a secret of 256 bits of which a hash alone is stored.

A token is good for what its scope says, of one space alone if it names one, until it expires. It makes no token with more
rights than its own, and none that lives longer: tokens come from tokens of scope `all` alone.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.jointoken import hash_secret, matches
from knot_server.actor import Actor, Grant, Scope
from knot_server.store.database import Database
from knot_server.store.schema import ApiToken, User
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.lastseen import LastSeen
from knot_server.usecases.lookup import check_current, visible_space
from knot_ssh.errors import BadInput, Conflict, Forbidden, NameTaken, NotAuthenticated, NotFound
from knot_ssh.names import TOKEN_ID, Owner, SpaceId, TokenName

TOKEN_PREFIX = "knot_"
TOKEN_ID_BYTES, TOKEN_SECRET_BYTES = 6, 32
_TOKEN = re.compile(rf"{TOKEN_PREFIX}({TOKEN_ID})_([0-9a-f]{{{2 * TOKEN_SECRET_BYTES}}})")
TOKENS_MAX = 100
"""Tokens that a user may have: more than anybody keeps in mind, and a bound on what a script gone wild stores."""
USED_PAUSE = 60
"""Seconds between two notes that a token is in use: enough to find those that nobody needs."""
KEPT = 7 * 24 * 3600
"""Seconds that a token is listed after it has expired, for who wonders why something stopped working."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A token as it is asked for. Without a lifetime (seconds) it has what the asking token has left."""

    name: TokenName
    scope: Scope = Scope.ALL
    space: str | None = None
    lifetime: int | None = None
    user: Owner | None = None


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token as it may be shown; `space` is the name of the space that it is good for."""

    row: ApiToken
    space: str | None


def add_token(
    session: AsyncSession,
    user: Owner,
    name: TokenName,
    *,
    scope: Scope = Scope.ALL,
    space_id: str | None = None,
    expires_at: int | None = None,
) -> tuple[ApiToken, str]:
    """Add a token for this user, within a transaction; gives it with the text that is shown once."""
    secret = secrets.token_bytes(TOKEN_SECRET_BYTES)
    row = ApiToken(
        id=secrets.token_hex(TOKEN_ID_BYTES),
        secret_hash=hash_secret(secret),
        user_name=str(user),
        created_at=_now(),
        name=str(name),
        scope=str(scope),
        space_id=space_id,
        expires_at=expires_at,
    )
    session.add(row)
    return row, f"{TOKEN_PREFIX}{row.id}_{secret.hex()}"


class Tokens:
    """Use cases around API tokens. Users see and make their own, administrators everybody's."""

    def __init__(self, database: Database, audit: Audit) -> None:
        self._database = database
        self._audit = audit
        self._used = LastSeen(database, ApiToken.last_used)

    async def close(self) -> None:
        """Write what is still to be written."""
        await self._used.close()

    async def authenticate(self, token: str) -> Actor:
        """Who holds this API token; raises NotAuthenticated, which says nothing of what was wrong with it."""
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise _refused()
        async with self._database.reading() as session:
            row = await session.get(ApiToken, parts[1])
            if row is None or not matches(bytes.fromhex(parts[2]), row.secret_hash):
                raise _refused()
            actor = Actor(Owner(row.user.name), admin=row.user.admin, grant=_grant(row))
        if _now() - (row.last_used or 0) >= USED_PAUSE:
            self._used.note(row.id)
        return actor

    async def create(self, actor: Actor, wanted: Wanted) -> tuple[TokenView, str]:
        """Make a token; gives it with its text. Raises Forbidden, NotFound (user, space), NameTaken, BadInput, Conflict."""
        user = wanted.user or actor.owner
        if user != actor.owner and not actor.admin:
            raise Forbidden
        async with self._database.writing() as session:
            await check_current(session, actor)
            if await session.get(User, str(user)) is None:
                raise NotFound(f"there is no user {user!r}")
            await _make_room(session, user, wanted.name)
            space = await visible_space(session, Actor(user), wanted.space) if wanted.space else None
            if (space is not None) != (wanted.scope is Scope.FORWARDS):
                raise BadInput(f"space: goes with the scope {str(Scope.FORWARDS)!r}, and only with that")
            ends = actor.expires_at if wanted.lifetime is None else actor.at_most(_now() + wanted.lifetime)
            space_id = space.id if space else None
            row, text = add_token(session, user, wanted.name, scope=wanted.scope, space_id=space_id, expires_at=ends)
            self._audit.record(session, Event.TOKEN_MADE, actor, **_told(row))
        return TokenView(row, space.name if space else None), text

    async def listing(self, actor: Actor) -> list[TokenView]:
        """One's own tokens, or everybody's for an administrator; by user and name."""
        async with self._database.reading() as session:
            query = select(ApiToken).order_by(ApiToken.user_name, ApiToken.name, ApiToken.id)
            own = query if actor.admin else query.where(ApiToken.user_name == str(actor.owner))
            return [_view(row) for row in await session.scalars(own)]

    async def current(self, actor: Actor) -> TokenView:
        """The token that was shown; raises NotAuthenticated when it was revoked meanwhile."""
        async with self._database.reading() as session:
            row = await session.get(ApiToken, actor.grant.token_id) if actor.grant else None
            if row is None:
                raise _refused()
            return _view(row)

    async def revoke(self, actor: Actor, reference: str) -> None:
        """End a token, by its id or one's own by its name: the next request that shows it is refused. Raises NotFound."""
        async with self._database.writing() as session:
            await check_current(session, actor)
            row = await _find(session, actor, reference)
            self._audit.record(session, Event.TOKEN_REVOKED, actor, **_told(row))
            await session.delete(row)


def token_id(text: str) -> str:
    """The public part of an API token."""
    return text.removeprefix(TOKEN_PREFIX).partition("_")[0]


def _grant(row: ApiToken) -> Grant:
    """What the token is good for; raises NotAuthenticated for one that has expired, or says what this program does not know."""
    is_over = row.expires_at is not None and row.expires_at <= _now()
    is_whole = row.scope in set(Scope) and (row.space_id is not None) == (row.scope == Scope.FORWARDS)
    if is_over or not is_whole:
        raise _refused()
    return Grant(row.id, Scope(row.scope), SpaceId(row.space_id) if row.space_id else None, row.expires_at)


async def _make_room(session: AsyncSession, user: Owner, name: TokenName) -> None:
    """Forget this user's tokens that have long expired; raises NameTaken, or Conflict where there are too many."""
    own = ApiToken.user_name == str(user)
    await session.execute(delete(ApiToken).where(own, ApiToken.expires_at < _now() - KEPT))
    if await session.scalar(select(ApiToken.id).where(own, ApiToken.name == str(name))):
        raise NameTaken(f"{user} has a token {name!r} already; choose another name, or revoke that one")
    if (await session.scalar(select(func.count()).where(own)) or 0) >= TOKENS_MAX:
        raise Conflict(f"{user} has {TOKENS_MAX} tokens, the most there may be; revoke some")


async def _find(session: AsyncSession, actor: Actor, reference: str) -> ApiToken:
    """The token that may be revoked by this id or name."""
    own = ApiToken.user_name == str(actor.owner)
    found = await session.scalar(select(ApiToken).where(own, (ApiToken.id == reference) | (ApiToken.name == reference)))
    if found is None and actor.admin:
        found = await session.get(ApiToken, reference)
    if found is None:
        raise NotFound("there is no such token of yours; `knot token list` shows what there is")
    return found


def _view(row: ApiToken) -> TokenView:
    return TokenView(row, row.space.name if row.space else None)


def _told(row: ApiToken) -> dict[str, str | None]:
    """What the audit record says of a token."""
    return {
        "owner": row.user_name,
        "space_id": row.space_id,
        "kind": "api",
        "token": row.id,
        "name": row.name,
        "scope": row.scope,
    }


def _refused() -> NotAuthenticated:
    return NotAuthenticated("this API token is not accepted: it is not whole, of another server, expired or revoked")


def _now() -> int:
    return int(time.time())
