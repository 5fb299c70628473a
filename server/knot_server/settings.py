"""The server's settings: one table for flags, environment and YAML file. What is given later in that list gives way.

A setting `ssh_address` is the flag `--ssh-address`, the variable `KNOT_SERVER_SSH_ADDRESS` and the key `ssh_address`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from knot_keys.bounds import Bounds
from knot_ssh.addresses import is_server_url
from knot_ssh.dataplane.limits import Limits
from knot_ssh.errors import BadInput
from knot_ssh.wire import HostPort, complaint
from knot_ssh.yamlfile import load_yaml

PREFIX = "KNOT_SERVER_"
MIB = 1024**2
Command = Callable[..., Any]


def _server_url(text: str) -> str:
    if not is_server_url(text):
        raise ValueError(f"{text[:80]!r} is not a URL like https://knot.example.com")
    return text


class ServerSettings(BaseModel):
    """Every setting, its default, and what it means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    http: HostPort = Field(default="127.0.0.1:3000", description="Where the HTTP API listens.")
    ssh: HostPort = Field(default="127.0.0.1:2222", description="Where the hub listens.")
    url: Annotated[str, AfterValidator(_server_url)] | None = Field(
        default=None, description="URL of the HTTP API as others see it; by default from `http`."
    )
    ssh_address: HostPort | None = Field(
        default=None, description="host:port of the hub as others see it; by default from `ssh`."
    )
    certificate_lifetime: int = Field(
        default=3600, ge=10, le=24 * 3600, description="Seconds that a certificate for an agent or a person is good for."
    )
    max_held: int = Field(
        default=256 * MIB,
        ge=MIB,
        le=16 * 1024 * MIB,
        description="Bytes that the hub may hold for all who are relayed and read slowly.",
    )
    max_channels: int = Field(default=10_000, ge=1, le=1_000_000, description="Channels of one connection.")
    max_small_packets: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Nearly empty packets a second of one connection; one that sends more is read more slowly.",
    )
    max_unauthenticated: int = Field(
        default=1024,
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
    max_relayed: int = Field(default=256, ge=1, le=100_000, description="Relayed connections of one owner at a time.")
    max_held_per_owner: int = Field(
        default=64 * MIB,
        ge=MIB,
        le=16 * 1024 * MIB,
        description="Bytes of one owner that the hub may hold for readers that are slow.",
    )
    ca_passphrase_file: Path | None = Field(
        default=None, description="File with the passphrase of the CA keys, where they have one."
    )

    @property
    def limits(self) -> Limits:
        """The bounds of the data path."""
        return Limits(
            in_flight=self.max_held,
            channels=self.max_channels,
            small_packets=self.max_small_packets,
            opens=self.max_open_rate,
            peer_channels=self.max_peer_channels,
            peer_connections=self.max_peer_connections,
        )

    @property
    def bounds(self) -> Bounds:
        """What strangers may take of the hub."""
        return Bounds(
            unauthenticated=self.max_unauthenticated,
            connections=self.max_connection_rate,
            key_exchanges=self.max_key_exchange_rate,
            login_timeout=self.login_timeout,
            login_tries=self.login_tries,
        )


def settings_options(command: Command) -> Command:
    """Give a command a flag for each setting; they arrive as text, and only those that were given."""
    for name, field in reversed(ServerSettings.model_fields.items()):
        command = click.option(
            *_flag(name, field), name, envvar=PREFIX + name.upper(), show_envvar=True, help=_help(field), default=None
        )(command)
    return command


def read_settings(file: Path | None, given: dict[str, Any]) -> ServerSettings:
    """The settings of a file, and the flags that win over them; raises BadInput naming the flag, or file and line."""
    settings = load_yaml(file, ServerSettings) if file else ServerSettings()
    try:
        texts = {name: _text(value) for name, value in given.items() if value is not None}
        flags = ServerSettings.model_validate_strings(texts)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise BadInput(f"--{name}: {complaint((), first['type'], first['msg'])}") from None
    return settings.model_copy(update=flags.model_dump(exclude_unset=True))


def _flag(name: str, field: FieldInfo) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]


def _help(field: FieldInfo) -> str:
    default = "" if field.default in (None, False) else f"  [default: {field.default}]"
    return f"{field.description}{default}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
