"""How much somebody may cause: so much at once, and then so much a second (a token bucket), by source and in all."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SOURCES_MAX = 4096
"""Sources that are remembered, some 200 bytes each; beyond, the one that was not heard of for longest is forgotten."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`burst` at once, `rate` a second from then on."""

    burst: float
    rate: float


class Allowance:
    """What is left of a pace. `now` is in seconds, on a clock that nobody sets."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left = pace.burst
        self._since = 0.0

    def take(self, now: float) -> bool:
        """Whether there was one left, which is gone then."""
        self._left = min(self._pace.burst, self._left + (now - self._since) * self._pace.rate)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Allowances:
    """One for each source, and one for all of them, so that many sources together cause no more than that."""

    def __init__(self, each: Pace, together: Pace, most: int = SOURCES_MAX) -> None:
        self._each = each
        self._together = Allowance(together)
        self._most = most
        self._sources: OrderedDict[str, Allowance] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def take(self, source: str, now: float) -> bool:
        """Whether this source may cause one more."""
        return self._of(source).take(now) and self._together.take(now)

    def _of(self, source: str) -> Allowance:
        allowance = self._sources.setdefault(source, Allowance(self._each))
        self._sources.move_to_end(source)
        if len(self._sources) > self._most:
            self._sources.popitem(last=False)
        return allowance
