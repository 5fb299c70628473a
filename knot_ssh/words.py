"""What strangers say, made fit for people's eyes."""

from __future__ import annotations

import json
from typing import Any

WORDS_LIMIT = 200
"""Characters of a peer's words that are kept."""


def printable(text: str, limit: int = WORDS_LIMIT) -> str:
    """The text without anything that a terminal would obey: one line, escaped and short."""
    spaced = " ".join(text[:limit].split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in spaced)


def escaped(value: object, *, spaces: bool = False) -> str:
    """The value as it is where that is a plain word, else as a literal of ASCII in which nothing is left to obey."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and '"' not in text and "=" not in text
    return text if plain and text and (spaces or " " not in text) else ascii(text)


def json_line(value: Any) -> str:
    """A value as JSON on one line of printable ASCII."""
    return json.dumps(value, ensure_ascii=True).replace("\x7f", "\\u007f")
