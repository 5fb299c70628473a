"""What is revoked, as stock OpenSSH reads it: a key revocation list (PROTOCOL.krl in the OpenSSH source).

`ssh-keygen -k` makes it, so that the format is OpenSSH's own in whatever version is installed. A serial is void under each
of our CAs: serials are random and both draw from the same 63 bits, so none means two certificates. (Dense serials would go
into a bitmap, and OpenSSH 9.2 writes larger ones than it can read.) An enrolled key is void by its SHA-256 hash, with every
certificate for it.

`RevokedKeys` of sshd and `RevokedHostKeys` of ssh take the file. Both refuse everybody where it is named and cannot be read.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from knot_keys.keyfiles import public_line
from knot_keys.revocation import RevocationList
from knot_ssh.errors import KrlUnavailable

PROGRAM = "ssh-keygen"
SECONDS = 20.0
"""For `ssh-keygen` to make a list; 20,000 serials take it 15 ms."""


async def make_krl(revoked: RevocationList, cas: Sequence[asyncssh.SSHKey]) -> bytes:
    """The list in OpenSSH's binary format; its version number is the time. Raises KrlUnavailable."""
    return await asyncio.to_thread(_make, revoked, cas)


def _make(revoked: RevocationList, cas: Sequence[asyncssh.SSHKey]) -> bytes:
    program = shutil.which(PROGRAM)
    if program is None:
        raise KrlUnavailable
    hashes = [f"hash: {key}" for key in sorted(revoked.keys)]
    serials = [f"serial: {serial}" for serial in sorted(revoked.serials)]
    with tempfile.TemporaryDirectory(prefix="knot-krl-") as folder:
        krl = Path(folder, "krl")
        _run(program, krl, hashes, [])
        for number, ca in enumerate(cas):
            ca_file = Path(folder, f"ca-{number}.pub")
            ca_file.write_text(public_line(ca) + "\n")
            _run(program, krl, serials, ["-u", "-s", str(ca_file)])
        return krl.read_bytes()


def _run(program: str, krl: Path, lines: Sequence[str], options: Sequence[str]) -> None:
    """Make the list, or with `-u` add to it what these lines say (ssh-keygen(1), KEY REVOCATION LISTS)."""
    command = [program, "-k", "-q", "-f", str(krl), "-z", str(int(time.time())), *options, "-"]
    try:
        subprocess.run(  # noqa: S603 - a program of the system's, and nothing that anybody has sent
            command, input="\n".join([*lines, ""]), capture_output=True, text=True, timeout=SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        raise KrlUnavailable("the server's `ssh-keygen` made no key revocation list", detail=" ".join(said.split())) from None
