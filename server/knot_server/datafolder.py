"""A server's data folder: made once, changed by one process at a time, and refused where others can read its secrets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from knot_keys.authority import Authority
from knot_keys.keyfiles import HOST_CA_FILE, HUB_KEY_FILE, USER_CA_FILE
from knot_keys.keyring import KeyRing
from knot_keys.passphrase import Passphrase
from knot_keys.recoding import change_passphrase
from knot_server.store.database import STORE_FILE, Database
from knot_server.store.journal import JOURNAL_FILE
from knot_server.usecases.audit import SERVER, Audit
from knot_server.usecases.users import add_user, record_user
from knot_ssh.errors import KnotError
from knot_ssh.files import check_folder, check_private_file, lock_folder, make_private_folder
from knot_ssh.names import Owner

FILES = (USER_CA_FILE, HOST_CA_FILE, HUB_KEY_FILE, STORE_FILE, JOURNAL_FILE)
"""What makes a data folder a server's."""


async def initialise(folder: Path, admin: Owner, passphrase: Passphrase | None = None) -> str:
    """Make CAs, hub key, store and the first administrator; gives their API token. The passphrase is for the CAs' keys.

    Raises KnotError where any of these is there already. What cannot be made whole is taken away again.
    """
    if any((folder / name).exists() for name in FILES):
        raise KnotError(f"{folder} holds a server's data already; start it with `knot server run --data {folder}`")
    make_private_folder(folder)
    check_folder(folder)
    try:
        return await _initialised(folder, admin, passphrase)
    except BaseException:
        _take_away(folder)
        raise


async def _initialised(folder: Path, admin: Owner, passphrase: Passphrase | None) -> str:
    Authority.create(folder, passphrase)
    KeyRing.create(folder, HUB_KEY_FILE, "knot hub")
    database = await Database.create(folder)
    try:
        async with database.writing() as session:
            user = await add_user(session, admin, admin=True)
            record_user(Audit(database), session, SERVER, user, admin=True)
    finally:
        await database.close()
    return user.token


def _take_away(folder: Path) -> None:
    """Remove what a failed start has made, also `.pub`, `-wal` and the like beside the files."""
    for made in folder.iterdir():
        if made.name.startswith(FILES) and made.is_file():
            made.unlink()


def encrypt_authority(folder: Path, old: Passphrase | None, new: Passphrase | None) -> list[Path]:
    """Change the passphrase of the CAs' keys; gives the files. Raises as `change_passphrase` does, and while a server runs."""
    with held(folder):
        check_secrets(folder)
        return change_passphrase(folder, old, new)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other servers out of a server's folder meanwhile; raises KnotError where there is one, or no such folder."""
    if not any((folder / name).exists() for name in FILES):
        raise KnotError(f"there is no server in {folder}; make one with `knot server init --data {folder}`")
    check_folder(folder)
    lock = lock_folder(folder, "server")
    try:
        yield
    finally:
        os.close(lock)


def check_secrets(folder: Path) -> None:
    """Refuse a folder with a secret file that others could read; raises LooseFile, naming the file and how to mend it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(FILES) and path.suffix != ".pub":
            check_private_file(path)
