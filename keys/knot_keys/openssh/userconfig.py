"""The one place where a file of the person's own is changed: a marked block in `~/.ssh/config`.

ssh takes the first value that it finds, so ours goes before everything else. An `Include` after a `Host` line belongs to that
block: `Match all` stands before it, for who moves the block below lines of their own. What is not ours is bytes: never decoded,
and the same after the block is gone again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Self

from knot_keys.openssh.quoting import encoded, quoted
from knot_ssh.errors import KnotError
from knot_ssh.files import create_private_file, replace_contents

BEGIN = b"# BEGIN knot ssh (`knot ssh setup --remove` takes these lines out again)"
END = b"# END knot ssh"
_INSIDE = (b"Match all", b"Include ")
"""How the lines between the marks begin."""
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")


class DamagedBlock(KnotError):
    """The marked lines are not as they were written."""

    code = "damaged_block"

    @classmethod
    def at(cls, line: int, complaint: str) -> Self:
        return cls(f"~/.ssh/config, line {line}: {complaint}")


def block(include: Path) -> bytes:
    """The marked lines; raises BadInput for a path that cannot stand in them."""
    return b"\n".join([BEGIN, b"Match all", encoded(f"Include {quoted(include)}"), END, b""])


def with_block(text: bytes, lines: bytes) -> bytes:
    """The text with these marked lines: in the place of earlier ones, else first. Raises DamagedBlock."""
    start, end = _find(text)
    return text[:start] + lines + text[end:]


def without_block(text: bytes) -> bytes:
    """The text without marked lines; raises DamagedBlock."""
    start, end = _find(text)
    return text[:start] + text[end:]


def read(path: Path) -> bytes | None:
    """The file's contents, None where there is none; raises KnotError for what is no file."""
    try:
        if not path.is_file() and path.exists():
            raise KnotError(f"{path} is not a regular file; nothing was changed")
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write(path: Path, text: bytes) -> None:
    """Put these contents in place in one step, behind a symbolic link where there is one; a new file is made 0600."""
    target = Path(os.path.realpath(path))
    if target.exists():
        replace_contents(target, text)
    else:
        create_private_file(target, text)


def _find(text: bytes) -> tuple[int, int]:
    """Where the block begins and ends; (0, 0) where there is none."""
    start, begun = 0, 0
    for number, line in enumerate(_LINES.finditer(text), 1):
        words = line[0].strip()
        if words == END and not begun:
            raise DamagedBlock.at(number, "the end of the lines of `knot ssh` without their beginning; take it out by hand")
        if words == END:
            _reject_another(text[line.end() :], number)
            return start, line.end()
        if words == BEGIN and begun:
            raise DamagedBlock.at(number, "the lines of `knot ssh` begin a second time; take one beginning out by hand")
        if words == BEGIN:
            start, begun = line.start(), number
        elif begun and not _belongs(words, number - begun - 1):
            raise DamagedBlock.at(number, "this stands between the marks of `knot ssh`; move it by hand")
    if begun:
        raise DamagedBlock.at(begun, "the lines of `knot ssh` begin here, but have no end; mend or take them out by hand")
    return 0, 0


def _belongs(words: bytes, place: int) -> bool:
    return place < len(_INSIDE) and words.startswith(_INSIDE[place])


def _reject_another(rest: bytes, above: int) -> None:
    for number, line in enumerate(_LINES.finditer(rest), above + 1):
        if line[0].strip() in {BEGIN, END}:
            raise DamagedBlock.at(number, "a second mark of `knot ssh`; take it out by hand")
