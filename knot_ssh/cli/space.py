"""`knot space …`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from knot_ssh.cli.connection import api, server_options
from knot_ssh.cli.params import SPACE, SPACE_NAME, ZONE
from knot_ssh.cli.sshd import SshdScript
from knot_ssh.cli.tables import show
from knot_ssh.errors import NotFound
from knot_ssh.names import SpaceName, Zone


@click.group()
@server_options
def space() -> None:
    """Your spaces."""


@space.command()
@click.argument("name", type=SPACE_NAME)
@click.option("--zone", type=ZONE, required=True, help="Forwards stay within one zone.")
@server_options
@click.pass_context
def create(context: click.Context, name: SpaceName, zone: Zone) -> None:
    """Make a space; prints the join token for its agent."""
    made = api(context).post("api", "spaces", body={"name": name, "zone": zone})
    _hint(f"Made the space {name} in zone {zone}.", made["hub"], "within 30 minutes")
    click.echo(made["join_token"])


@space.command()
@click.argument("name", type=SPACE)
@click.option("--reusable", is_flag=True, help="For templates: usable many times, for a month.")
@server_options
@click.pass_context
def token(context: click.Context, name: str, reusable: bool) -> None:
    """Print another join token. Whoever joins with it takes the place of the space's agent; its forwards stay."""
    made = api(context).post("api", "spaces", str(name), "token", body={"reusable": reusable})
    _hint(f"A new join token for {name}.", made["hub"], "within 30 days" if reusable else "within 30 minutes")
    click.echo(made["join_token"])


@space.command()
@click.argument("name", type=SPACE)
@server_options
@click.pass_context
def sshd(context: click.Context, name: str) -> None:
    """Print a shell script that has a machine with nothing but sshd and ssh take part as this space."""
    server = api(context)
    entry = _find(server.get("api", "spaces")["spaces"], str(name))
    made = server.post("api", "spaces", entry["id"], "token", body={"reusable": False})
    script = SshdScript.of(entry, made, server.get("api", "ca"))
    click.echo(
        f"A script for the machine that is to be {name}: read it, then run it there, as root, within 30 minutes:", err=True
    )
    click.echo(f"  knot space sshd {name} | ssh root@its.address sh", err=True)
    click.echo(f"It takes the place of {name}'s agent. It holds a join token: keep it to yourself until it was run.", err=True)
    if script.hub.is_loopback:
        click.echo(
            f"Only the server's own machine reaches its hub at {script.hub}: see `knot server run --ssh-address`.", err=True
        )
    click.echo(script.text(), nl=False)


@space.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def list_spaces(context: click.Context, as_json: bool) -> None:
    """List your spaces."""
    listing = api(context).get("api", "spaces")
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    if not listing["spaces"]:
        click.echo("No spaces. Make one with: knot space create NAME --zone ZONE")
        return
    rows = [(s["name"], s["zone"], _running(s), _last_seen(s), s["id"]) for s in listing["spaces"]]
    show(["NAME", "ZONE", "RUNNING", "LAST SEEN", "ID"], rows)


@space.command()
@click.argument("name", type=SPACE)
@click.argument("new_name", type=SPACE_NAME)
@server_options
@click.pass_context
def rename(context: click.Context, name: str, new_name: SpaceName) -> None:
    """Give a space another name. Forwards to it and from it, and open connections, go on."""
    api(context).patch("api", "spaces", str(name), body={"name": new_name})
    click.echo(f"Renamed the space {name} to {new_name}.")


@space.command()
@click.argument("name", type=SPACE)
@click.argument("zone", type=ZONE)
@server_options
@click.pass_context
def move(context: click.Context, name: str, zone: Zone) -> None:
    """Move a space to another zone. What is open to it and from it ends; forwards across the border fail."""
    api(context).patch("api", "spaces", str(name), body={"zone": zone})
    click.echo(f"Moved the space {name} to zone {zone}.")


@space.command()
@click.argument("name", type=SPACE)
@server_options
@click.pass_context
def delete(context: click.Context, name: str) -> None:
    """Delete a space; its agent is cut off at once."""
    api(context).delete("api", "spaces", str(name))
    click.echo(f"Deleted the space {name}.")


def _hint(news: str, hub: str, when: str) -> None:
    """Say what to do with the token that follows on stdout."""
    click.echo(f"{news} Start its agent, there, {when}:", err=True)
    click.echo(f"  KNOT_JOIN_TOKEN=<the token on stdout> knot agent run --server {hub}", err=True)


def _find(spaces: Sequence[dict[str, Any]], reference: str) -> dict[str, Any]:
    """Your space of this name or id; raises NotFound."""
    found = next((entry for entry in spaces if reference in (entry["name"], entry["id"])), None)
    if found is None:
        raise NotFound(f"there is no space {reference!r} of yours; `knot space list` shows what there is")
    return found


def _running(entry: dict[str, Any]) -> str:
    """Whether it runs, and by what if not by an agent."""
    return ("yes" if entry["running"] else "no") + (" (sshd)" if entry["agentless"] else "")


def _last_seen(entry: dict[str, Any]) -> str:
    """When its agent or sshd last came or went; a running one is here now."""
    return "now" if entry["running"] else str(entry["last_seen"] or "never")
