"""Have ssh itself read what was written, before its own configuration leads there.

A word that this machine's ssh does not know would end every connection, to whatever host.
"""

from __future__ import annotations

import shutil
import subprocess

from knot_keys.openssh.places import Places
from knot_keys.openssh.texts import HUB_ALIAS
from knot_ssh.errors import KnotError
from knot_ssh.words import printable

PROGRAM = "ssh"
SECONDS = 10.0
"""For ssh to read a file; it takes milliseconds."""


def try_config(places: Places) -> None:
    """Raises KnotError with ssh's own words where it refuses our configuration; a machine without ssh has nothing to break."""
    program = shutil.which(PROGRAM)
    if program is None:
        return
    command = [program, "-T", "-G", "-F", str(places.ssh_config), HUB_ALIAS]  # -G: print the settings, and connect to nobody
    try:
        result = subprocess.run(  # noqa: S603 - ssh, with a file of ours
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        raise KnotError(f"{program} cannot be run, so nothing was changed") from None
    if result.returncode:
        said = printable(result.stderr.decode(errors="replace"))
        raise KnotError(f"this machine's ssh refuses the configuration (OpenSSH 8.5 or later is needed): {said}")
