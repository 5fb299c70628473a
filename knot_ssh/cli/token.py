"""`knot token …`."""

from __future__ import annotations

import json
from typing import Any

import click

from knot_ssh.cli.connection import api, server_options
from knot_ssh.cli.params import DURATION, OWNER, TOKEN, TOKEN_NAME, TOKEN_SCOPE
from knot_ssh.cli.tables import show
from knot_ssh.names import Owner, TokenName


@click.group()
@server_options
def token() -> None:
    """API tokens: what each is good for, and until when."""


@token.command()
@click.argument("name", type=TOKEN_NAME)
@click.option("--scope", type=TOKEN_SCOPE, default="all", show_default=True, help="all, read, or forwards:SPACE.")
@click.option("--expires", type=DURATION, help="For how long it is good, such as 90d, 12h or 30m.")
@click.option("--user", type=OWNER, help="Make it for this user (administrators).")
@server_options
@click.pass_context
def create(context: click.Context, name: TokenName, scope: tuple[str, str | None], expires: int | None, user: Owner) -> None:
    """Make an API token; prints it alone on stdout."""
    kind, space = scope
    wanted = {"name": name, "scope": kind, "space": space, "lifetime": expires, "user": user}
    made = api(context).post("api", "tokens", body=wanted)
    ends = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    click.echo(f"Made the token {name}, good {ends}; it follows and is shown this once.", err=True)
    click.echo(made["token"])


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def list_tokens(context: click.Context, as_json: bool) -> None:
    """List your tokens, or everybody's for an administrator; never their secrets."""
    listing = api(context).get("api", "tokens")
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    columns = ["ID", "NAME", "USER", "SCOPE", "CREATED", "EXPIRES", "LAST USED"]
    show(columns, [_row(entry) for entry in listing["tokens"]])


@token.command()
@click.argument("reference", type=TOKEN, metavar="ID|NAME")
@server_options
@click.pass_context
def revoke(context: click.Context, reference: str) -> None:
    """End a token at once. An administrator names another user's by its id."""
    api(context).delete("api", "tokens", reference)
    click.echo(f"Revoked the token {reference}.")


def _row(entry: dict[str, Any]) -> list[str]:
    scope = f"{entry['scope']}:{entry['space']}" if entry["space"] else entry["scope"]
    moments = (entry["created_at"], entry["expires_at"] or "never", entry["last_used"] or "never")
    return [entry["id"], entry["name"] or "-", entry["user"], scope, *moments]
