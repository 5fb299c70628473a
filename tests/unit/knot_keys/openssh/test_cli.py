"""What a setup has to say besides that it went well."""

from __future__ import annotations

import dataclasses

import pytest

from knot_keys.openssh.cli import _notes
from knot_keys.openssh.places import Places
from tests.unit.knot_keys.openssh.test_state import STATE


@pytest.fixture(autouse=True)
def _folder(places: Places) -> None:
    """Setup has made it."""
    places.ssh_folder.mkdir(0o700)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://knot.example.com:3000", True),
        ("http://192.0.2.1", True),
        ("https://knot.example.com", False),
        ("http://127.0.0.1:3000", False),
        ("http://[::1]:3000", False),
        ("http://localhost:3000", False),
    ],
)
def test_plain_http_vouches_for_nothing(places: Places, url: str, told: bool) -> None:
    """A CA that came over plain HTTP from another machine may be anybody's: said, and only then."""
    notes = _notes(places, dataclasses.replace(STATE, server=url))
    assert any("is no https" in note for note in notes) is told


@pytest.mark.parametrize(("mode", "told"), [(0o700, False), (0o755, False), (0o775, True), (0o702, True)])
def test_folder_that_others_can_write(places: Places, mode: int, told: bool) -> None:
    """Who can write in `~/.ssh` can put another configuration there: said, for the folder is not ours to change."""
    places.ssh_folder.chmod(mode)
    assert any("others can write in" in note for note in _notes(places, STATE)) is told
    assert places.ssh_folder.stat().st_mode & 0o777 == mode
