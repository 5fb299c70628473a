"""Files that hold secrets or state: private from the first instant, and never half written."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from knot_ssh.errors import KnotError, LooseFile

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
SHARED_BITS = 0o077


def make_private_folder(folder: Path) -> None:
    """Make the folder (and its parents), 0700 whatever the umask; one that exists stays as it is."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=PRIVATE_FOLDER)
    folder.chmod(PRIVATE_FOLDER)  # a strict umask may have taken bits that the owner needs


def create_private_file(path: Path, data: bytes) -> None:
    """Write a new file, 0600 from its creation (`O_EXCL`); raises FileExistsError where there is one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put new contents in place in one step (0600): after a crash there is the old file or the new, never a part."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    create_private_file(draft, data)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_secret(path: Path) -> bytes:
    """Read a secret file, refusing one that anybody else could read or replace.

    Raises LooseFile for loose permissions or another owner, KnotError where there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KnotError(f"cannot read {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & SHARED_BITS:
            mode = stat.S_IMODE(status.st_mode)
            raise LooseFile(f"{path} can be read by others (mode {mode:04o}): run `chmod 600 {path}`, and consider it leaked")
        if status.st_uid not in (os.geteuid(), 0):
            raise LooseFile(f"{path} belongs to another user (uid {status.st_uid}): run `chown {os.geteuid()} {path}`")
        return file.read()
