"""The server's settings: one table for flags, environment and YAML file. What is given later in that list gives way.

A setting `ssh_address` is the flag `--ssh-address`, the variable `KNOT_SERVER_SSH_ADDRESS` and the key `ssh_address`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import click
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from knot_keys.sshsettings import SshSettings
from knot_ssh.addresses import Address, is_server_url
from knot_ssh.dataplane.limits import Limits
from knot_ssh.errors import BadInput
from knot_ssh.wire import HostPort, complaint
from knot_ssh.yamlfile import load_yaml

PREFIX = "KNOT_SERVER_"
KIB = 1024
MIB = 1024**2
Command = Callable[..., Any]


def _server_url(text: str) -> str:
    if not is_server_url(text):
        raise ValueError(f"{text[:80]!r} is not a URL like https://knot.example.com")
    return text


def _words(value: object) -> object:
    """A list as a flag or a variable has it, with commas between."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}", text):
        raise ValueError(f"{text[:80]!r} is not a host name or address, without a port")
    return text


Hosts = Annotated[tuple[Annotated[str, AfterValidator(_host)], ...], BeforeValidator(_words)]


class ServerSettings(SshSettings):
    """Every setting, its default, and what it means."""

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
    audit_days: int = Field(default=400, ge=1, le=36_500, description="Days that the audit record goes back at most.")
    audit_max: int = Field(
        default=1_000_000,
        ge=1000,
        le=1_000_000_000,
        description="Records that the audit record holds at most, some 400 bytes each.",
    )
    max_unauthenticated: int = Field(
        default=1024,
        ge=16,
        le=100_000,
        description="Connections that have not logged in, and as many that wait to be set up; more push out the oldest.",
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
    tls_cert: Path | None = Field(
        default=None, description="PEM file with the HTTP API's TLS certificate and its chain; read again when it changes."
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the key of `tls_cert`; nobody else may read it.")
    allow_plain_http: bool = Field(
        default=False, description="Let `http` be an address that others reach, without TLS: behind a proxy that speaks it."
    )
    hosts: Hosts = Field(
        default=(),
        description="Further names and addresses that the HTTP API is asked by, besides those of `http` and `url`; "
        "as a flag with commas between.",
    )
    max_http_connections: int = Field(
        default=1024,
        ge=8,
        le=100_000,
        description="HTTP connections with nothing to answer yet; beyond, the oldest of the busiest source is closed.",
    )
    http_head_time: float = Field(
        default=10, gt=0, le=300, description="Seconds for the TLS handshake, and for the head of a request to arrive."
    )
    http_body_time: float = Field(
        default=30, gt=0, le=600, description="Seconds for the body of a request to arrive, and for an answer to be read."
    )
    max_http_head: int = Field(
        default=16 * KIB, ge=4 * KIB, le=MIB, description="Bytes of a request's head: several times what a browser sends."
    )
    max_body: int = Field(
        default=512 * KIB,
        ge=64 * KIB,
        le=16 * MIB,
        description="Bytes of a request's body: as many forwards as a space may have fit, with the longest names.",
    )
    max_bodies: int = Field(
        default=64 * MIB,
        ge=MIB,
        le=16 * 1024 * MIB,
        description="Bytes of all bodies at a time, from who has a good token.",
    )
    max_nesting: int = Field(
        default=32, ge=4, le=500, description="Levels that JSON in a body may be nested; no route needs more than 3."
    )
    token_rate: float = Field(
        default=200,
        gt=0,
        le=1_000_000,
        description="Requests a second with one API token; ten times that at once.",
    )
    failed_token_rate: float = Field(
        default=60, ge=1, le=1_000_000, description="Refused tokens a minute from one source that are answered 401, not 429."
    )

    @property
    def limits(self) -> Limits:
        """The bounds of the data path."""
        return self.limits_within(self.max_held)

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Under which hosts the HTTP API is asked, besides that of its URL."""
        listening = Address.parse(self.http)
        return self.hosts if listening.is_wildcard else (listening.host, *self.hosts)


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
    return checked(settings.model_copy(update=flags.model_dump(exclude_unset=True)))


def checked(settings: ServerSettings) -> ServerSettings:
    """The same; raises BadInput for settings that do not fit together."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise BadInput("tls_cert and tls_key go together: give both, or neither")
    if not (settings.tls_cert or settings.allow_plain_http or Address.parse(settings.http).is_loopback):
        raise BadInput(
            f"http: {settings.http} can be reached by others, and tokens would cross the network in the clear: give --tls-cert "
            "and --tls-key, or --allow-plain-http where a proxy in front speaks TLS"
        )
    return settings


def _flag(name: str, field: FieldInfo) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [f"{flag}/--no-{flag[2:]}"] if field.annotation is bool else [flag]


def _help(field: FieldInfo) -> str:
    default = "" if field.default in (None, ()) else f"  [default: {_text(field.default)}]"
    return f"{field.description}{default}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
