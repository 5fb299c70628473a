"""A target: a parser of the product, as something that takes bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.watching import Finding

CORPUS = Path(__file__).with_name("corpus")
"""What is kept: inputs that reach different places, and every one that was a finding. A folder for each target."""
INPUT_MAX = 4096
"""Bytes of an input, unless a target says otherwise: all that is parsed here fits, and short ones are tried sooner."""


@dataclass(frozen=True, slots=True)
class Target:
    """`run` gives an input to the real parser; it returns, or raises what is a finding."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    """Valid inputs, made from real values; others are made from these."""
    words: Sequence[bytes] = ()
    """What an input may hold, and chance would be long in finding."""
    input_max: int = INPUT_MAX

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name

    def kept(self) -> list[bytes]:
        """The inputs that are kept for it."""
        return [path.read_bytes() for path in sorted(self.corpus.glob("*"))]


def name_of(content: bytes) -> str:
    """What the file of an input is called: the same input never lies there twice."""
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def declared(*errors: type[Exception]) -> Iterator[None]:
    """What is done may raise these, and no others; what they say must be fit for a terminal, since it may come to one."""
    try:
        yield
    except errors as error:
        if not str(error).isprintable():
            raise Finding(f"{type(error).__name__} says what a terminal would obey: {str(error)!a}") from error
