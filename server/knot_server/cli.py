"""`knot server …`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from knot_server.settings import read_settings, settings_options
from knot_ssh.cli.params import FOLDER, OWNER
from knot_ssh.names import Owner


@click.group()
def server() -> None:
    """Make and run a knot server."""


@server.command()
@click.option("--data", type=FOLDER, required=True, help="Folder for keys and store; made if need be.")
@click.option("--admin", type=OWNER, default="admin", show_default=True, help="Name of the first administrator.")
def init(data: Path, admin: Owner) -> None:
    """Make CAs and store; prints the first API token."""
    from knot_server.running import initialise

    token = asyncio.run(initialise(data, admin))
    click.echo(f"Made a server in {data}. Start it:  knot server run --data {data}", err=True)
    click.echo(f"The API token of {admin!r} follows; it is shown this once.", err=True)
    click.echo(token)


@server.command()
@click.option("--data", type=FOLDER, required=True, help="Folder made by `knot server init`.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with settings.")
@settings_options
def run(data: Path, config: Path | None, **given: Any) -> None:
    """Run hub and HTTP API until interrupted. Each setting may stand in the YAML file as well."""
    from knot_server.running import run as run_server
    from knot_ssh.dataplane import plane
    from knot_ssh.dataplane.limits import Limits
    from knot_ssh.logs import configure_logs

    settings = read_settings(config, given)
    configure_logs()
    # without polling: thousands of agents' signs of life would keep a processor busy
    plane.run(lambda plane: run_server(plane, data, settings), limits=Limits(in_flight=settings.max_held), polling=0)
