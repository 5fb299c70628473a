"""The settings that hub and endpoint share: what strangers and peers may take of an SSH server of ours."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from knot_keys.bounds import Bounds
from knot_ssh.dataplane.limits import Limits


class SshSettings(BaseModel):
    """Each with its default, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    post_quantum_only: bool = Field(
        default=False, description="Refuse key exchange without ML-KEM: no OpenSSH before 9.9, no paramiko before 5."
    )
    max_channels: int = Field(default=10_000, ge=1, le=1_000_000, description="Channels of one connection, each way.")
    max_small_packets: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Nearly empty packets a second of one connection; one that sends more is read more slowly.",
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

    @property
    def bounds(self) -> Bounds:
        """What strangers may take."""
        return Bounds(
            unauthenticated=self.max_unauthenticated,
            connections=self.max_connection_rate,
            key_exchanges=self.max_key_exchange_rate,
            login_timeout=self.login_timeout,
            login_tries=self.login_tries,
        )

    @property
    def ssh_options(self) -> dict[str, Any]:
        """What SSH connections are made with; raises KnotError where ML-KEM alone may be, and there is none."""
        from knot_keys.connections import key_exchange

        return key_exchange(post_quantum_only=self.post_quantum_only)

    def limits_within(self, in_flight: int) -> Limits:
        """The bounds of the data path, which holds so many bytes for all peers together."""
        return Limits(
            in_flight=in_flight,
            channels=self.max_channels,
            small_packets=self.max_small_packets,
            opens=self.max_open_rate,
            peer_channels=self.max_peer_channels,
            peer_connections=self.max_peer_connections,
        )
