"""What strangers say, made fit for people's eyes."""

from __future__ import annotations

WORDS_LIMIT = 200
"""Characters of a peer's words that are kept."""


def printable(text: str, limit: int = WORDS_LIMIT) -> str:
    """The text without anything that a terminal would obey: one line, escaped and short."""
    spaced = " ".join(text[:limit].split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in spaced)
