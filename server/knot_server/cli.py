"""`knot server …`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from knot_ssh.addresses import Address
from knot_ssh.cli.params import ADDRESS, FOLDER, OWNER, URL
from knot_ssh.names import Owner

HELD_MAX = 256 * 1024**2
"""Bytes that the hub may hold for all who are relayed and read slowly."""


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
@click.option("--http", type=ADDRESS, default="127.0.0.1:3000", show_default=True, help="Where the HTTP API listens.")
@click.option("--ssh", type=ADDRESS, default="127.0.0.1:2222", show_default=True, help="Where the hub listens.")
@click.option("--url", type=URL, help="URL of the HTTP API as others see it.  [default: from --http]")
@click.option("--ssh-address", type=ADDRESS, help="The hub's address as others see it.  [default: from --ssh]")
@click.option("--certificate-lifetime", type=click.IntRange(10, 24 * 3600), default=3600, show_default=True, help="Seconds.")
def run(
    data: Path, http: Address, ssh: Address, url: str | None, ssh_address: Address | None, certificate_lifetime: int
) -> None:
    """Run hub and HTTP API until interrupted."""
    from knot_server.running import RunSettings
    from knot_server.running import run as run_server
    from knot_ssh.dataplane import plane
    from knot_ssh.dataplane.limits import Limits
    from knot_ssh.logs import configure_logs

    configure_logs()
    settings = RunSettings(data, http, ssh, url, str(ssh_address) if ssh_address else None, certificate_lifetime)
    # without polling: thousands of agents' signs of life would keep a processor busy
    plane.run(lambda plane: run_server(plane, settings), limits=Limits(in_flight=HELD_MAX), polling=0)
