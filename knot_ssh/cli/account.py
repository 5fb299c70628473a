"""`knot login` and `knot user …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from knot_ssh.api import Api
from knot_ssh.cli.connection import api, given, server_options
from knot_ssh.cli.params import OWNER
from knot_ssh.cli.tables import show
from knot_ssh.doors import keep
from knot_ssh.names import Owner
from knot_ssh.trust import Trust, trust_said


@click.command()
@click.option(
    "--ca",
    type=click.Path(path_type=Path),
    help="PEM file with the CA of the server's TLS certificate, if it is your own.  [env var: KNOT_CA_FILE]",
)
@click.option("--allow-plain-http", is_flag=True, help="Send the token without TLS: where the way to the server is private.")
@server_options
@click.pass_context
def login(context: click.Context, ca: Path | None, allow_plain_http: bool) -> None:
    """Keep server and token for later commands, once the server has accepted them.

    Give --server and --token. `--token -`, or none, reads the token from standard input.
    """
    said = given(context)
    if not said.server:
        raise click.UsageError("--server URL is missing", context)
    token = said.token if said.token not in (None, "-") else _read_token()
    trust = Trust(ca.absolute() if ca else None, allow_plain_http).over(trust_said())
    Api(said.server, token or "", trust=trust).get("api", "token")
    path = keep(said.server.rstrip("/"), token or "", trust)
    click.echo(f"Logged in to {said.server}; kept in {path}")


@click.group()
@server_options
def user() -> None:
    """Users of the server."""


@user.command()
@click.argument("name", type=OWNER)
@click.option("--admin", is_flag=True, help="Let this user make and delete users.")
@server_options
@click.pass_context
def create(context: click.Context, name: Owner, admin: bool) -> None:
    """Make a user; prints their API token."""
    made = api(context).post("api", "users", body={"name": name, "admin": admin})
    click.echo(f"Made the user {name!s}; the API token follows and is shown this once.", err=True)
    click.echo(made["token"])


@user.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def list_users(context: click.Context, as_json: bool) -> None:
    """List the users."""
    listing = api(context).get("api", "users")
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    show(["NAME", "ADMIN"], [(entry["name"], "yes" if entry["admin"] else "no") for entry in listing["users"]])


@user.command()
@click.argument("name", type=OWNER)
@server_options
@click.pass_context
def delete(context: click.Context, name: Owner) -> None:
    """Delete a user with all their spaces."""
    api(context).delete("api", "users", name)
    click.echo(f"Deleted the user {name}.")


def _read_token() -> str:
    """The token from a terminal, unseen, or from a pipe: so that it stands in no process list."""
    if sys.stdin.isatty():
        return str(click.prompt("API token", hide_input=True))
    return sys.stdin.readline().strip()
