"""`knot audit`: who did what, when."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from knot_ssh.api import Api
from knot_ssh.cli.connection import api, server_options
from knot_ssh.cli.params import OWNER, SPACE, Parsed
from knot_ssh.cli.watch import reader_left, silence_stdout
from knot_ssh.errors import BadInput, Unavailable
from knot_ssh.names import Owner
from knot_ssh.words import escaped, json_line

PAGE = 1000
"""Records that the server gives at a time, at most."""
FOLLOW_SECONDS = 1.0
"""Seconds between two questions for what is new."""
HEAD = ("id", "at", "event", "actor", "owner", "space", "space_id")
"""The fields of every record."""
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Record = dict[str, Any]
Filters = list[tuple[str, str]]


def moment(text: str) -> datetime:
    """`90s`, `5m`, `1h`, `7d`, `2w` ago, or a date or time (ISO 8601), local unless it names a zone; raises BadInput."""
    try:
        if found := re.fullmatch(r"([0-9]{1,9})([smhdw])", text):
            return datetime.now(UTC) - timedelta(**{UNITS[found[2]]: int(found[1])})
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise BadInput(
            f"{text[:40]!r} is neither a time ago, like 1h or 7d, nor a date like 2026-11-20 or 2026-11-20T09:30"
        ) from None


MOMENT = Parsed("moment", moment)


@click.command()
@click.option(
    "--event", "events", multiple=True, metavar="EVENT", help="Of this kind alone; may be repeated.  [joined, refused, …]"
)
@click.option("--space", type=SPACE, help="About this space; one that was deleted, by its id.")
@click.option("--user", type=OWNER, help="About what this user owns, or has done.")
@click.option("--since", type=MOMENT, help="From then on: 90s, 5m, 1h, 7d ago, or a date or time.")
@click.option("--until", type=MOMENT, help="Before then.")
@click.option("--limit", type=click.IntRange(1, PAGE), help="The newest of them, so many.  [default: 100; all with --since]")
@click.option("--follow", "-F", is_flag=True, help="Go on with what is new, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one record a line.")
@server_options
@click.pass_context
def audit(
    context: click.Context,
    events: tuple[str, ...],
    space: str | None,
    user: Owner | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show who did what, when: all of it for administrators, else what concerns you."""
    filters = [("event", event.replace("-", " ")) for event in events]
    filters += [(name, str(value)) for name, value in (("space", space), ("user", user)) if value is not None]
    filters += [(name, value.isoformat()) for name, value in (("since", since), ("until", until)) if value is not None]
    reader = Reader(api(context), filters)
    reading = reader.from_start() if since and not limit else reader.newest(limit or 100)
    _print(reading, reader, json_line if as_json else line, follow=follow)


@dataclass(slots=True)
class Reader:
    """Reads the record on from where it was."""

    api: Api
    filters: Filters
    last: int = 0

    def newest(self, limit: int) -> Iterator[Record]:
        yield from self._page([("limit", str(limit))])

    def from_start(self) -> Iterator[Record]:
        """All that there is behind `last`."""
        while True:
            page = self._page([("after", str(self.last)), ("limit", str(PAGE))])
            yield from page
            if len(page) < PAGE:
                return

    def _page(self, more: Filters) -> list[Record]:
        answer = self.api.get("api", "audit", query=[*self.filters, *more])
        self.last = int(answer["last"])
        return list(answer["records"])


def line(record: Record) -> str:
    """A record for people: time, event, who, whose, where, then the fields of its event."""
    at, event, actor, owner, space = (str(record.get(name) or "-") for name in ("at", "event", "actor", "owner", "space"))
    fields = ((name, ",".join(map(str, value)) if isinstance(value, list) else value) for name, value in record.items())
    more = [f"{escaped(name)}={escaped(value)}" for name, value in fields if name not in HEAD]
    columns = (
        f"{_second(at):20}",
        f"{escaped(event, spaces=True):18}",
        f"{escaped(actor, spaces=True):16}",
        f"{escaped(owner):12}",
    )
    return " ".join([*columns, f"{escaped(space):16}", *more]).rstrip()


def _second(at: str) -> str:
    """A time without its parts of a second."""
    return re.sub(r"\.[0-9]+", "", escaped(at))


def _print(records: Iterator[Record], reader: Reader, form: Callable[[Record], str], *, follow: bool) -> None:
    """Print what there is, and with `follow` what comes; ends quietly when interrupted, or when nobody reads any more."""
    try:
        _show(records, form)
        while follow and not reader_left(FOLLOW_SECONDS):
            try:
                _show(reader.from_start(), form)
            except Unavailable as error:
                click.echo(f"knot: {error}", err=True)
    except KeyboardInterrupt:
        if not follow:
            raise
        return
    except BrokenPipeError:
        follow = True
    if follow:
        silence_stdout()


def _show(records: Iterator[Record], form: Callable[[Record], str]) -> None:
    for record in records:
        click.echo(form(record))
