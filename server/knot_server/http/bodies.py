"""Bodies of the HTTP API that no other door shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel, StrictBool, StrictInt, model_validator

from knot_server.store.schema import Space, User
from knot_server.usecases.revoking import Entry
from knot_ssh.errors import codes
from knot_ssh.names import Owner, SpaceName, Zone
from knot_ssh.wire import Message, SpaceReference
from knot_ssh.words import printable

REASON_LIMIT = 200
"""Characters of the reason for a revocation: a sentence."""
SERIAL = r"^[0-9]{1,19}$"
"""A certificate's serial, as text: it has 63 bits, and a number in JSON has 53 for many who read it."""


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
