"""Counters of what has passed."""

from __future__ import annotations

from datetime import UTC, datetime

from knot_ssh.dataplane.counters import Tally


def test_new_tally_is_empty() -> None:
    """A new tally has counted nothing, and knows since when."""
    before = datetime.now(UTC).replace(microsecond=0)
    known = Tally().as_dict()
    assert before <= known.pop("since") <= datetime.now(UTC)
    assert known == {"sent": 0, "received": 0, "open": 0, "total": 0, "refused": 0, "last_error": None}


def test_open_is_what_has_not_closed() -> None:
    """What was opened and not closed is open."""
    tally = Tally(opened=5, closed=2)
    assert (tally.open, tally.as_dict()["open"], tally.as_dict()["total"]) == (3, 3, 5)


def test_refusals_are_counted_and_the_last_is_remembered() -> None:
    """Each refusal counts, and the last reason is kept."""
    tally = Tally()
    tally.refuse("first")
    tally.refuse("second")
    assert (tally.refused, tally.last_error, tally.opened) == (2, "second", 0)


def test_everything_is_shown() -> None:
    """Each counter appears under its own name."""
    shown = Tally(sent=1, received=2, opened=7, closed=3, refused=4, last_error="why", since=datetime.fromtimestamp(0, UTC))
    assert shown.as_dict() == {
        "sent": 1,
        "received": 2,
        "open": 4,
        "total": 7,
        "refused": 4,
        "last_error": "why",
        "since": datetime.fromtimestamp(0, UTC),
    }


def test_tallies_add_up() -> None:
    """Adding another tally counts all that it has counted, and leaves that one as it is."""
    total, one = Tally(), Tally(sent=1, received=2, opened=7, closed=3, refused=4)
    total.add(one)
    total.add(one)
    assert (total.sent, total.received, total.opened, total.closed, total.refused) == (2, 4, 14, 6, 8)
    assert one.sent == 1
