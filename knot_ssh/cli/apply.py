"""`knot port apply`: make the forwards of a space what a file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knot_ssh.cli import forwardtexts
from knot_ssh.cli.connection import given, server_options
from knot_ssh.cli.params import source_and_rest
from knot_ssh.doors import open_ports
from knot_ssh.errors import EXIT_FAILED, BadInput, KnotError

if TYPE_CHECKING:
    from knot_ssh.doors import Given
    from knot_ssh.wire import ForwardRequest

EXIT_WOULD_CHANGE = 3
STANDARD_INPUT = "-"


@click.command()
@click.argument("words", nargs=-1, metavar="[SPACE]")
@click.option("-f", "--file", metavar="FILE", help="The forwards that are to be, in YAML or JSON; `-` for standard input.")
@click.option("--dry-run", is_flag=True, help="Print what would change, and change nothing; exit code 3 when something would.")
@click.option("--check", metavar="FILE", help="Only check a file, also an agent's settings; nothing is asked of anybody.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def apply(
    context: click.Context, words: tuple[str, ...], file: str | None, dry_run: bool, check: str | None, as_json: bool
) -> None:
    """Make the forwards of this space, or of SPACE, exactly those of a file.

    What is there already stays as it is, what the file does not name is stopped, and forwards of the agent's own
    settings file are left alone.
    """
    source, _ = source_and_rest(context, words, 0)
    if check:
        if file or dry_run or as_json or source:
            raise click.UsageError("--check stands alone", context)
        _check(check)
        return
    if not file:
        raise click.UsageError("-f FILE is missing", context)
    wanted = _read(file)
    said = given(context)
    with open_ports(said) as ports:
        applied = ports.apply(source, [request.model_dump(mode="json") for request in wanted], dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(applied, indent=2))
    else:
        standing = _forwards(said, source)
        if dry_run:
            _show_plan(applied, standing)
        else:
            _show_done(source, applied, standing)
        of_file = [entry for entry in standing if entry["origin"] == "file"]
        if of_file:
            click.echo(forwardtexts.left_alone(source, of_file), err=True)
        _show_errors(applied, wanted)
    if dry_run and (applied["applied"] or applied["stopped"]):
        sys.exit(EXIT_WOULD_CHANGE)
    if applied["errors"]:
        sys.exit(EXIT_FAILED)


def _check(file: str) -> None:
    from knot_ssh.forwardsfile import check_file

    count = len(check_file(Path(file)))
    click.echo(f"{file}: {count} forward{'' if count == 1 else 's'}, no mistakes")


def _read(file: str) -> list[ForwardRequest]:
    """The forwards of a file; raises BadInput as `FILE:LINE: what is wrong`."""
    from knot_ssh.forwardsfile import read_requests

    name = "standard input" if file == STANDARD_INPUT else file
    try:
        content = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
    except OSError as error:
        raise BadInput(f"cannot read {name}: {error.strerror}") from None
    return read_requests(content, name)


def _forwards(said: Given, source: str | None) -> list[dict[str, Any]]:
    """What the space has now; nothing where that cannot be had: what was done is done, and will be told."""
    try:
        with open_ports(said) as ports:
            forwards: list[dict[str, Any]] = ports.list(source)["forwards"]
    except KnotError as error:
        click.echo(f"knot: the list of forwards cannot be had: {error}", err=True)
        return []
    return forwards


def _show_plan(applied: dict[str, Any], standing: list[dict[str, Any]]) -> None:
    for line in forwardtexts.plan(standing, applied):
        click.echo(line)
    _show_if_nothing(applied)


def _show_done(source: str | None, applied: dict[str, Any], standing: list[dict[str, Any]]) -> None:
    states = {entry["local_port"]: entry["state"] for entry in standing}
    for entry in applied["applied"]:
        click.echo(forwardtexts.established(source, {"state": states.get(entry["local_port"])} | entry))
    for entry in applied["stopped"]:
        click.echo(forwardtexts.stopped(source, entry["local_port"]))
    _show_if_nothing(applied)


def _show_if_nothing(applied: dict[str, Any]) -> None:
    if not any(applied.values()):
        click.echo("Nothing to change.")


def _show_errors(applied: dict[str, Any], wanted: list[ForwardRequest]) -> None:
    by_port = {int(request.local_port): request.model_dump(mode="json") for request in wanted}
    for entry in applied["errors"]:
        click.echo(f"knot: {forwardtexts.arrow(by_port[entry['local_port']])}: {entry['error']}", err=True)
