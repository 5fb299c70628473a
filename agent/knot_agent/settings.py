"""The agent's settings: one table for flags, environment and YAML file. What is given later in that list gives way."""

from __future__ import annotations

import grp
import ipaddress
import pwd
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from knot_ssh.wire import HostPort

DEFAULT_LISTEN = "0.0.0.0:2022"
DEFAULT_ALLOW = ["127.0.0.1", "::1"]


def _literal(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not an IP address; names are not allowed here") from None


def _user(name: str) -> str:
    try:
        pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"there is no user {name[:80]!r} on this machine") from None
    return name


def _group(name: str) -> str:
    try:
        grp.getgrnam(name)
    except KeyError:
        raise ValueError(f"there is no group {name[:80]!r} on this machine") from None
    return name


class AgentSettings(BaseModel):
    """Every setting, its default, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server: HostPort | None = Field(default=None, description="host:port of the hub (flag --server, KNOT_HUB).")
    listen: HostPort | None = Field(
        default=None,
        description=f"Where the endpoint listens (flag --listen); {DEFAULT_LISTEN} unless given.",
    )
    advertise: list[HostPort] | None = Field(
        default=None,
        min_length=1,
        max_length=16,
        description="Where other agents may dial the endpoint; by default the listening address, or for a wildcard the "
        "local address of the control connection.",
    )
    allow: list[Annotated[str, AfterValidator(_literal)]] = Field(
        default=DEFAULT_ALLOW, description="Addresses that channels may go to: literals alone."
    )
    connect_timeout: float = Field(
        default=10, ge=0.1, le=300, description="Seconds that a connection waits for a target that is away."
    )
    socket_users: list[Annotated[str, AfterValidator(_user)]] = Field(
        default=[], description="Users who may use the agent's socket besides the agent's own."
    )
    socket_group: Annotated[str, AfterValidator(_group)] | None = Field(
        default=None, description="A group whose members may use the agent's socket."
    )
