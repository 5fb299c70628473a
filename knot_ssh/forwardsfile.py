"""Forwards in a YAML file: the agent's own settings file, and what `knot port apply` is given.

    forwards:
      - {local_port: 8080, space: backend-api, remote_port: 3000}
      - {local_port: 9000-9010, space: database, remote_port: 3000-3010}

A range stands for as many single forwards. Every error names file and line.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, StrictBool, model_validator

from knot_ssh.names import BIND_HOST, PORT_MAX, PORT_MIN, Port
from knot_ssh.wire import FORWARDS_MAX, ForwardRequest, Message, SpaceReference, shown
from knot_ssh.yamlfile import Document

ALLOW = "allow_remote_bind"
KEYS = ("forwards", ALLOW)
"""What of an agent's settings file is about forwards."""
SETTINGS = "knot.settings"
"""Entry points of components that have settings: the model of each, by the component's name."""

_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")


def _ports(value: object) -> Sequence[Port]:
    """The ports that a number or a range like `9000-9010` stands for."""
    if isinstance(value, int) and not isinstance(value, bool):
        first = last = value
    elif isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        first, last = int(match[1]), int(match[2])
    else:
        raise ValueError("must be a port, like 8080, or a range, like 9000-9010")
    if not PORT_MIN <= first <= last <= PORT_MAX:
        raise ValueError(f"must be from {PORT_MIN} to {PORT_MAX}, and a range the lower port first")
    return [Port(number) for number in range(first, last + 1)]


def _literal(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{shown(text)!r} is not an IP address; names are not allowed here") from None


Ports = Annotated[Sequence[Port], PlainValidator(_ports)]


class _Entry(Message):
    """One forward, or a range of them."""

    local_port: Ports
    space: SpaceReference
    remote_port: Ports
    persistent: StrictBool = False
    force: StrictBool = False
    bind: Annotated[str, AfterValidator(_literal)] = BIND_HOST

    @model_validator(mode="after")
    def _same_length(self) -> _Entry:
        local, remote = len(self.local_port), len(self.remote_port)
        if local != remote:
            raise ValueError(f"local_port and remote_port must be ranges of the same length, not of {local} and {remote}")
        return self


class _ForApply(Message):
    """The whole of a file for `apply`: without `forwards` it says nothing, which is not the same as none."""

    forwards: list[_Entry]


class _OfAgent(Message):
    """That part of an agent's settings file which is about forwards."""

    forwards: list[_Entry] = Field(default=[])
    allow_remote_bind: StrictBool = False


class FiledForward(Message):
    """A single forward as an agent's settings file has it: the target is named, and may be any space or none."""

    local_port: Port
    space: SpaceReference
    remote_port: Port
    bind: str = Field(default=BIND_HOST, description="The address that the local port is bound at.")


@dataclass(frozen=True, slots=True)
class _Single:
    """One forward of an entry."""

    entry: _Entry
    local_port: Port
    remote_port: Port


def read_requests(content: bytes, name: str) -> list[ForwardRequest]:
    """The forwards of a file for `apply`, in its order; raises BadInput as `name:line: what is wrong`."""
    document = Document.decode(content, name)
    entries = document.check(_ForApply).forwards
    for index, entry in enumerate(entries):
        if entry.bind != BIND_HOST:
            raise document.error(("forwards", index, "bind"), "`bind` is for the agent's own settings file alone")
    return [
        ForwardRequest(
            local_port=single.local_port,
            space=single.entry.space,
            remote_port=single.remote_port,
            persistent=single.entry.persistent,
            force=single.entry.force,
        )
        for single in _singles(document, entries)
    ]


def filed_forwards(document: Document) -> list[FiledForward]:
    """The forwards of an agent's settings file, in its order; raises BadInput as `file:line: what is wrong`.

    `persistent` and `force` are allowed and change nothing: what the file says holds for as long as it says so.
    """
    part = document.only(KEYS).check(_OfAgent)
    for index, entry in enumerate(part.forwards):
        if entry.bind != BIND_HOST and not part.allow_remote_bind:
            raise document.error(
                ("forwards", index, "bind"),
                f"{entry.bind} needs `allow_remote_bind: true` at the top of this file, as any address but {BIND_HOST}",
            )
    return [
        FiledForward(
            local_port=single.local_port, space=single.entry.space, remote_port=single.remote_port, bind=single.entry.bind
        )
        for single in _singles(document, part.forwards)
    ]


def check_file(path: Path) -> list[FiledForward]:
    """Check an agent's settings file, or a file for `apply`, which is one without further settings; gives its forwards.

    Raises BadInput as `file:line: what is wrong`. Without the agent's package, settings beside the forwards are unknown keys.
    """
    document = Document.read(path)
    if document.is_empty:
        raise document.error((), "the file is empty; write `forwards: []` to have none")
    settings = document.without(KEYS)
    settings.check(next((point.load() for point in entry_points(group=SETTINGS, name="agent")), Message))
    return filed_forwards(document)


def _singles(document: Document, entries: Sequence[_Entry]) -> Iterator[_Single]:
    """Every single forward; raises BadInput for too many, and for a local port that stands there twice."""
    lines: dict[Port, int] = {}
    for index, entry in enumerate(entries):
        place: tuple[Any, ...] = ("forwards", index)
        for local_port, remote_port in zip(entry.local_port, entry.remote_port, strict=True):
            if local_port in lines:
                raise document.error(place, f"local port {local_port} stands on line {lines[local_port]} already")
            if len(lines) == FORWARDS_MAX:
                raise document.error(place, f"a space may have {FORWARDS_MAX} forwards, and this is one too many")
            lines[local_port] = document.line(place)
            yield _Single(entry, local_port, remote_port)
