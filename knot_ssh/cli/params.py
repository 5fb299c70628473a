"""Values on the command line, read by the same parsers as everywhere else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from knot_ssh.addresses import Address, is_server_url
from knot_ssh.errors import BadInput
from knot_ssh.names import LABEL, Owner, Port, SpaceName, TokenName, Zone, space_reference

MINUTE = 60
_UNITS = {"s": 1, "m": MINUTE, "h": 3600, "d": 24 * 3600}
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")


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


def _duration(text: str) -> int:
    """Seconds of a time as people write it, a minute at least."""
    match = _DURATION.fullmatch(text)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if seconds < MINUTE:
        raise BadInput(f"{text[:80]!r} is not a time like 90d, 12h or 30m, a minute at least")
    return seconds


def _token(text: str) -> str:
    """A token's id or name. What is none is not repeated: it may be a token."""
    if not re.fullmatch(LABEL, text):
        raise BadInput("give the token's id or name, as `knot token list` shows them, never the token itself")
    return text


def _token_scope(text: str) -> tuple[str, str | None]:
    """A scope, and the space that it is about if it is about one."""
    kind, colon, space = text.partition(":")
    if text in {"all", "read"}:
        return text, None
    if kind == "forwards" and colon:
        return kind, str(space_reference(space))
    raise BadInput(f"{text[:80]!r} is not all, read or forwards:SPACE")


PORT = Parsed("port", Port.parse)
SPACE = Parsed("space", space_reference)
SPACE_NAME = Parsed("name", SpaceName)
ZONE = Parsed("zone", Zone)
OWNER = Parsed("name", Owner)
ADDRESS = Parsed("host:port", Address.parse)
FOLDER = Parsed("folder", _folder)
DURATION = Parsed("time", _duration)
TOKEN = Parsed("id or name", _token)
TOKEN_NAME = Parsed("name", TokenName)
TOKEN_SCOPE = Parsed("scope", _token_scope)
URL = Parsed("url", _url)


def source_and_rest(context: click.Context, words: tuple[str, ...], count: int) -> tuple[str | None, tuple[str, ...]]:
    """Split the arguments: one more than `count` means that the first names the source space."""
    if len(words) == count:
        return None, words
    if len(words) == count + 1:
        return str(SPACE.convert(words[0], None, context)), words[1:]
    expected = f"{count} arguments in a space, or {count + 1} from elsewhere" if count else "at most one argument"
    raise click.UsageError(f"expected {expected}, got {len(words)}", context)
