"""Whether to ask for more before going to sleep, decided by what it brings. No input or output here.

Waking a sleeping process takes longer than the work of a round trip, on some machines; on others it is cheap, and who
asks instead only keeps the others from the processor, all the more where agents and hub share a few. Which of the two
it is cannot be known beforehand, but it shows: in the time from one wait to the next. So now and then a phase of some
waits is spent in the other way, and what was clearly faster goes on. Asking costs processor time: it has to earn it.
"""

from __future__ import annotations

WAITS = 32
"""Waits of one phase: enough to compare, and over in a few milliseconds."""
PHASES_MIN, PHASES_MAX = 4, 64
"""Phases from one trial of the other way to the next: twice as many after each trial that has brought nothing."""
EARNED = 0.95
"""Asking is worth it where a phase takes this part of the other's time at most."""
LONG = 2
"""A phase counts as so many times the asking for each wait at most: where waits are long, asking brings nothing."""


class Polling:
    """Told of each wait; says whether to ask first, for `seconds` at most."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._asks = False
        self._trying = False
        self._waits = WAITS
        self._phases = self._pause = PHASES_MIN
        self._since = 0.0
        self._taken_before = 0.0

    def next_wait(self, now: float) -> bool:
        """There was work, and now there is none; gives whether to ask before sleeping. `now` is in seconds."""
        self._waits -= 1
        if not self._waits:
            self._end_phase(min(now - self._since, WAITS * LONG * self.seconds))
            self._waits, self._since = WAITS, now
        return self._asks

    def _end_phase(self, taken: float) -> None:
        if self._trying:
            self._judge(taken)
            return
        self._taken_before = taken
        self._phases -= 1
        if not self._phases:
            self._trying = True
            self._asks = not self._asks

    def _judge(self, taken: float) -> None:
        """The trial is over: go on in whichever way was faster."""
        asking, sleeping = (taken, self._taken_before) if self._asks else (self._taken_before, taken)
        better = asking < EARNED * sleeping
        self._pause = PHASES_MIN if better == self._asks else min(PHASES_MAX, 2 * self._pause)
        self._phases = self._pause
        self._trying = False
        self._asks = better
