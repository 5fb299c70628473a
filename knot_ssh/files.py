"""Files that hold secrets or state: private from the first instant, and never half written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from knot_ssh.errors import KnotError, LooseFile, Unavailable

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
SHARED_BITS = 0o077
WRITABLE_BITS = 0o022
LOSS = {"read": "leaked", "written": "changed"}
"""What has to be feared of a file that others can read or write."""
LOCK_FILE = "lock"
LOCK_PAUSE = 0.02
"""Seconds between two looks at a lock that another process holds."""


def make_private_folder(folder: Path) -> None:
    """Make the folder and its missing parents, 0700 whatever the umask; what exists stays as it is. Raises KnotError."""
    if folder.is_dir():
        return
    make_private_folder(folder.parent)
    try:
        folder.mkdir(mode=PRIVATE_FOLDER)
        folder.chmod(PRIVATE_FOLDER)  # a strict umask may have taken bits that the owner needs
    except OSError as error:
        raise KnotError(f"cannot make the folder {folder}: {error.strerror}") from None


def create_private_file(path: Path, data: bytes) -> None:
    """Write a new file, 0600 from its creation; raises FileExistsError where there is one. It is there whole or not at all."""
    draft = _write_draft(path, data)
    try:
        os.link(draft, path)  # unlike a rename, a link never replaces
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
    finally:
        draft.unlink()
    sync_folder(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Put new contents in place in one step (0600): after a crash there is the old file or the new, never a part."""
    draft = _write_draft(path, data)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_contents(path: Path, data: bytes) -> None:
    """The same for somebody's own file: mode, owner and group stay. Raises KnotError where they cannot be kept."""
    status = path.stat()
    draft = _write_draft(path, data)
    try:
        if (status.st_uid, status.st_gid) != (draft.stat().st_uid, draft.stat().st_gid):
            os.chown(draft, status.st_uid, status.st_gid)
        draft.chmod(stat.S_IMODE(status.st_mode))  # after chown, which takes bits away
        draft.replace(path)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, PermissionError):
            raise KnotError(f"{path} cannot be replaced with its owner and group kept; nothing was changed") from None
        raise
    sync_folder(path.parent)


def read_secret(path: Path, *, follow: bool = False, group_may_read: bool = False) -> bytes:
    """Read a secret file, refusing one that anybody else could read or replace, and a symbolic link in its place.

    `follow` is for files that an operator names, which may well be links (certbot's, a mounted Secret's). `group_may_read` is
    for systemd's credentials: where an access list lets the unit's user read, its mask shows as the group's permission
    (acl(5)). Raises LooseFile for loose permissions or another owner, KnotError where there is none.
    """

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags | (0 if follow else os.O_NOFOLLOW))

    try:
        with open(path, "rb", opener=opened) as file:
            _refuse_loose(path, os.fstat(file.fileno()), SHARED_BITS & ~(stat.S_IRGRP if group_may_read else 0))
            return file.read()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise LooseFile(f"{path} is a symbolic link: put the file itself there") from None
        raise KnotError(f"cannot read {path}: {error.strerror}") from None


def check_private_file(path: Path, bits: int = SHARED_BITS) -> None:
    """Refuse a file as `read_secret` does, without reading it; one that is not there is none. `bits`: what others may not."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise LooseFile(f"{path} is a symbolic link: put the file itself there")
        _refuse_loose(path, status, bits)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which others could put files of their own in the place of ours; raises LooseFile."""
    status = folder.stat()
    if status.st_mode & WRITABLE_BITS:
        mode = stat.S_IMODE(status.st_mode)
        raise LooseFile(
            f"others can write into {folder} (mode {mode:04o}): run `chmod go-w {folder}`, and look what they wrote"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise LooseFile(f"{folder} belongs to another user (uid {status.st_uid}): run `chown {os.geteuid()} {folder}`")


def _refuse_loose(path: Path, status: os.stat_result, bits: int) -> None:
    """Raise LooseFile for a file that grants others any of these bits, or is another user's."""
    if status.st_mode & bits:
        mode = stat.S_IMODE(status.st_mode)
        done = "read" if bits & ~WRITABLE_BITS else "written"
        raise LooseFile(
            f"{path} can be {done} by others (mode {mode:04o}): run `chmod 600 {path}`, and consider it {LOSS[done]}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise LooseFile(f"{path} belongs to another user (uid {status.st_uid}): run `chown {os.geteuid()} {path}`")


def lock_folder(folder: Path, user: str) -> int:
    """Make sure that no other process of ours uses this folder, until the descriptor that is given back is closed.

    Raises KnotError, naming `user`, when one does.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise KnotError(f"another {user} is running in {folder}; stop it, or choose another --data") from None
    return descriptor


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold this file's lock, waiting for another process of ours for so long; raises Unavailable when it takes longer."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        os.fchmod(descriptor, PRIVATE_FILE)
        _wait_for_lock(descriptor, time.monotonic() + seconds, path)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, deadline: float, path: Path) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Unavailable(f"another process has held {path} for long; try again") from None
            time.sleep(LOCK_PAUSE)


def _write_draft(path: Path, data: bytes) -> Path:
    """A new file beside `path` with these contents, on the disk; nothing is left where it cannot be written."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, PRIVATE_FILE)  # a strict umask may have taken bits that the owner needs
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        draft.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # write(2) does not know it
        raise
    return draft


def sync_folder(folder: Path) -> None:
    """Make a rename or link in this folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
