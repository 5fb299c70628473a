"""A key that can be changed for another while everybody goes on: a ring of up to two keys in files, and its phases.

    stable      NAME                 the active key
    prepared    NAME, NAME.next      the next one is trusted already, and signs nothing
    activated   NAME, NAME.old       the next one is active; the one before is still trusted

    stable -> prepare -> prepared -> activate -> activated -> retire -> stable

The phase is what the files say, and each step takes place in one system call: making NAME.next, renaming it to NAME, removing
NAME.old. A process that is killed leaves the phase before or the one after. Retiring by force, because the old key may be in
other hands, leaves its fingerprint in NAME.distrusted: what was made under it is not to go on either.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

import asyncssh

from knot_keys.keyfiles import create_key, fingerprint, public_line
from knot_keys.passphrase import Passphrase
from knot_keys.recoding import load_ca
from knot_ssh.errors import Conflict, KnotError
from knot_ssh.files import replace_file

NEXT, OLD, DISTRUSTED, PUBLIC = ".next", ".old", ".distrusted", ".pub"
DISTRUSTED_MAX = 16
"""Keys given up that are remembered: one is of interest for as long as a connection that was made under it may last."""


class Phase(StrEnum):
    """Where a ring stands in its rotation."""

    STABLE = "stable"
    PREPARED = "prepared"
    ACTIVATED = "activated"


class Step(StrEnum):
    """What moves it on."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    RETIRE = "retire"


AFTER = {
    (Phase.STABLE, Step.PREPARE): Phase.PREPARED,
    (Phase.PREPARED, Step.ACTIVATE): Phase.ACTIVATED,
    (Phase.ACTIVATED, Step.RETIRE): Phase.STABLE,
}
"""Every step that there is; another one in a phase changes nothing."""
DUE: dict[Phase, Step] = dict(AFTER.keys())
"""The one step that each phase allows."""


@dataclass(frozen=True)
class Keys:
    """The private keys of one ring."""

    active: asyncssh.SSHKey = field(repr=False)
    next: asyncssh.SSHKey | None = field(default=None, repr=False)
    old: asyncssh.SSHKey | None = field(default=None, repr=False)

    @property
    def phase(self) -> Phase:
        if self.next is not None:
            return Phase.PREPARED
        return Phase.STABLE if self.old is None else Phase.ACTIVATED

    @cached_property
    def trusted(self) -> tuple[asyncssh.SSHKey, ...]:
        """The public keys that are trusted, the active one first."""
        return tuple(key.convert_to_public() for key in (self.active, self.next, self.old) if key is not None)

    @cached_property
    def names(self) -> frozenset[str]:
        """Their fingerprints."""
        return frozenset(map(fingerprint, self.trusted))

    @property
    def lines(self) -> list[str]:
        """The same as OpenSSH lines."""
        return list(map(public_line, self.trusted))

    @property
    def newest(self) -> asyncssh.SSHKey:
        """The key that everybody has to know before the step that is due."""
        return self.next or self.active


