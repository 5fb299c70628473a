"""`knot port …`: inside a space through its agent, from elsewhere through the server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from knot_ssh.cli.connection import api, given, server_options
from knot_ssh.cli.params import PORT, SPACE
from knot_ssh.cli.places import default_socket
from knot_ssh.cli.tables import show
from knot_ssh.errors import BadInput, Unavailable
from knot_ssh.local import AgentSocket
from knot_ssh.ports import Ports, PortsOfAgent, PortsOfServer

WIDE = [
    "PORT", "TARGET", "PERSISTENT", "STATE", "MODE", "ADDRESS", "ROUND TRIP", "UP SINCE", "OPEN", "TOTAL", "REFUSED", "SENT",
    "RECEIVED", "COUNTED SINCE", "LAST ERROR",
]  # fmt: skip
SOCKET_VARIABLE = "KNOT_AGENT_SOCKET"


@click.group()
@server_options
def port() -> None:
    """Forward ports of one space to ports of another."""


@port.command()
@click.argument("words", nargs=-1, metavar="[FROM_SPACE] LOCAL_PORT SPACE REMOTE_PORT", required=True)
@click.option("-p", "--persistent", is_flag=True, help="Keep the forward across agent restarts.")
@click.option("-f", "--force", is_flag=True, help="Make it even when the target space is not running.")
@server_options
@click.pass_context
def forward(context: click.Context, words: tuple[str, ...], persistent: bool, force: bool) -> None:
    """Make LOCAL_PORT of this space, or of FROM_SPACE, be REMOTE_PORT of SPACE.

    The same local port again replaces the forward that is there.
    """
    source, (local, space, remote) = _source(context, words, 3)
    body = {
        "local_port": int(PORT.convert(local, None, context)),
        "space": str(SPACE.convert(space, None, context)),
        "remote_port": int(PORT.convert(remote, None, context)),
        "persistent": persistent,
        "force": force,
    }
    made = _ports(context).forward(source, body)
    verb = "stored for when the space runs" if made["state"] == "stopped" else "established"
    place = f"{source}:" if source else ""
    if made["state"] == "waiting":
        click.echo(f"{made['space']} cannot be reached yet ({made['reason']}); connections wait for it.", err=True)
    click.echo(f"Port forward {verb}: {place}{made['local_port']} -> {made['space']}:{made['remote_port']}")


@port.command("list")
@click.argument("words", nargs=-1, metavar="[SPACE]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-o", "--output", type=click.Choice(["wide"]), help="A table with counters.")
@server_options
@click.pass_context
def list_forwards(context: click.Context, words: tuple[str, ...], as_json: bool, output: str | None) -> None:
    """List the forwards of this space, or of SPACE."""
    source, _ = _source(context, words, 0)
    listing = _ports(context).list(source)
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    if output and listing["forwards"]:
        show(WIDE, [_wide_row(entry) for entry in listing["forwards"]])
        return
    place = _in_space(source)
    if not listing["forwards"]:
        click.echo(f"No active port forwards{place}.")
        return
    click.echo(f"Active port forwards{place}:")
    for entry in listing["forwards"]:
        click.echo(f"  {entry['local_port']} -> {entry['space']}:{entry['remote_port']}{_remarks(entry)}")


@port.command()
@click.argument("words", nargs=-1, metavar="[SPACE] LOCAL_PORT", required=True)
@server_options
@click.pass_context
def stop(context: click.Context, words: tuple[str, ...]) -> None:
    """Stop the forward on LOCAL_PORT of this space, or of SPACE, and reset its connections."""
    source, (local,) = _source(context, words, 1)
    number = int(PORT.convert(local, None, context))
    _ports(context).stop(source, number)
    click.echo(f"Port forward on port {number} stopped{_in_space(source)}.")


def _source(context: click.Context, words: tuple[str, ...], count: int) -> tuple[str | None, tuple[str, ...]]:
    """Split the arguments: one more than `count` means that the first names the source space."""
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return str(SPACE.convert(words[0], None, context)), words[1:]
    expected = f"{count} arguments in a space, or {count + 1} from elsewhere" if count else "at most one argument"
    raise click.UsageError(f"expected {expected}, got {len(words)}", context)


def _ports(context: click.Context) -> Ports:
    """The agent's door where one is named or answers, unless a server was given; else the server's."""
    named = os.environ.get(SOCKET_VARIABLE)
    if named:
        return PortsOfAgent(AgentSocket(Path(named)))
    silent: Unavailable | None = None
    if not given(context) and default_socket().exists():
        try:
            return PortsOfAgent(AgentSocket(default_socket()))
        except Unavailable as error:
            silent = error  # an agent that is gone has left its socket behind
    try:
        return PortsOfServer(api(context))
    except BadInput as error:
        raise silent or error from None


def _remarks(entry: dict[str, Any]) -> str:
    """What stands behind a forward in the list, in parentheses."""
    remarks = ["persistent"] if entry["persistent"] else []
    if entry["mode"]:
        remarks.append(entry["mode"])
    if entry["state"] != "listening":
        remarks.append(entry["state"])
    text = ", ".join(remarks)
    if entry["reason"] and entry["reason"] != entry["state"]:
        text = f"{text}; {entry['reason']}" if text else entry["reason"]
    return f" ({text})" if text else ""


def _wide_row(entry: dict[str, Any]) -> list[str]:
    """What the wide table shows of a forward; nothing is counted while its agent does not run."""
    counted, link = entry["counters"] or {}, entry["link"] or {}
    size = {name: _size(counted.get(name)) for name in ("sent", "received")}
    number = {name: str(counted.get(name, "-")) for name in ("open", "total", "refused")}
    return [
        str(entry["local_port"]),
        f"{entry['space']}:{entry['remote_port']}",
        "yes" if entry["persistent"] else "no",
        entry["state"],
        entry["mode"] or "-",
        entry["address"] or "-",
        f"{link['round_trip'] * 1000:.1f} ms" if link.get("round_trip") else "-",
        str(link.get("up_since") or "-"),
        number["open"],
        number["total"],
        number["refused"],
        size["sent"],
        size["received"],
        str(counted.get("since", "-")),
        counted.get("last_error") or entry["reason"] or "-",
    ]


def _size(count: int | None) -> str:
    from rich.filesize import decimal

    return "-" if count is None else decimal(count)


def _in_space(source: str | None) -> str:
    return f" in space '{source}'" if source else ""
