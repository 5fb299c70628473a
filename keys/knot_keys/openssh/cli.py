"""`knot ssh …`. `refresh --if-due` runs before every connection: what only other commands need is imported by them."""

from __future__ import annotations

import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knot_keys.openssh.places import Places
from knot_keys.openssh.state import is_due, local_time, read_state
from knot_ssh import doors
from knot_ssh.cli.connection import given, server_options
from knot_ssh.errors import EXIT_FAILED, BadInput, KnotError, Unavailable
from knot_ssh.words import printable

if TYPE_CHECKING:
    from knot_keys.openssh.state import State

PATH_LIMIT = 4096
LIFETIME_MIN = 60
"""Seconds; the server certifies for no shorter time."""


@click.group()
@server_options
def ssh() -> None:
    """Stock OpenSSH: reach your spaces as NAME.knot."""


@ssh.command()
@click.option("--yes", is_flag=True, help="Do not ask before ~/.ssh/config is changed.")
@click.option("--identity", metavar="FILE", help="A key of your own to certify; its .pub alone is read.  [default: a new key]")
@click.option("--lifetime", type=click.IntRange(min=LIFETIME_MIN), metavar="SECONDS", help="Of the certificate, at most.")
@click.option("--remove", is_flag=True, help="Undo the setup.")
@server_options
@click.pass_context
def setup(context: click.Context, yes: bool, identity: str | None, lifetime: int | None, remove: bool) -> None:
    """Set ssh up: a key, a short-lived certificate, whom to trust, and one Include in ~/.ssh/config."""
    places = Places.here()
    if remove:
        if identity is not None or lifetime is not None:
            raise click.UsageError("--remove takes neither --identity nor --lifetime", context)
        _remove(places)
        return
    from knot_keys.openssh.identities import named_identity
    from knot_keys.openssh.settingup import Wanted, earlier, set_up

    before = earlier(places)
    wanted = Wanted(given(context), None if identity is None else named_identity(identity), lifetime)
    state = set_up(places, wanted, lambda lines: _ask(places, lines, yes))
    if before and before.host_cas and set(before.host_cas).isdisjoint(state.host_cas):
        click.echo("knot: the host CA is another one than before", err=True)
    _report_setup(places, state)


@ssh.command()
@click.option("--if-due", is_flag=True, help="Only when half of the certificate's life is over.")
@click.option("--quiet", is_flag=True, help="Say nothing when the server is away, unless the certificate has run out.")
@server_options
@click.pass_context
def refresh(context: click.Context, if_due: bool, quiet: bool) -> None:
    """Get a new certificate and the present list of spaces. ssh runs this by itself."""
    places = Places.here()
    state = read_state(places)
    if if_due and not is_due(places, state, time.time()):
        return
    from knot_keys.openssh.refreshing import expiry_notice
    from knot_keys.openssh.refreshing import refresh as renew

    _reject_other_server(context, state)
    try:
        state = renew(places, given(context), if_due=if_due, by_itself=if_due or quiet)
    except Unavailable as error:
        if not quiet:
            raise
        if notice := expiry_notice(places, error):
            raise KnotError(notice) from None
        sys.exit(EXIT_FAILED)
    if not quiet:
        click.echo(f"Certificate until {local_time(state.valid_before)}; {_counted(state)}.")


@ssh.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
def status(as_json: bool) -> None:
    """Show what ssh has been given, and until when. Reads files alone."""
    import json

    from knot_keys.openssh.status import report, table

    found = report(Places.here(), time.time())
    click.echo(json.dumps(found, indent=2) if as_json else table(found))


def _ask(places: Places, lines: bytes, yes: bool) -> None:
    """Show what goes into the person's own file, and go on only with their word."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(f"there is no terminal to ask on before {places.user_config} is changed; give --yes")
    click.echo(f"These lines go first into {places.user_config}:\n\n{lines.decode(errors='replace')}", err=True)
    if not click.confirm("Is that all right?", err=True):
        raise KnotError("nothing was changed")


def _report_setup(places: Places, state: State) -> None:
    from knot_keys.keyfiles import fingerprint, parse_public_key

    click.echo(f"Set up ssh in {_shown(places.folder)}: certificate until {local_time(state.valid_before)}, {_counted(state)}.")
    names = " or ".join(fingerprint(parse_public_key(ca)) for ca in state.host_cas)
    click.echo(f"Hosts are checked by the CA {names}.")
    example = next(iter(state.spaces), "NAME").partition(".")[0]
    click.echo(f"Try: ssh -N -L 8080:localhost:8080 {example}.knot")
    for note in _notes(places, state):
        click.echo(f"knot: {note}", err=True)


def _notes(places: Places, state: State) -> list[str]:
    """What a person should know after a setup that went well."""
    from urllib.parse import urlsplit

    from knot_ssh.addresses import Address

    notes = []
    if not doors.keeps_login(state.server):
        notes.append(f"no login is kept for {state.server}: run `knot login`, or set KNOT_TOKEN wherever ssh runs")
    if places.unread_home:
        notes.append(f"ssh reads {places.unread_home}/.ssh/config unless told: use `ssh -F {places.user_config}`")
    if places.ssh_folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder = _shown(places.ssh_folder)
        notes.append(f"others can write in {folder}, and so say whom ssh trusts: run `chmod go-w {folder}`")
    if state.server.startswith("http://") and not Address(urlsplit(state.server).hostname or "", 0).is_loopback:
        notes.append(f"{state.server} is no https: whoever is on the way to it could have named another host CA")
    return notes


def _remove(places: Places) -> None:
    from knot_keys.openssh.settingup import remove

    gone = remove(places)
    if not gone:
        click.echo("Nothing to remove: stock ssh is not set up here.")
    elif places.user_config in gone:
        click.echo(f"Took the lines out of {_shown(places.user_config)}.")
    if places.folder.exists():
        click.echo(f"What is left in {_shown(places.folder)} is yours.")
    elif gone:
        click.echo(f"Removed {_shown(places.folder)}.")


def _reject_other_server(context: click.Context, state: State) -> None:
    """A server named by flag that is not the one of the setup is a mistake; one in the environment may serve others."""
    said: dict[str, Any] = context.find_root().ensure_object(dict)
    if said.get("server") and said["server"].rstrip("/") != state.server:
        raise BadInput(f"ssh is set up for {state.server}; for another server run `knot ssh setup --server URL`")


def _counted(state: State) -> str:
    return "1 space" if len(state.spaces) == 1 else f"{len(state.spaces)} spaces"


def _shown(path: Path) -> str:
    """A path as a terminal may show it: names of files are bytes, not always text."""
    return printable(str(path), PATH_LIMIT)
