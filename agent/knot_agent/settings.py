"""The agent's settings: one table for flags, environment and YAML file. What is given later in that list gives way."""

from __future__ import annotations

import grp
import ipaddress
import math
import pwd
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from knot_keys.sshsettings import SshSettings
from knot_ssh.dataplane.limits import Limits
from knot_ssh.wire import Addresses, HostPort

Cipher = Literal[
    "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"
]
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


class AgentSettings(SshSettings):
    """Every setting, its default, and what it means."""

    server: HostPort | None = Field(default=None, description="host:port of the hub (flag --server, KNOT_HUB).")
    listen: HostPort | None = Field(
        default=None,
        description=f"Where the endpoint listens (flag --listen); {DEFAULT_LISTEN} unless given.",
    )
    advertise: Addresses | None = Field(
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
    data_plane: Literal["fast", "stock"] = Field(
        default="fast",
        description="`fast` moves bytes by our own path, on Linux; `stock` by asyncssh's, which is slower and runs anywhere.",
    )
    ciphers: list[Cipher] = Field(
        default=list(get_args(Cipher)),
        min_length=1,
        description="Ciphers for connections with the hub and other agents, the preferred one first.",
    )
    rekey_bytes: int = Field(
        default=1024**3, ge=1024**2, le=64 * 1024**3, description="Bytes sent on a connection until keys are exchanged anew."
    )
    polling: int = Field(
        default=100,
        ge=0,
        le=10_000,
        description="Microseconds for which the agent keeps asking for more before it sleeps, where it finds that this "
        "shortens round trips; 0 never.",
    )
    max_in_flight: int = Field(
        default=64 * 1024**2,
        ge=1024**2,
        le=16 * 1024**3,
        description="Bytes that all peers together may have the agent hold for readers that are slow.",
    )
    strict: bool = Field(
        default=False,
        description="Refuse connections, and end open ones, while it is not known for too long what was revoked.",
    )
    revocation_max_age: float = Field(
        default=300,
        ge=20,
        le=24 * 3600,
        description="Seconds that may be not known, where `strict` is set.",
    )
    socket_users: list[Annotated[str, AfterValidator(_user)]] = Field(
        default=[], description="Users who may use the agent's socket besides the agent's own."
    )
    socket_group: Annotated[str, AfterValidator(_group)] | None = Field(
        default=None, description="A group whose members may use the agent's socket."
    )

    @property
    def revocation_limit(self) -> float:
        """Seconds that it may be unknown what was revoked."""
        return self.revocation_max_age if self.strict else math.inf

    @property
    def limits(self) -> Limits:
        """The bounds of the data path."""
        return self.limits_within(self.max_in_flight)

    @property
    def ssh_options(self) -> dict[str, Any]:
        """What SSH connections are made with."""
        return {"encryption_algs": list(self.ciphers), "rekey_bytes": self.rekey_bytes, **super().ssh_options}
