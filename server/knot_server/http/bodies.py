"""Bodies of the HTTP API that no other door shares."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    StrictBool,
    StrictInt,
    model_validator,
)

from knot_keys.keyring import Phase, Step
from knot_server.actor import Scope
from knot_server.store.schema import Space, User
from knot_server.usecases.audit import Event
from knot_server.usecases.auditreading import Page, Wanted
from knot_server.usecases.revoking import Entry
from knot_server.usecases.rotation import Standing, What
from knot_server.usecases.tokens import TokenView
from knot_ssh.errors import codes
from knot_ssh.names import TOKEN_ID, Owner, SpaceName, TokenName, Zone
from knot_ssh.wire import Message, SpaceReference
from knot_ssh.words import printable

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


REASON_LIMIT = 200
"""Characters of the reason for a revocation: a sentence."""
SERIAL = r"^[0-9]{1,19}$"
"""A certificate's serial, as text: it has 63 bits, and a number in JSON has 53 for many who read it."""

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


def _never_null(schema: dict[str, Any]) -> None:
    """At least one key, and what is there is not null."""
    schema["minProperties"] = 1
    for name, described in schema["properties"].items():
        [kind] = [choice for choice in described.pop("anyOf") if choice != {"type": "null"}]
        schema["properties"][name] = kind | {key: value for key, value in described.items() if key != "default"}


class SpaceChange(Message):
    model_config = ConfigDict(json_schema_extra=_never_null)

    name: SpaceName | None = Field(default=None, description="What it is to be called; as it is if left out.")
    zone: Zone | None = Field(default=None, description="Where it is to lie; where it is if left out.")

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, given: object) -> object:
        if isinstance(given, dict) and (not given or None in given.values()):
            raise ValueError("give a name, a zone or both")
        return given


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
    host_keys: list[str] = Field(description="The same, and the one that it is going to show or has shown.")
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
            host_keys=space.host_keys,
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
    user_cas: list[str] = Field(description="All that are to be trusted, the one that signs first.")
    host_cas: list[str] = Field(description="The same for hosts.")
    hub_keys: list[str] = Field(description="The key that the hub shows, and the one it has shown or is going to show.")
    endorsement: str | None = Field(
        description="While there are two host CAs: the older one's signature over the newer, for who has pinned the older."
    )


class RotationOrder(Message):
    step: Step
    force: StrictBool = Field(default=False, description="Though somebody is left behind.")


class HostKeyOrder(Message):
    step: Step


class DependentsInfo(BaseModel):
    kind: Literal["spaces", "certificates", "tokens", "people"]
    text: str = Field(description="What there is to say of them, after their number.")
    count: int
    names: list[str] = Field(description="The first few.")


class RotationInfo(BaseModel):
    what: What
    phase: Phase
    since: datetime | None = Field(description="When the phase began; null for a key that is not being rotated.")
    active: str = Field(description="Fingerprint of the key in use.")
    next: str | None = Field(description="Of the one that is trusted already, and will be used.")
    old: str | None = Field(description="Of the one that is trusted still, and was used before.")
    due: Step = Field(description="The step that comes next.")
    dependents: list[DependentsInfo] = Field(description="Who would be left behind by it.")

    @classmethod
    def of(cls, standing: Standing) -> RotationInfo:
        return cls(
            what=standing.what,
            phase=standing.phase,
            since=moment(int(standing.since)) if standing.since else None,
            active=standing.active,
            next=standing.next,
            old=standing.old,
            due=standing.due,
            dependents=[DependentsInfo.model_validate(found, from_attributes=True) for found in standing.dependents],
        )


class RotationList(BaseModel):
    rotations: list[RotationInfo]


class CertificateOrder(Message):
    public_key: str = Field(max_length=4096, description="OpenSSH public key line to certify.")
    lifetime: StrictInt | None = Field(
        default=None, ge=LIFETIME_MIN, description="Seconds; capped at the server's own lifetime."
    )


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


class _Revocation(Message):
    reason: Annotated[str, AfterValidator(printable)] = Field(
        default="", max_length=REASON_LIMIT, description="Why, for the list and the audit record."
    )


class _OfUser(_Revocation):
    user: Owner | None = Field(default=None, description="Whose it is, if not one's own; for administrators.")


class RevokeCertificate(_OfUser):
    """One certificate: of an agent, a host or a person."""

    kind: Literal["certificate"]
    serial: str = Field(pattern=SERIAL, description="Its serial number, as text.", examples=["8143579713041237043"])


class RevokeSpace(_OfUser):
    """A space's enrolled key, its certificates and its unused join tokens; the space stays."""

    kind: Literal["space"]
    space: SpaceReference


class RevokeUser(_Revocation):
    """All that a user can show; they stay, with their spaces."""

    kind: Literal["user"]
    user: Owner


class RevokeKey(_OfUser):
    """A public key: every certificate for it, now and later, and a space whose enrolled key it is."""

    kind: Literal["key"]
    key: str = Field(max_length=4096, description="Its SHA256 fingerprint as `ssh-keygen -l` prints it, or its OpenSSH line.")


class Revocation(RootModel[Annotated[RevokeCertificate | RevokeSpace | RevokeUser | RevokeKey, Field(discriminator="kind")]]):
    """What is to be void from now on."""


class VoidedBody(BaseModel):
    """What has become void by it."""

    certificates: int
    keys: int = Field(description="Enrolled keys of spaces.")
    join_tokens: int
    api_tokens: int
    agents_told: int = Field(description="Connected agents that have been told.")


class RevocationInfo(BaseModel):
    kind: Literal["certificate", "enrolled key", "key"] = Field(description="`key`: it is certified no more for its owner.")
    what: str = Field(description="A certificate's serial, or a key's fingerprint.")
    owner: str
    key_id: str = Field(description="Whom a certificate was for.")
    reason: str
    until: datetime | None = Field(description="When what is void has run out by itself; null for what is void for good.")

    @classmethod
    def of(cls, entry: Entry) -> RevocationInfo:
        return cls(
            kind=entry.kind,
            what=entry.what,
            owner=entry.owner,
            key_id=entry.key_id,
            reason=entry.reason,
            until=moment(entry.until) if entry.until else None,
        )


class RevocationInfos(BaseModel):
    revocations: list[RevocationInfo]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
