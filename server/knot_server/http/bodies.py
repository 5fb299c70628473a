"""Bodies of the HTTP API that no other door shares."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field, StrictBool, StrictInt

from knot_keys.keyring import Phase, Step
from knot_server.store.schema import Space, User
from knot_server.usecases.rotation import Standing, What
from knot_ssh.errors import codes
from knot_ssh.names import Owner, SpaceName, Zone
from knot_ssh.wire import Message


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
    lifetime: StrictInt | None = Field(default=None, ge=60, description="Seconds; capped at the server's own lifetime.")


class PersonCertificate(BaseModel):
    certificate: str = Field(description="OpenSSH certificate line, for `<key>-cert.pub`.")
    principals: list[str]
    expires_at: datetime


class Health(BaseModel):
    status: Literal["ok"] = "ok"


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
