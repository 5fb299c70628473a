"""Bodies of the HTTP API that no other door shares."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from knot_server.store.schema import Space, User
from knot_server.usecases.audit import Event
from knot_server.usecases.auditreading import Page, Wanted
from knot_ssh.errors import codes
from knot_ssh.names import Owner, SpaceName, Zone
from knot_ssh.wire import Message, SpaceReference

PAGE_MAX = 1000
"""Records in one answer, some 400 KB."""
MAX_ID = 2**53
"""What JSON carries everywhere."""


def _iso(text: object) -> object:
    """Not a number of seconds, which is a moment to pydantic, too."""
    if not re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]", str(text)):
        raise ValueError("must be a time like 2026-11-20T09:30:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_iso)]


def _query(text: str, example: object, *, default: Any = None, **limits: Any) -> Any:
    """A parameter of a query."""
    return Query(default=default, description=text, openapi_examples={"one": {"value": example}}, **limits)


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


class CaInfo(BaseModel):
    user_ca: str = Field(description="Signs users and agents (OpenSSH public key line).")
    host_ca: str = Field(description="Signs hosts (OpenSSH public key line).")
    hub: str = Field(description="host:port of the hub.")
    hub_key: str = Field(description="The hub's public host key, for clients that pin it.")


class CertificateOrder(Message):
    public_key: str = Field(max_length=4096, description="OpenSSH public key line to certify.")
    lifetime: StrictInt | None = Field(default=None, ge=60, description="Seconds; capped at the server's own lifetime.")


class PersonCertificate(BaseModel):
    certificate: str = Field(description="OpenSSH certificate line, for `<key>-cert.pub`.")
    principals: list[str]
    expires_at: datetime


class AuditQuery(BaseModel):
    """Which records; what is not known here is refused."""

    model_config = ConfigDict(extra="forbid")

    after: int | None = _query("Those behind this id, the oldest first; without it the newest.", 0, ge=0, le=MAX_ID)
    event: list[Event] = _query("Of these kinds alone.", ["refused"], default=[], max_length=len(Event))
    space: SpaceReference | None = _query("About this space: its name or id; one that was deleted, by its id.", "backend-api")
    user: Owner | None = _query("About what this user owns, or has done.", "alice")
    since: Moment | None = _query("From this moment on.", "2026-11-20T09:30:00Z")
    until: Moment | None = _query("Before this moment.", "2026-11-20T10:30:00Z")
    limit: int = _query("As many at most.", 100, default=100, ge=1, le=PAGE_MAX)

    def wanted(self) -> Wanted:
        return Wanted(self.after, self.event, self.space, self.user, self.since, self.until, self.limit)


class AuditEntry(BaseModel):
    """A record. Beside these fields it has those of its event (docs/audit.md)."""

    model_config = ConfigDict(extra="allow")

    id: int = Field(description="Grows from record to record.")
    at: datetime
    event: str = Field(examples=[str(event) for event in Event])
    actor: str = Field(description="Who did it: a user, `agent SPACE`, `the server` or `a stranger`.")
    owner: str | None = Field(description="The user whom it concerns.")
    space: str | None = Field(description="What the space was called then, or else what it is called now.")
    space_id: str | None


class AuditPage(BaseModel):
    records: list[AuditEntry] = Field(description="The oldest first.")
    last: int = Field(description="Give this as `after` to see what comes next.")

    @classmethod
    def of(cls, page: Page) -> AuditPage:
        entries = [record | {"at": datetime.fromtimestamp(record["at"] / 1000, UTC)} for record in page.records]
        return cls(records=[AuditEntry(**entry) for entry in entries], last=page.last)


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
