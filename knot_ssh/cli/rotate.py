"""`knot rotate …`."""

from __future__ import annotations

import json
from typing import Any

import click

from knot_ssh.cli.connection import api, server_options
from knot_ssh.cli.params import SPACE
from knot_ssh.cli.tables import show

STEPS = ("prepare", "activate", "retire")
KEYS = {
    "user-ca": "Rotate the CA that certifies users and agents.",
    "host-ca": "Rotate the CA that certifies hosts.",
    "hub-key": "Rotate the hub's host key.",
}
OTHERS = {"prepare": ", and the next one", "activate": ", and the one before", "retire": ""}
"""What stands below a space's host key after each step."""
FINGERPRINT = 15
"""Characters of a fingerprint that a table shows, `SHA256:` among them; `--json` has all."""


@click.group()
@server_options
def rotate() -> None:
    """Change a CA or a host key for another while everybody goes on: prepare, activate, retire."""


@rotate.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show how each key of the server stands, and who would be left behind by the step that is due."""
    listing = api(context).get("api", "rotations")
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    show(["KEY", "PHASE", "SINCE", "ACTIVE", "NEXT", "OLD", "DUE"], map(_row, listing["rotations"]))
    for entry in listing["rotations"]:
        for found in entry["dependents"]:
            click.echo(f"{entry['what']}: {_sentence(found)}")


def _key_command(what: str, text: str) -> None:
    @rotate.command(what, help=text)
    @click.argument("step", type=click.Choice(STEPS))
    @click.option("--force", is_flag=True, help="Though somebody is left behind; `retire` then ends what the old key has made.")
    @server_options
    @click.pass_context
    def command(context: click.Context, step: str, force: bool) -> None:
        said = api(context).post("api", "rotations", what, body={"step": step, "force": force})
        click.echo(f"{what} is {said['phase']}; next comes {said['due']}.")
        for found in said["dependents"]:
            click.echo(f"Not yet: {_sentence(found)}")


@rotate.command()
@click.argument("name", type=SPACE)
@click.argument("step", type=click.Choice(STEPS))
@server_options
@click.pass_context
def space(context: click.Context, name: str, step: str) -> None:
    """Rotate the host key of a space's endpoint. Phases are for clients that pin it; all others notice nothing."""
    said = api(context).post("api", "spaces", str(name), "host-key", body={"step": step})
    click.echo(f"The host key of {name}{OTHERS[step]}:", err=True)
    for key in said["host_keys"]:
        click.echo(key)


for _what, _text in KEYS.items():
    _key_command(_what, _text)


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    keys = (_short(entry[name]) for name in ("active", "next", "old"))
    return entry["what"], entry["phase"], entry["since"] or "-", *keys, entry["due"]


def _short(fingerprint: str | None) -> str:
    return fingerprint[:FINGERPRINT] + "…" if fingerprint else "-"


def _sentence(found: dict[str, Any]) -> str:
    """What is left of one kind: how many, and what the first are called."""
    more = ", …" if found["count"] > len(found["names"]) else ""
    return f"{found['text']}: {found['count']} ({', '.join(found['names'])}{more})"
