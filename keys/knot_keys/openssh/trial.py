"""Have OpenSSH itself read what ssh is about to be given.

A word that this machine's ssh does not know would end every connection, to whatever host.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from knot_keys.openssh.places import Places
from knot_keys.openssh.texts import HUB_ALIAS
from knot_ssh.errors import KnotError
from knot_ssh.words import printable

SECONDS = 10.0
"""For ssh to read a file; it takes milliseconds."""


def try_config(places: Places) -> None:
    """Raises KnotError with ssh's own words where it refuses our configuration; a machine without ssh has nothing to break."""
    said = _complaint("ssh", ["-T", "-G", "-F", str(places.ssh_config), HUB_ALIAS])  # -G: print the settings, dial nobody
    if said is not None:
        raise KnotError(f"this machine's ssh refuses the configuration (OpenSSH 8.5 or later is needed): {said}")


def try_krl(krl: bytes) -> None:
    """Raises KnotError for a key revocation list that OpenSSH cannot read: ssh refuses every host with one (ssh_config(5))."""
    said = _complaint("ssh-keygen", ["-Q", "-l", "-f", "/dev/stdin"], krl)
    if said is not None:
        raise KnotError(f"this machine's ssh-keygen cannot read the server's key revocation list: {said}")


def _complaint(name: str, options: Sequence[str], text: bytes = b"") -> str | None:
    """What the program says when it fails with this on its stdin; None where it does well, or is not installed."""
    program = shutil.which(name)
    if program is None:
        return None
    try:
        result = subprocess.run(  # noqa: S603 - a program of OpenSSH's, and options of ours
            [program, *options],
            input=text, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        raise KnotError(f"{program} cannot be run, so nothing was changed") from None
    return printable(result.stderr.decode(errors="replace")) if result.returncode else None
