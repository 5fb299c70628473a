"""Setup and refresh as tests call them, and what they have made of a home folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knot_keys.openssh.places import Places
from knot_keys.openssh.refreshing import refresh
from knot_keys.openssh.settingup import Wanted, set_up
from knot_keys.openssh.state import State
from knot_ssh import doors
from knot_ssh.errors import KnotError


def agree(_lines: bytes) -> None:
    """Yes."""


def disagree(_lines: bytes) -> None:
    """No."""
    raise KnotError("no")


def do_setup(places: Places, **wanted: Any) -> State:
    """`knot ssh setup --yes`, with an identity or a lifetime."""
    options: dict[str, Any] = {"identity": None, "lifetime": None} | wanted
    return set_up(places, Wanted(doors.given(), **options), agree)


def do_refresh(places: Places, *, if_due: bool = False, by_itself: bool = False) -> State:
    """`knot ssh refresh`."""
    return refresh(places, doors.given(), if_due=if_due, by_itself=by_itself)


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder: mode and contents."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): (p.stat().st_mode, p.read_bytes() if p.is_file() else None) for p in found}
