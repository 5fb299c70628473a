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
    space_name: str = ""
    """What an agent's space was called when it logged in, for people."""
    token: str | None = None
    """The public id of the API token."""
    address: str | None = None
    """Where the request came from."""

    def __str__(self) -> str:
        """As the audit record names who asked; a user's name holds no space, so that nobody can be called `agent …`."""
        return str(self.owner) if self.space is None else f"agent {self.space_name or self.space}"
