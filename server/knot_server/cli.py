"""`knot server …`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from knot_server.settings import read_settings, settings_options
from knot_ssh.cli.params import FOLDER, OWNER
from knot_ssh.errors import BadInput
from knot_ssh.names import Owner


@click.group()
def server() -> None:
    """Make and run a knot server."""


PASSPHRASE_FILE = click.option(
    "--ca-passphrase-file",
    type=click.Path(path_type=Path),
    envvar="KNOT_SERVER_CA_PASSPHRASE_FILE",
    show_envvar=True,
    help="File with the passphrase of the CA keys; or KNOT_CA_PASSPHRASE, or a systemd credential knot-ca-passphrase.",
)


@server.command()
@click.option("--data", type=FOLDER, required=True, help="Folder for keys and store; made if need be.")
@click.option("--admin", type=OWNER, default="admin", show_default=True, help="Name of the first administrator.")
@PASSPHRASE_FILE
def init(data: Path, admin: Owner, ca_passphrase_file: Path | None) -> None:
    """Make CAs and store; prints the first API token."""
    from knot_keys.passphrase import find_passphrase
    from knot_server.datafolder import initialise

    token = asyncio.run(initialise(data, admin, find_passphrase(ca_passphrase_file)))
    click.echo(f"Made a server in {data}. Start it:  knot server run --data {data}", err=True)
    click.echo(f"The API token of {admin!r} follows; it is shown this once.", err=True)
    click.echo(token)


@server.command()
@click.option("--data", type=FOLDER, required=True, help="Folder made by `knot server init`.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with settings.")
@settings_options
def run(data: Path, config: Path | None, **given: Any) -> None:
    """Run hub and HTTP API until interrupted. Each setting may stand in the YAML file as well."""
    from knot_keys.passphrase import find_passphrase
    from knot_server.running import run as run_server
    from knot_ssh.dataplane import plane
    from knot_ssh.logs import configure_logs
    from knot_ssh.memory import keep_memory_private

    settings = read_settings(config, given)
    passphrase = find_passphrase(settings.ca_passphrase_file)
    configure_logs()
    keep_memory_private()
    # without polling: thousands of agents' signs of life would keep a processor busy
    plane.run(
        lambda plane: run_server(plane, data, settings, passphrase),
        limits=settings.limits,
        polling=0,
        ssh_options=settings.ssh_options,
    )


@server.command()
@click.option("--data", type=FOLDER, required=True, help="Folder made by `knot server init`; its server must not be running.")
@PASSPHRASE_FILE
@click.option("--new-passphrase-file", type=click.Path(path_type=Path), help="File with the passphrase that is to be.")
@click.option("--remove", is_flag=True, help="Have the CA keys encrypted no more.")
def passphrase(data: Path, ca_passphrase_file: Path | None, new_passphrase_file: Path | None, remove: bool) -> None:
    """Encrypt the CA keys with a passphrase, another one, or none."""
    from knot_keys.passphrase import Passphrase, find_passphrase
    from knot_server.datafolder import encrypt_authority

    if remove == bool(new_passphrase_file):
        raise BadInput("give either --new-passphrase-file or --remove")
    old = find_passphrase(ca_passphrase_file)
    new = Passphrase.read(new_passphrase_file) if new_passphrase_file else None
    for path in encrypt_authority(data, old, new):
        click.echo(f"{path} is {'encrypted' if new else 'not encrypted any more'}", err=True)
