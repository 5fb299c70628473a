"""Values on the command line, read by the same parsers as everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from knot_ssh.addresses import Address, is_server_url
from knot_ssh.errors import BadInput
from knot_ssh.names import Owner, Port, SpaceName, Zone, space_reference


class Parsed(click.ParamType[Any]):
    """A parameter that one of our parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except BadInput as error:
            self.fail(str(error), param, ctx)


def _folder(text: str) -> Path:
    if not text:
        raise BadInput("a folder is needed, not an empty text")
    return Path(text)


def _url(text: str) -> str:
    if not is_server_url(text):
        raise BadInput(f"{text[:80]!r} is not a URL like https://knot.example.com")
    return text


PORT = Parsed("port", Port.parse)
SPACE = Parsed("space", space_reference)
SPACE_NAME = Parsed("name", SpaceName)
ZONE = Parsed("zone", Zone)
OWNER = Parsed("name", Owner)
ADDRESS = Parsed("host:port", Address.parse)
FOLDER = Parsed("folder", _folder)
URL = Parsed("url", _url)


def source_and_rest(context: click.Context, words: tuple[str, ...], count: int) -> tuple[str | None, tuple[str, ...]]:
    """Split the arguments: one more than `count` means that the first names the source space."""
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return str(SPACE.convert(words[0], None, context)), words[1:]
    expected = f"{count} arguments in a space, or {count + 1} from elsewhere" if count else "at most one argument"
    raise click.UsageError(f"expected {expected}, got {len(words)}", context)
