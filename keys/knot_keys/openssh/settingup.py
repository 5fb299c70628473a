"""Set stock ssh up, or change how it is set up. Everything is asked and checked first, and written last."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from knot_keys.openssh import userconfig
from knot_keys.openssh.answers import Grant, ask
from knot_keys.openssh.identities import own_key, public_key, store_key
from knot_keys.openssh.keeping import keep, take_away, take_files_away, this_command
from knot_keys.openssh.places import Places
from knot_keys.openssh.quoting import quoted, quoted_command
from knot_keys.openssh.refreshing import LOCK_SECONDS
from knot_keys.openssh.state import State, read_state, write_state
from knot_keys.openssh.trial import try_config
from knot_ssh import doors
from knot_ssh.errors import KnotError
from knot_ssh.files import PRIVATE_FOLDER, SHARED_BITS, locked, make_private_folder


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for; None keeps what an earlier setup has, and else leaves it to the server or to us."""

    said: doors.Given
    identity: Path | None
    lifetime: int | None


def earlier(places: Places) -> State | None:
    """What an earlier setup has left; one that cannot be read is none."""
    try:
        return read_state(places)
    except KnotError:
        return None


def set_up(places: Places, wanted: Wanted, agree: Callable[[bytes], None]) -> State:
    """Get a certificate and write all files; `agree` is shown what goes into `~/.ssh/config` and raises to stop it.

    A first setup that fails leaves nothing behind. Raises KnotError.
    """
    before = earlier(places)
    lines = _checked_lines(places)
    needs_word = _insertion(places, lines) is not None
    state, key = _planned(places, wanted, before)
    with contextlib.closing(doors.api(wanted.said)) as api:
        if needs_word:
            agree(lines)
        grant = ask(api, key, state.lifetime, (), time.time())
    _own_folder(places)
    with locked(places.lock, LOCK_SECONDS):
        if before is None and earlier(places):
            raise KnotError("another `knot ssh setup` has run at the same time; try again")
        return _written(places, state, key, grant, lines, is_first=before is None)


def remove(places: Places) -> list[Path]:
    """Undo whatever is set up here; gives the files that are gone or changed, none where nothing was. Needs no server."""
    with contextlib.ExitStack() as held:
        if places.folder.exists():
            held.enter_context(locked(places.lock, LOCK_SECONDS))
        return take_away(places, earlier(places) or State(server="", identity=None, lifetime=None))


def _checked_lines(places: Places) -> bytes:
    """The lines for `~/.ssh/config`; raises BadInput where ssh could not be told of our paths."""
    quoted_command(this_command())
    return userconfig.block(places.ssh_config)


def _planned(places: Places, wanted: Wanted, before: State | None) -> tuple[State, asyncssh.SSHKey]:
    """What is to be remembered, and the key to certify: the private half, too, of one that lies in our folder."""
    base = before or State(server="", identity=None, lifetime=None)
    identity = base.identity if wanted.identity is None else _unless_ours(places, wanted.identity)
    state = dataclasses.replace(
        base,
        server=doors.chosen_server(wanted.said) or "",
        identity=identity,
        lifetime=base.lifetime if wanted.lifetime is None else wanted.lifetime,
        made_key=base.made_key or (identity is None and not places.key.exists()),
        made_config=base.made_config or not places.user_config.exists(),
        made_folder=base.made_folder or not places.ssh_folder.exists(),
        renew_after=0,
    )
    quoted(state.key_file(places))
    return state, own_key(places) if identity is None else public_key(Path(identity))


def _unless_ours(places: Places, identity: Path) -> str | None:
    return None if identity == places.key else str(identity)


def _own_folder(places: Places) -> None:
    """Make our folder, or make it private: who can write in it says whom ssh trusts. Raises KnotError."""
    make_private_folder(places.folder)
    status = places.folder.stat()
    if status.st_uid != os.geteuid():
        raise KnotError(f"{places.folder} belongs to another user (uid {status.st_uid}); take it away first")
    if status.st_mode & SHARED_BITS:
        places.folder.chmod(PRIVATE_FOLDER)


def _written(places: Places, state: State, key: asyncssh.SSHKey, grant: Grant, lines: bytes, *, is_first: bool) -> State:
    """Write everything. The first time what we make is remembered before it is made, so that it can be taken away again."""
    try:
        if is_first:
            write_state(places, state)
        if state.identity is None:
            store_key(places, key)
        kept = keep(places, state, grant, this_command())
        try_config(places)
        insertion = _insertion(places, lines)
        if insertion is not None:
            userconfig.write(places.user_config, insertion)
        return kept
    except BaseException:
        if is_first:  # the last step changes the config, or fails and leaves it
            take_files_away(places, state)
        raise


def _insertion(places: Places, lines: bytes) -> bytes | None:
    """What `~/.ssh/config` is to hold, by what it holds at this moment; None where that is the same. Raises DamagedBlock."""
    text = userconfig.read(places.user_config)
    changed = userconfig.with_block(text or b"", lines)
    return None if changed == text else changed
