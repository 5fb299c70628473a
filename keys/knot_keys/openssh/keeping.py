"""Put what the server granted into the files, and take everything away again."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from knot_keys.openssh import userconfig
from knot_keys.openssh.answers import Grant
from knot_keys.openssh.places import Places, public_half
from knot_keys.openssh.quoting import encoded
from knot_keys.openssh.state import State, write_state
from knot_keys.openssh.texts import known_hosts, ssh_config, stanzas
from knot_ssh.files import replace_file


def this_command() -> list[str]:
    """How to run `knot` again from anywhere, as absolute words."""
    program = os.path.abspath(sys.argv[0])
    if os.path.isfile(program) and os.access(program, os.X_OK) and not program.endswith(".py"):
        return [program]
    return [os.path.abspath(sys.executable), "-P", "-m", "knot_ssh"]  # without -P, `-m` would look in ssh's folder first


def keep(places: Places, state: State, grant: Grant, command: Sequence[str]) -> State:
    """Write all files, each in one step, and what is remembered last; gives that.

    A server that cannot make a revocation list now leaves the last one of the same CAs in place. Raises BadInput for paths
    that ssh cannot be told.
    """
    if grant.krl is None and set(state.host_cas).isdisjoint(grant.host_cas):
        places.krl.unlink(missing_ok=True)
    if grant.krl is not None:
        _put(places.krl, grant.krl)
    text = ssh_config(places, grant.hub, state.key_file(places), command, has_krl=places.krl.exists())
    _put(places.certificate, f"{grant.certificate}\n".encode())
    _put(places.known_hosts, known_hosts(grant.host_cas).encode())
    _put(places.spaces, stanzas(grant.spaces).encode())
    _put(places.ssh_config, encoded(text))
    kept = dataclasses.replace(
        state,
        host_cas=list(grant.host_cas),
        hub=str(grant.hub),
        valid_after=grant.valid_after,
        valid_before=grant.valid_before,
        renew_after=grant.renew_after,
        has_krl=places.krl.exists(),
        spaces={space.full_name: str(space.space_id) for space in grant.spaces},
    )
    write_state(places, kept)
    places.failed.unlink(missing_ok=True)
    return kept


def take_away(places: Places, state: State) -> list[Path]:
    """Undo a setup: first the lines in `~/.ssh/config`, then what we made. Gives what is gone or changed.

    The caller holds the lock, where there is a folder to lock. Raises DamagedBlock before anything is touched.
    """
    gone = [places.user_config] if _without_our_lines(places, state) else []
    return gone + take_files_away(places, state)


def take_files_away(places: Places, state: State) -> list[Path]:
    """Remove what we made, and the folders with it where nothing else is in them; gives the files that are gone."""
    keys = [places.key, public_half(places.key)] if state.made_key else []
    ours = [*keys, *places.pieces, places.krl, places.failed, places.state]
    drafts = [draft for path in ours for draft in places.folder.glob(f".{path.name}.*")]  # of a process that was killed
    gone = [path for path in [*ours, *drafts] if _removed(path)]
    _removed(places.lock)
    _remove_empty(places.folder)
    if state.made_folder:
        _remove_empty(places.ssh_folder)
    return gone


def _without_our_lines(places: Places, state: State) -> bool:
    """Take the marked lines out, and the file with them where we made it and nothing else is in it."""
    text = userconfig.read(places.user_config)
    if text is None:
        return False
    rest = userconfig.without_block(text)
    if state.made_config and not rest:
        Path(os.path.realpath(places.user_config)).unlink()
        return True
    if rest != text:
        userconfig.write(places.user_config, rest)
    return rest != text


def _put(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:
        replace_file(path, data)


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _remove_empty(folder: Path) -> None:
    """Take the folder away unless something is left in it."""
    try:
        folder.rmdir()
    except OSError:
        return
