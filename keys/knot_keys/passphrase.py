"""The passphrase that encrypts the CAs' private keys on the disk, and where it may come from.

An argument is no such place: whoever can run `ps` reads it. What the environment holds is taken out of it at once, so that no
child inherits it; but the kernel goes on showing it in /proc/PID/environ, to the same user and to root (proc(5)).
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from knot_ssh.errors import KnotError
from knot_ssh.files import read_secret

PASSPHRASE_VARIABLE = "KNOT_CA_PASSPHRASE"
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a unit with credentials (systemd.exec(5))."""
CREDENTIAL = "knot-ca-passphrase"
"""The name that a unit's `LoadCredential=` or `LoadCredentialEncrypted=` gives it."""
PASSPHRASE_SOURCES = f"--ca-passphrase-file, {PASSPHRASE_VARIABLE} or a systemd credential {CREDENTIAL}"
PASSPHRASE_MAX = 1000
"""Bytes; more is another file, given by mistake."""


class PassphraseRefused(KnotError):
    """That passphrase does not open the key."""

    code = "passphrase_refused"


@dataclass(frozen=True, slots=True)
class Passphrase:
    """One passphrase, which shows itself nowhere."""

    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, data: bytes, source: str) -> Passphrase:
        """One line, without its end; raises PassphraseRefused, naming the source."""
        secret = data.removesuffix(b"\n").removesuffix(b"\r")
        if not secret:
            raise PassphraseRefused(f"{source}: the passphrase is empty; write one line into it")
        if len(secret) > PASSPHRASE_MAX or any(byte in secret for byte in b"\n\r\0"):
            raise PassphraseRefused(f"{source}: a passphrase is one line of at most {PASSPHRASE_MAX} bytes")
        return cls(secret)

    @classmethod
    def read(cls, path: Path) -> Passphrase:
        """From a file; raises LooseFile, KnotError where there is none, or PassphraseRefused."""
        return cls.parse(read_secret(path, follow=True), str(path))


def find_passphrase(file: Path | None, environment: MutableMapping[str, str] = os.environ) -> Passphrase | None:
    """From the file that was named, the environment, or systemd's credentials, in this order; None where there is none.

    Raises as `Passphrase.read` does.
    """
    said = environment.pop(PASSPHRASE_VARIABLE, None)
    if file is not None:
        return Passphrase.read(file)
    if said is not None:
        return Passphrase.parse(os.fsencode(said), PASSPHRASE_VARIABLE)
    folder = environment.get(CREDENTIALS_VARIABLE)
    credential = Path(folder) / CREDENTIAL if folder else None
    if credential is None or not credential.exists():
        return None
    return Passphrase.parse(read_secret(credential, follow=True, group_may_read=True), str(credential))
