"""Life cycles as tables: which event leads from which phase to which. No input or output, and no clock.

Events change phases; whoever feeds them acts upon the phase that results. An event that the table does not have for a
phase changes nothing, and the error names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

Phase = TypeVar("Phase", bound=StrEnum)
Event = TypeVar("Event", bound=StrEnum)


class IllegalEvent(Exception):
    """An event that must not come in this phase: a fault of ours."""

    def __init__(self, event: StrEnum, phase: StrEnum) -> None:
        super().__init__(f"event {event.value!r} in phase {phase.value!r}")


class Life(Generic[Phase, Event]):
    """One life: its phase, and since when (in seconds, on whatever clock `now` is from)."""

    def __init__(self, table: Mapping[Phase, Mapping[Event, Phase]], first: Phase, now: float) -> None:
        self.phase = first
        self.since = now
        self._table = table

    def on(self, event: Event, now: float) -> Phase:
        """Take an event; gives the phase before it. Raises IllegalEvent."""
        before = self.phase
        after = self._table[before].get(event)
        if after is None:
            raise IllegalEvent(event, before)
        if after is not before:
            self.phase = after
            self.since = now
        return before
