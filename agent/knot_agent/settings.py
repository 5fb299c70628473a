"""The agent's settings: one table for flags, environment and YAML file. What is given later in that list gives way."""

from __future__ import annotations

import grp
import ipaddress
import math
import pwd
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from knot_keys.bounds import Bounds
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


class AgentSettings(BaseModel):
    """Every setting, its default, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    post_quantum_only: bool = Field(
        default=False, description="Refuse key exchange without ML-KEM: no OpenSSH before 9.9, no paramiko before 5."
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
    max_channels: int = Field(
        default=10_000, ge=1, le=1_000_000, description="Connections that one link may carry at a time, each way."
    )
    max_in_flight: int = Field(
        default=64 * 1024**2,
        ge=1024**2,
        le=16 * 1024**3,
        description="Bytes that all peers together may have the agent hold for readers that are slow.",
    )
    max_small_packets: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Nearly empty packets a second that one connection may send; one that sends more is read more slowly.",
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
    max_unauthenticated: int = Field(
        default=256,
        ge=16,
        le=100_000,
        description="Connections that have not logged in, and as many that wait to be set up; more push out the oldest.",
    )
    login_timeout: float = Field(default=10, ge=1, le=120, description="Seconds for key exchange and login together.")
    login_tries: int = Field(default=6, ge=2, le=100, description="Keys and tokens that one connection may try.")
    max_connection_rate: int = Field(
        default=1000,
        ge=10,
        le=100_000,
        description="Connections a second of one address (IPv6: network of 64 bits) that are set up; further ones wait.",
    )
    max_key_exchange_rate: int = Field(
        default=100, ge=1, le=10_000, description="Key exchanges a second of one address before its login; further ones wait."
    )
    max_peer_connections: int = Field(
        default=256, ge=2, le=100_000, description="Connections of one space, or of one person, that have logged in."
    )
    max_peer_channels: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Channels of one space, or of one person, on all their connections."
    )
    max_open_rate: int = Field(
        default=2000,
        ge=10,
        le=100_000,
        description="Channels a second of one space, or of one person; who asks for more is read more slowly.",
    )
    socket_users: list[Annotated[str, AfterValidator(_user)]] = Field(
        default=[], description="Users who may use the agent's socket besides the agent's own."
    )
    socket_group: Annotated[str, AfterValidator(_group)] | None = Field(
        default=None, description="A group whose members may use the agent's socket."
    )

    @property
    def limits(self) -> Limits:
        """The bounds of the data path."""
        return Limits(
            in_flight=self.max_in_flight,
            channels=self.max_channels,
            small_packets=self.max_small_packets,
            opens=self.max_open_rate,
            peer_channels=self.max_peer_channels,
            peer_connections=self.max_peer_connections,
        )

    @property
    def bounds(self) -> Bounds:
        """What strangers may take of the endpoint."""
        return Bounds(
            unauthenticated=self.max_unauthenticated,
            connections=self.max_connection_rate,
            key_exchanges=self.max_key_exchange_rate,
            login_timeout=self.login_timeout,
            login_tries=self.login_tries,
        )

    @property
    def revocation_limit(self) -> float:
        """Seconds that it may be unknown what was revoked."""
        return self.revocation_max_age if self.strict else math.inf

    @property
    def ssh_options(self) -> dict[str, Any]:
        """What SSH connections are made with."""
        from knot_keys.connections import key_exchange

        exchange = key_exchange(post_quantum_only=self.post_quantum_only)
        return {"encryption_algs": list(self.ciphers), "rekey_bytes": self.rekey_bytes, **exchange}
