"""Who asks: a user with an API token, or an agent on behalf of its space."""

from __future__ import annotations

from dataclasses import dataclass

from knot_ssh.names import Owner, SpaceId, Zone


@dataclass(frozen=True, slots=True)
class Actor:
    """`zone` and `space` are set for an agent: it acts within its zone, and by default on its own space."""

    owner: Owner
    admin: bool = False
    zone: Zone | None = None
    space: SpaceId | None = None
    token: str | None = None
    """The public id of the API token."""
