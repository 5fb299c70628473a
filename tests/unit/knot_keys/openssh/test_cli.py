"""What a setup has to say besides that it went well."""

from __future__ import annotations

import dataclasses

import pytest

from knot_keys.openssh.cli import _notes
from knot_keys.openssh.places import Places
from tests.unit.knot_keys.openssh.test_state import STATE


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
