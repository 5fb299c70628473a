"""The journal: what stays true although an older copy of the store is put back.

A token that was redeemed is used up for good, and a key, certificate or join token that was revoked stays void. The store
alone cannot promise that: put back as it was last night, it knows of neither. So both are written to a file beside it, a line
of JSON each, and on the disk before the store commits what they tell of. At a start the store is brought up to what the journal
says, see `catchingup`. Where a commit fails after all, the journal says too much, and the store is the stricter for it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from knot_ssh.errors import KnotError, StoreUnavailable
from knot_ssh.files import create_private_file, read_secret, replace_file

log = structlog.get_logger(__name__)

JOURNAL_FILE = "journal"
TOKEN_AGE = 31 * 24 * 3600
"""Seconds for which it is remembered that a join token is void: none lives longer."""
BACKUP_AGE = 366 * 24 * 3600
"""Seconds for which it is remembered that a key is one no more: no copy of the store that is older may be put back."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    until: int
    """Seconds since 1970; afterwards the store needs no reminder."""


class Joined(_Entry):
    """A token was redeemed by a key, which was enrolled for a space."""

    kind: Literal["joined"] = "joined"
    token: str
    fingerprint: str
    space: str
    key: str
    agentless: bool = False
    host_key: str | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.token} {self.fingerprint}"


class VoidKey(_Entry):
    """An enrolled key is one no more; `expires_at` as in the store."""

    kind: Literal["key"] = "key"
    fingerprint: str
    reason: str
    expires_at: int
    owner: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.fingerprint}"


class VoidCertificate(_Entry):
    """A certificate is void before its time."""

    kind: Literal["certificate"] = "certificate"
    serial: int
    reason: str
    owner: str = ""
    key_id: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.serial}"


class Barred(_Entry):
    """A key is certified no more for this owner."""

    kind: Literal["barred"] = "barred"
    owner: str
    fingerprint: str
    reason: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.owner} {self.fingerprint}"


class VoidToken(_Entry):
    """A join token that nobody had used is void before its time."""

    kind: Literal["token"] = "token"
    token: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.token}"


Void = VoidKey | VoidCertificate | Barred | VoidToken
Entry = Joined | Void
_READER: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class Journal:
    """An open journal. `entries` are in the order in which they came true."""

    def __init__(self, file: Path, entries: Iterable[Entry]) -> None:
        self._file = file
        self._entries: dict[str, Entry] = {}
        self._writing = asyncio.Lock()
        self._add(entries)

    @classmethod
    def create(cls, folder: Path) -> None:
        """Make an empty one, 0600; raises FileExistsError where there is one."""
        create_private_file(folder / JOURNAL_FILE, b"")

    @classmethod
    def open(cls, folder: Path) -> Journal:
        """Read it; what has run out is dropped. Raises KnotError for a loose or damaged one.

        Where there is none it is made: a store without one is no worse off than before, and that is told.
        """
        file = folder / JOURNAL_FILE
        if not file.exists():
            log.warning("journal made anew", file=str(file), reason="there was none; do not put back an older store")
            cls.create(folder)
        text = read_secret(file)
        journal = cls(file, _read(file, text))
        journal._drop_old(time.time())
        if (written := journal._text(journal.entries)) != text:
            replace_file(file, written)
        return journal

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    async def keep(self, entries: Iterable[Entry]) -> None:
        """Have these on the disk, unless they are there already; raises StoreUnavailable."""
        async with self._writing:
            new = [entry for entry in entries if self._entries.get(entry.name) != entry]
            if new:
                await asyncio.to_thread(self._append, self._text(new))
                self._add(new)

    def _drop_old(self, now: float) -> None:
        """Only once all are read: one that has run out may have ended an earlier one that has not."""
        self._entries = {name: entry for name, entry in self._entries.items() if entry.until > now}

    def _add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._entries.pop(entry.name, None)
            self._entries[entry.name] = entry
            if isinstance(entry, Joined):  # a key may be enrolled again, long after it was revoked
                self._entries.pop(f"key {entry.fingerprint}", None)

    def _append(self, text: bytes) -> None:
        """Write at the end: all or nothing, as far as can be told."""
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                _write(descriptor, text)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StoreUnavailable(detail=f"{self._file}: {error.strerror}") from None

    @staticmethod
    def _text(entries: Iterable[Entry]) -> bytes:
        return b"".join(entry.model_dump_json().encode() + b"\n" for entry in entries)


def _write(descriptor: int, text: bytes) -> None:
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, text) != len(text):
            raise OSError(0, "the disk is full")
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _read(file: Path, text: bytes) -> list[Entry]:
    """All whole lines: one that a crash has cut short was told to nobody."""
    *lines, _cut_short = text.split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_READER.validate_json(line))
        except ValidationError:
            raise KnotError(f"{file}:{number} is damaged: put a copy of the journal back, it is never made anew") from None
    return entries
