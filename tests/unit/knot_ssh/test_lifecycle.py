"""Life cycles: events move a life along its table, and an illegal one changes nothing."""

from __future__ import annotations

from enum import StrEnum

import pytest

from knot_ssh.lifecycle import IllegalEvent, Life


class Phase(StrEnum):
    """Of a door."""

    OPEN = "open"
    SHUT = "shut"


class Event(StrEnum):
    """What happens to a door."""

    PUSH = "push"
    PULL = "pull"
    LOOK = "look at"


TABLE = {Phase.OPEN: {Event.PUSH: Phase.SHUT, Event.LOOK: Phase.OPEN}, Phase.SHUT: {Event.PULL: Phase.OPEN}}


def test_event_leads_on() -> None:
    """An event leads to the phase of the table, from the moment it came on, and gives the phase before."""
    life = Life(TABLE, Phase.OPEN, 1.0)
    assert (life.phase, life.since) == (Phase.OPEN, 1.0)
    assert life.on(Event.PUSH, 2.0) is Phase.OPEN
    assert (life.phase, life.since) == (Phase.SHUT, 2.0)
    assert life.on(Event.PULL, 3.5) is Phase.SHUT
    assert (life.phase, life.since) == (Phase.OPEN, 3.5)


def test_event_that_leads_nowhere_new() -> None:
    """An event that leaves the phase as it is leaves the moment as it is."""
    life = Life(TABLE, Phase.OPEN, 1.0)
    assert life.on(Event.LOOK, 2.0) is Phase.OPEN
    assert (life.phase, life.since) == (Phase.OPEN, 1.0)


def test_illegal_event() -> None:
    """An event that the table does not have changes nothing, and the error names it and the phase."""
    life = Life(TABLE, Phase.SHUT, 1.0)
    with pytest.raises(IllegalEvent, match=r"^event 'look at' in phase 'shut'$"):
        life.on(Event.LOOK, 2.0)
    assert (life.phase, life.since) == (Phase.SHUT, 1.0)


def test_lives_share_a_table() -> None:
    """What happens to one life does not happen to another of the same table."""
    one, other = Life(TABLE, Phase.OPEN, 0.0), Life(TABLE, Phase.OPEN, 0.0)
    one.on(Event.PUSH, 1.0)
    assert other.phase is Phase.OPEN