class KeyRing:
    """One ring in its folder. `keys` is what the files hold, `distrusted` names keys that were retired by force."""

    def __init__(self, folder: Path, name: str, keys: Keys, passphrase: Passphrase | None = None) -> None:
        self.name = name
        self.keys = keys
        self.distrusted: list[str] = []
        self._path = folder / name
        self._passphrase = passphrase
        self._steps: dict[Step, Callable[[bool], Keys]] = {
            Step.PREPARE: self._prepare,
            Step.ACTIVATE: self._activate,
            Step.RETIRE: self._retire,
        }

    @classmethod
    def create(cls, folder: Path, name: str, comment: str, passphrase: Passphrase | None = None) -> KeyRing:
        """A ring with a first key; raises FileExistsError where there is one."""
        return cls(folder, name, Keys(create_key(folder / name, comment, passphrase)), passphrase)

    @classmethod
    def load(cls, folder: Path, name: str, passphrase: Passphrase | None = None) -> KeyRing:
        """Read a ring, and clear up after a step that was cut short; raises KnotError, LooseFile or
        PassphraseRefused with the file's name."""
        path = folder / name
        following, old = (_load_if_there(path.with_name(path.name + suffix), passphrase) for suffix in (NEXT, OLD))
        ring = cls(folder, name, Keys(load_ca(path, passphrase), following, old), passphrase)
        ring._clear_up()
        return ring

    @property
    def phase(self) -> Phase:
        return self.keys.phase

    @property
    def since(self) -> float:
        """When the phase began, in seconds since 1970; 0 for a ring that is stable."""
        suffix = {Phase.PREPARED: NEXT, Phase.ACTIVATED: PUBLIC}.get(self.phase)
        return self._beside(suffix).stat().st_mtime if suffix else 0.0

    def check(self, step: Step) -> None:
        """Raises Conflict where this step is not the one that is due."""
        if (self.phase, step) not in AFTER:
            what = self.name.replace("_", "-")
            raise Conflict(f"the {what} is {self.phase}: the next step is {DUE[self.phase]!s}, not {step!s}")

    def take(self, step: Step, *, distrust: bool = False) -> None:
        """Take the step; raises Conflict as `check`, KnotError where the files cannot be changed. `distrust`: see above."""
        self.check(step)
        try:
            self.keys = self._steps[step](distrust)
        except OSError as error:
            raise KnotError(f"{self.name} is as it was: {error.filename}: {error.strerror}") from None

    def _prepare(self, _distrust: bool) -> Keys:
        comment = str(self.keys.active.get_comment() or self.name)
        return Keys(self.keys.active, next=create_key(self._beside(NEXT), comment, self._passphrase))

    def _activate(self, _distrust: bool) -> Keys:
        following, active = self.keys.next, self.keys.active
        assert following
        os.link(self._path, self._beside(OLD))
        try:
            self._beside(NEXT).replace(self._path)
        except OSError:
            self._beside(OLD).unlink()
            raise
        self._publish(following)
        return Keys(following, old=active)

    def _retire(self, distrust: bool) -> Keys:
        assert self.keys.old
        known = [*self.distrusted, fingerprint(self.keys.old)][-DISTRUSTED_MAX:]
        if distrust:
            replace_file(self._beside(DISTRUSTED), "\n".join([*known, ""]).encode())
        self._beside(OLD).unlink()
        self.distrusted = known if distrust else self.distrusted
        return Keys(self.keys.active)

    def _clear_up(self) -> None:
        """An activation that was cut short has left the active key as the old one, too: it has not taken place."""
        keys = self.keys
        if keys.old is not None and keys.old == keys.active:
            self._beside(OLD).unlink()
            keys = Keys(keys.active, keys.next)
        if keys.next is not None and keys.old is not None:
            raise KnotError(f"{self._beside(NEXT)} and {self._beside(OLD)} cannot both be there: put one of them elsewhere")
        self.keys = keys
        self.distrusted = [name for name in self._given_up() if name not in keys.names]
        self._publish(keys.active)

    def _given_up(self) -> list[str]:
        """What the file says; of a retirement that was cut short it names a key that is trusted still."""
        file = self._beside(DISTRUSTED)
        return file.read_text("ascii").split() if file.exists() else []

    def _publish(self, active: asyncssh.SSHKey) -> None:
        """Have the public key beside the private one be its own."""
        public = self._beside(PUBLIC)
        if not public.exists() or public.read_bytes().split()[:2] != public_line(active).encode().split():
            replace_file(public, active.export_public_key("openssh"))
        if not self._beside(NEXT).exists():
            self._beside(NEXT + PUBLIC).unlink(missing_ok=True)

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)


def _load_if_there(path: Path, passphrase: Passphrase | None) -> asyncssh.SSHKey | None:
    return load_ca(path, passphrase) if path.exists() else None
