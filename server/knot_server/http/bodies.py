"""Bodies of the HTTP API that no other door shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt

from knot_server.actor import Scope
from knot_server.store.schema import Space, User
from knot_server.usecases.tokens import TokenView
from knot_ssh.errors import codes
from knot_ssh.names import TOKEN_ID, Owner, SpaceName, TokenName, Zone
from knot_ssh.wire import Message, SpaceReference

LIFETIME_MIN = 60
"""Seconds: what is good for less is over before it is used."""
TOKEN_LIFETIME_MAX = 10 * 366 * 24 * 3600
"""Seconds, ten years: who wants longer wants a token without an end."""


class Problem(BaseModel):
    """What every error looks like."""

    success: Literal[False] = False
    error: str = Field(description="One sentence: what is wrong, and what to do.")
    code: str = Field(description="Names the kind of error, for scripts.", examples=codes())


class Done(BaseModel):
    """A request that has nothing else to say."""

    success: Literal[True] = True


class NewSpace(Message):
    name: SpaceName
    zone: Zone


class SpaceChange(Message):
    name: SpaceName


class NewToken(Message):
    reusable: StrictBool = Field(default=False, description="For templates: usable many times, for a month.")


class NewUserBody(Message):
    name: Owner
    admin: StrictBool = False


class SpaceInfo(BaseModel):
    id: str
    name: str
    owner: str
    zone: str
    running: bool
    agentless: bool = Field(description="An ordinary sshd serves it, without an agent: forwards can only lead to it.")
    host_key: str | None = Field(description="The endpoint's public host key, for clients that pin it.")
    created_at: datetime
    last_seen: datetime | None

    @classmethod
    def of(cls, space: Space, *, running: bool) -> SpaceInfo:
        return cls(
            id=space.id,
            name=space.name,
            owner=space.owner,
            zone=space.zone,
            running=running,
            agentless=space.agentless,
            host_key=space.host_key,
            created_at=moment(space.created_at),
            last_seen=moment(space.last_seen) if space.last_seen else None,
        )


class SpaceList(BaseModel):
    spaces: list[SpaceInfo]


class JoinTokenBody(BaseModel):
    join_token: str = Field(description="For `knot agent run`; shown this once.")
    hub: str = Field(description="host:port of the hub, where the agent joins.")


class CreatedSpace(SpaceInfo, JoinTokenBody):
    """A new space and its first join token."""


class UserInfo(BaseModel):
    name: str
    admin: bool
    created_at: datetime

    @classmethod
    def of(cls, user: User) -> UserInfo:
        return cls(name=user.name, admin=user.admin, created_at=moment(user.created_at))


class UserList(BaseModel):
    users: list[UserInfo]


class CreatedUser(BaseModel):
    name: str
    token: str = Field(description="The user's API token; shown this once.")
    expires_at: datetime | None = Field(default=None, description="When it ends, if the token that asked ends.")


class NewApiToken(Message):
    name: TokenName
    scope: Scope = Field(default=Scope.ALL, description="What it is good for: `forwards` is for those of one space.")
    space: SpaceReference | None = Field(default=None, description="The space, with the scope `forwards` and only then.")
    lifetime: StrictInt | None = Field(
        default=None,
        ge=LIFETIME_MIN,
        le=TOKEN_LIFETIME_MAX,
        description="Seconds; at most, and without one exactly, what the asking token has left.",
    )
    user: Owner | None = Field(default=None, description="Whose it is to be, if not your own; for administrators.")


class ApiTokenInfo(BaseModel):
    id: str = Field(pattern=f"^{TOKEN_ID}$", description="Its public id; no part of the secret.")
    name: str
    user: str
    scope: str
    space: str | None = Field(description="The name of the space that it is good for, with the scope `forwards`.")
    space_id: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used: datetime | None = Field(description="When it was last shown, to within a minute or so.")

    @classmethod
    def of(cls, view: TokenView) -> ApiTokenInfo:
        row = view.row
        return cls(
            id=row.id,
            name=row.name,
            user=row.user_name,
            scope=row.scope,
            space=view.space,
            space_id=row.space_id,
            created_at=moment(row.created_at),
            expires_at=moment(row.expires_at) if row.expires_at else None,
            last_used=moment(row.last_used) if row.last_used else None,
        )


class ApiTokenList(BaseModel):
    tokens: list[ApiTokenInfo]


class CreatedApiToken(ApiTokenInfo):
    token: str = Field(description="The API token; shown this once.")


class CaInfo(BaseModel):
    user_ca: str = Field(description="Signs users and agents (OpenSSH public key line).")
    host_ca: str = Field(description="Signs hosts (OpenSSH public key line).")
    hub: str = Field(description="host:port of the hub.")
    hub_key: str = Field(description="The hub's public host key, for clients that pin it.")


class CertificateOrder(Message):
    public_key: str = Field(max_length=4096, description="OpenSSH public key line to certify.")
    lifetime: StrictInt | None = Field(
        default=None, ge=LIFETIME_MIN, description="Seconds; capped at the server's own lifetime."
    )


class PersonCertificate(BaseModel):
    certificate: str = Field(description="OpenSSH certificate line, for `<key>-cert.pub`.")
    principals: list[str]
    expires_at: datetime


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
