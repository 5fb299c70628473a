"""How much a peer may send ahead of the local reader, on each channel and on all together. No input or output here.

A window is a promise of memory: the peer may fill it and the local reader may stop at any time. So all windows together
come out of one budget, and what a channel gets depends on what is left: the full window while there is plenty, one
packet's worth when there is next to nothing, and never less, so that every channel moves.

A window also limits speed, to one window a round trip. It grows only where that is what limits: when a whole window has
gone through in hardly more than one round trip, twice as much is granted. A reader that is slow, or a network that is
near, never gets there. When the budget runs low, large windows give half of theirs back as data passes.
"""

from __future__ import annotations

from collections.abc import Callable

from knot_ssh.dataplane.limits import KIB, WINDOW, WINDOW_FLOOR

SHARE = 16
"""A new channel gets one part in so many of what is left."""
MODEST = 256 * KIB
"""Bytes; no window of this size or less is taken from."""
PROMPT = 1.5
"""Round trips within which a whole window must pass for it to be called the limit."""


class Budget:
    """What windows may add up to, in bytes: all of this process, or, `within` that, those of one party."""

    def __init__(self, total: int, on_relief: Callable[[], None] | None = None, within: Budget | None = None) -> None:
        self._total = total
        self._own_left = total
        self._strained = False
        self._on_relief = on_relief
        self._within = within

    @property
    def left(self) -> int:
        """How much may still be promised."""
        return min(self._own_left, self._within.left) if self._within else self._own_left

    @property
    def is_tight(self) -> bool:
        """Whether three quarters are gone."""
        return self._own_left < self._total // 4 or (self._within is not None and self._within.is_tight)

    def first(self) -> int:
        """The first window of a new channel."""
        size = min(WINDOW, max(WINDOW_FLOOR, self.left // SHARE))
        self._spend(size)
        return size

    def more(self, wanted: int) -> int:
        """As much of this as is left."""
        size = max(0, min(wanted, self.left))
        self._spend(size)
        return size

    def give_back(self, size: int) -> None:
        """A channel needs this no more. When more than half was spent and most is back, `on_relief` is called."""
        self._own_left += size
        if self._within:
            self._within.give_back(size)
        if self._strained and self._own_left > self._total * 3 // 4:
            self._strained = False
            if self._on_relief:
                self._on_relief()

    def _spend(self, size: int) -> None:
        self._own_left -= size
        if self._within:
            self._within._spend(size)
        if self._own_left < self._total // 2:
            self._strained = True


class ReceiveWindow:
    """One channel's window. `left` is what the peer may still send."""

    __slots__ = ("_budget", "_owed", "_passed", "_since", "left", "size")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.size = self.left = budget.first()
        self._owed = 0
        self._passed = 0
        self._since = 0.0

    def passed(self, count: int, now: float, round_trip: float, largest: int) -> int:
        """So many bytes have reached the local reader; gives what to add to the peer's window, 0 for nothing yet.

        `now` and `round_trip` (0 when unknown) are in seconds. Grants are put together to a quarter of the window.
        """
        self._owed += count
        if self._owed * 4 < self.size:
            return 0
        self._passed += self._owed
        if self._passed >= self.size:
            if now - self._since < PROMPT * round_trip:
                self._grow(largest)
            self._passed = 0
            self._since = now
        if self.size > MODEST and self._budget.is_tight:
            self._shrink()
        grant, self._owed = max(0, self._owed), min(0, self._owed)
        self.left += grant
        return grant

    def close(self) -> None:
        """The channel is gone."""
        self._budget.give_back(self.size)
        self.size = 0

    def _grow(self, largest: int) -> None:
        extra = self._budget.more(min(self.size, largest - self.size))
        self.size += extra
        self._owed += extra

    def _shrink(self) -> None:
        """Give back what is owed to the peer already, at most half."""
        less = min(self.size // 2, self._owed)
        self.size -= less
        self._owed -= less
        self._budget.give_back(less)
