"""`knot port …`: inside a space through its agent, from elsewhere through the server."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import click

from knot_ssh.cli import forwardtexts
from knot_ssh.cli.apply import apply
from knot_ssh.cli.connection import given, server_options
from knot_ssh.cli.params import PORT, SPACE, source_and_rest
from knot_ssh.cli.tables import table
from knot_ssh.cli.watch import Report, watch
from knot_ssh.doors import open_ports

if TYPE_CHECKING:
    from knot_ssh.doors import Given

WATCH_SECONDS = 2.0
WATCH_LEAST, WATCH_MOST = 0.1, 3600.0
LOOK_SECONDS = 0.3
"""Between two looks whether a forward has drained."""


@click.group()
@server_options
def port() -> None:
    """Forward ports of one space to ports of another."""


port.add_command(apply)


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
    source, (local, space, remote) = source_and_rest(context, words, 3)
    body = {
        "local_port": int(PORT.convert(local, None, context)),
        "space": str(SPACE.convert(space, None, context)),
        "remote_port": int(PORT.convert(remote, None, context)),
        "persistent": persistent,
        "force": force,
    }
    with open_ports(given(context)) as ports:
        made = ports.forward(source, body)
    if made["state"] == "waiting":
        click.echo(f"{made['space']} cannot be reached yet ({made['reason']}); connections wait for it.", err=True)
    click.echo(forwardtexts.established(source, made))


@port.command("list")
@click.argument("words", nargs=-1, metavar="[SPACE]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-o", "--output", type=click.Choice(["wide"]), help="A table with counters.")
@click.option(
    "--watch",
    "every",
    is_flag=False,
    flag_value=str(WATCH_SECONDS),
    metavar="[SECONDS]",
    help="Look again every 2, or so many, seconds; Ctrl-C ends it.",
)
@server_options
@click.pass_context
def list_forwards(context: click.Context, words: tuple[str, ...], as_json: bool, output: str | None, every: str | None) -> None:
    """List the forwards of this space, or of SPACE."""
    seconds, words = _watching(context, every, words)
    source, _ = source_and_rest(context, words, 0)
    said = given(context)

    def look() -> Report:
        with open_ports(said) as ports:
            listing = ports.list(source)
        if as_json:
            return Report(json.dumps(listing, indent=None if seconds else 2))
        return _report(source, listing, wide=output == "wide")

    if seconds:
        watch(look, seconds)
    else:
        look().print()


@port.command()
@click.argument("words", nargs=-1, metavar="[SPACE] LOCAL_PORT", required=True)
@click.option("--drain", is_flag=True, help="Take no new connections, and wait until the open ones have ended.")
@server_options
@click.pass_context
def stop(context: click.Context, words: tuple[str, ...], drain: bool) -> None:
    """Stop the forward on LOCAL_PORT of this space, or of SPACE, and reset its connections."""
    source, (local,) = source_and_rest(context, words, 1)
    number = int(PORT.convert(local, None, context))
    said = given(context)
    with open_ports(said) as ports:
        answer = ports.stop(source, number, drain=drain)
    if answer["state"] == "draining":
        _wait_until_drained(said, source, number, answer)
    click.echo(forwardtexts.stopped(source, number))


def _wait_until_drained(said: Given, source: str | None, number: int, answer: dict[str, Any]) -> None:
    """Return once the forward is gone; when interrupted, say that it goes on draining."""
    try:
        count = answer["counters"]["open"] if answer["counters"] else 0
        still = "1 connection is" if count == 1 else f"{count} connections are"
        click.echo(f"Port {number} takes no more connections; {still} still open. Waiting for the end of all.", err=True)
        while _is_draining(said, source, number):
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        click.echo(f"The forward on port {number} goes on draining; `knot port list` shows it until it is gone.", err=True)
        raise


def _is_draining(said: Given, source: str | None, number: int) -> bool:
    with open_ports(said) as ports:
        forwards = ports.list(source)["forwards"]
    return any(entry["local_port"] == number and entry["state"] == "draining" for entry in forwards)


def _report(source: str | None, listing: dict[str, Any], *, wide: bool) -> Report:
    """The list for people."""
    forwards, trouble = listing["forwards"], listing["file_error"]
    if wide and forwards:
        lines = table(forwardtexts.WIDE, [forwardtexts.wide_row(entry) for entry in forwards])
    else:
        lines = list(forwardtexts.listing(source, forwards))
    return Report("\n".join(lines), forwardtexts.file_trouble(trouble) if trouble else "")


def _watching(context: click.Context, every: str | None, words: tuple[str, ...]) -> tuple[float | None, tuple[str, ...]]:
    """How often to look, if more than once; what stands behind `--watch` and is no number was meant as a word."""
    if every is None:
        return None, words
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", every):
        return WATCH_SECONDS, (every, *words)
    if not WATCH_LEAST <= float(every) <= WATCH_MOST:
        raise click.UsageError(f"--watch takes {WATCH_LEAST:g} to {WATCH_MOST:g} seconds, not {every}", context)
    return float(every), words
