"""`ssh-keygen` as tests use it: keys in files, and signatures of theirs (ssh-keygen(1), `-Y sign`)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncssh

from knot_keys.keyfiles import create_key


def signed(key_file: Path, namespace: str, message: bytes, *options: str) -> str:
    """An armoured signature over the message."""
    command = ["ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", str(key_file), *options]
    return subprocess.run(command, input=message, capture_output=True, check=True).stdout.decode()


def made_key(folder: Path, name: str) -> tuple[Path, asyncssh.SSHKey]:
    """A new key's file, and its public half."""
    file = folder / name
    return file, create_key(file, name).convert_to_public()
