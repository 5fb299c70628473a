"""Who asks: a user with an API token, or an agent on behalf of its space."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from knot_ssh.names import Owner, SpaceId, Zone


class Scope(StrEnum):
    """What an API token is good for, of all that its user may do."""

    ALL = "all"
    READ = "read"
    """Routes that show something, and nothing that could be used elsewhere."""
    FORWARDS = "forwards"
    """The forwards of one space."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The API token that was shown. What it makes has no more rights, and lives no longer."""

    token_id: str
    scope: Scope
    space: SpaceId | None = None
    """The one space that it acts on, if it is good for one alone."""
    expires_at: int | None = None
    """Seconds since 1970 (UTC)."""


@dataclass(frozen=True, slots=True)
class Actor:
    """`zone` and `space` are set for an agent: it acts within its zone, and by default on its own space.

    `grant` is set for who has shown an API token.
    """

    owner: Owner
    admin: bool = False
    zone: Zone | None = None
    space: SpaceId | None = None
    space_name: str = ""
    """What an agent's space was called when it logged in, for people."""
    grant: Grant | None = None
    address: str | None = None
    """Where the request came from."""

    def __str__(self) -> str:
        """As the audit record names who asked; a user's name holds no space, so that nobody can be called `agent …`."""
        return str(self.owner) if self.space is None else f"agent {self.space_name or self.space}"

    @property
    def token(self) -> str | None:
        """The public id of the API token."""
        return self.grant.token_id if self.grant else None

    @property
    def expires_at(self) -> int | None:
        """When what this actor may do ends, in seconds since 1970 (UTC), if it does."""
        return self.grant.expires_at if self.grant else None

    def at_most(self, moment: int) -> int:
        """This moment, or the end of what this actor may do, if that is before: what it makes lives no longer."""
        return moment if self.expires_at is None else min(moment, self.expires_at)

    def can_act_on(self, space_id: str, zone: str) -> bool:
        """Whether a space of the same owner is one to act on, and not only to lead forwards to."""
        only = self.grant.space if self.grant else None
        return self.zone in {None, zone} and only in {None, space_id}
