"""Which server a command talks to, and as whom: flags, then environment, then the config file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from knot_ssh.cli.places import config_file
from knot_ssh.errors import BadInput, NotAuthenticated

if TYPE_CHECKING:
    from knot_ssh.api import Api

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

SERVER_VARIABLES = ("KNOT_SERVER", "KNOT_URL")
TOKEN_VARIABLE = "KNOT_TOKEN"


@dataclass(slots=True)
class Given:
    """What was said on the command line or in the environment."""

    server: str | None = None
    token: str | None = None

    def __bool__(self) -> bool:
        return bool(self.server or self.token)


def server_options(command: Decorated) -> Decorated:
    """Add --server and --token. They stand on every level of a command, so that they may be typed anywhere."""
    for name, text in (
        ("token", "API token.  [env var: KNOT_TOKEN]"),
        ("server", "URL of the server.  [env var: KNOT_SERVER]"),
    ):
        option = click.option(f"--{name}", help=text, expose_value=False, callback=_remember)
        command = option(command)
    return command


def given(context: click.Context) -> Given:
    """What was said, wherever it stood; flags beat the environment."""
    said = context.find_root().ensure_object(dict)
    server = next((os.environ[name] for name in SERVER_VARIABLES if os.environ.get(name)), None)
    return Given(said.get("server") or server, said.get("token") or os.environ.get(TOKEN_VARIABLE))


def api(context: click.Context) -> Api:
    """A client of the server that was named; raises BadInput or NotAuthenticated when something is missing."""
    from knot_ssh.api import Api

    said = given(context)
    kept = Given() if said.server and said.token else _kept()
    server = said.server or kept.server
    if not server:
        raise BadInput("no server given: run `knot login --server URL --token TOKEN`, or use --server or KNOT_SERVER")
    is_kept = server.rstrip("/") == kept.server
    token = said.token or (kept.token if is_kept else None)  # a kept token goes to the kept server alone
    if token:
        return Api(server, token)
    if kept.token:
        raise NotAuthenticated(f"the token kept by `knot login` is for {kept.server}; give one for {server} with --token")
    raise NotAuthenticated


def keep(server: str, token: str) -> Path:
    """Store server and token in the config file (0600)."""
    import yaml

    from knot_ssh.files import make_private_folder, replace_file

    path = config_file()
    make_private_folder(path.parent)
    replace_file(path, yaml.safe_dump({"server": server, "token": token}).encode())
    return path


def _kept() -> Given:
    """What the config file holds; raises LooseFile or BadInput."""
    path = config_file()
    if not path.exists():
        return Given()
    from pydantic import BaseModel, ConfigDict

    from knot_ssh.files import read_secret
    from knot_ssh.yamlfile import parse_yaml

    class Kept(BaseModel):
        model_config = ConfigDict(extra="forbid")

        server: str | None = None
        token: str | None = None

    kept = parse_yaml(read_secret(path).decode(errors="replace"), Kept, str(path))
    return Given(kept.server, kept.token)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_root().ensure_object(dict)[parameter.name] = value
