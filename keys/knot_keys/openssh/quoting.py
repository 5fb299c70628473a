"""Paths as OpenSSH's configuration takes them, the same in all of its readers.

Measured with 9.2: `UserKnownHostsFile`, `IdentityFile`, `CertificateFile` and `Match exec` expand `%`, and later releases do
so in `RevokedHostKeys`, where 9.2 does not; `${NAME}` is expanded and cannot be escaped; `Include` is a glob(3) pattern; a
backslash escapes in quoted arguments, but not after `Match` before 10.0. `Match exec` is read by $SHELL besides. A path that
means the same in all of these has none of the characters below. White space, `#`, `~` inside and letters of any script are
fine in double quotes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from knot_ssh.errors import BadInput
from knot_ssh.words import printable

UNFIT = frozenset("\"'\\%$*?[")


def quoted(path: Path) -> str:
    """The path as one argument; raises BadInput for one that OpenSSH would read as another."""
    return f'"{_fit(str(path))}"'


def quoted_command(words: Sequence[str]) -> str:
    """A command as `Match exec` takes it: quoted for any shell, and the whole for ssh; raises BadInput."""
    return '"' + " ".join(f"'{_fit(word)}'" for word in words) + '"'


def encoded(text: str) -> bytes:
    """Text with paths in it as the bytes that they are made of."""
    return os.fsencode(text)


def _fit(text: str) -> str:
    found = next((char for char in text if char in UNFIT or ord(char) < ord(" ") or char == "\x7f"), None)
    if found is not None:
        raise BadInput(f"the path {printable(text)} has {found!r} in it, which OpenSSH's configuration cannot hold")
    return text
