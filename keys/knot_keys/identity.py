"""Who a certificate stands for: the one place where identity becomes certificate fields and comes back.

    client certificate   principals  owner@zone          one for an agent; one a zone, of one owner, for a person
                         key id      role/owner/zones/space/id
    host certificate     principals  id, space.owner.zone.knot
                         key id      host/owner/zone/space/id
    the hub's            principals  hub.knot
                         key id      hub

The principals decide; the key id tells people and logs the same. A certificate in which the two disagree was not made
here, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from knot_ssh.errors import BadInput
from knot_ssh.names import HUB_PRINCIPAL, Owner, Principal, SpaceId, SpaceName, Zone, qualified_name

HOST_KEY_ID = "host/"
"""What the key id of every endpoint's certificate begins with, and that of no client's."""
NONE = "-"
"""Stands in a key id where a person has no space."""


class BadIdentity(ValueError):
    """The principals and key id of a certificate name nobody we know how to trust."""


class Role(StrEnum):
    """What kind of client a certificate was made for."""

    AGENT = "agent"
    PERSON = "person"


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of a client certificate: an agent of one space, or a person with spaces in some zones."""

    role: Role
    owner: Owner
    zones: tuple[Zone, ...]
    space: SpaceName | None = None
    space_id: SpaceId | None = None

    def __post_init__(self) -> None:
        if not self.zones or list(self.zones) != sorted(set(self.zones)):
            raise BadIdentity("an identity needs zones, in order, each once")
        is_agent = self.role is Role.AGENT
        if is_agent and len(self.zones) != 1:
            raise BadIdentity("an agent has exactly one zone")
        if (self.space is not None, self.space_id is not None) != (is_agent, is_agent):
            raise BadIdentity("an agent, and only an agent, has a space")

    @classmethod
    def agent(cls, principal: Principal, space: SpaceName, space_id: SpaceId) -> Identity:
        return cls(Role.AGENT, principal.owner, (principal.zone,), space, space_id)

    @classmethod
    def person(cls, owner: Owner, zones: Sequence[Zone]) -> Identity:
        return cls(Role.PERSON, owner, tuple(sorted(set(zones))))

    @property
    def principals(self) -> tuple[Principal, ...]:
        return tuple(Principal(self.owner, zone) for zone in self.zones)

    def __str__(self) -> str:
        """As the audit record names them: `alice`, or `agent frontend`."""
        return str(self.owner) if self.space is None else f"{self.role} {self.space}"

    def encode(self) -> tuple[list[str], str]:
        """The certificate's principals and key id."""
        key_id = "/".join((self.role, self.owner, ",".join(self.zones), self.space or NONE, self.space_id or NONE))
        return [str(principal) for principal in self.principals], key_id

    @classmethod
    def decode(cls, principals: Sequence[str], key_id: str) -> Identity:
        """Read a client certificate's fields; raises BadIdentity unless they are exactly what `encode` writes."""
        try:
            parsed = [Principal.parse(text) for text in principals]
            role, owner, _zones, space, space_id = key_id.split("/")
            identity = cls(
                Role(role),
                Owner(owner),
                tuple(principal.zone for principal in parsed),
                None if space == NONE else SpaceName(space),
                None if space_id == NONE else SpaceId(space_id),
            )
        except (BadInput, ValueError) as error:
            raise BadIdentity(str(error)) from None
        if identity.encode() != (list(principals), key_id):
            raise BadIdentity("principals and key id disagree")
        return identity


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """The holder of a host certificate: the endpoint of one space."""

    principal: Principal
    space: SpaceName
    space_id: SpaceId

    def encode(self) -> tuple[list[str], str]:
        """The certificate's principals and key id."""
        names = [str(self.space_id), qualified_name(self.space, self.principal)]
        return names, host_key_ids(self.principal, self.space) + self.space_id

    @classmethod
    def decode(cls, principals: Sequence[str], key_id: str) -> HostIdentity:
        """Read an endpoint's certificate; raises BadIdentity unless it says what `encode` writes, in whatever order."""
        try:
            _host, owner, zone, space, space_id = key_id.split("/")
            identity = cls(Principal(Owner(owner), Zone(zone)), SpaceName(space), SpaceId(space_id))
        except (BadInput, ValueError) as error:
            raise BadIdentity(str(error)) from None
        names, encoded = identity.encode()
        if (sorted(names), encoded) != (sorted(principals), key_id):
            raise BadIdentity("principals and key id disagree")
        return identity


def host_key_ids(principal: Principal, space: SpaceName) -> str:
    """What the key ids of all host certificates of this name begin with; the id of the space follows."""
    return f"{HOST_KEY_ID}{principal.owner}/{principal.zone}/{space}/"


class HubIdentity:
    """The hub itself, under one name at every address."""

    def encode(self) -> tuple[list[str], str]:
        """The certificate's principals and key id."""
        return [HUB_PRINCIPAL], "hub"
