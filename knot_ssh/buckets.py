"""Token buckets: so many things a second, and so many at once after a pause; alone, one for each key, and one above those.

Time is an argument, in seconds of any clock that goes forward.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

KEYS_MAX = 10_000
"""Keys that are remembered, some 300 bytes each; beyond, the one that was heard of longest ago is forgotten."""


@dataclass(frozen=True, slots=True)
class Pace:
    """`burst` at once, `rate` a second from then on."""

    burst: float
    rate: float


class Bucket:
    """Holds up to `burst` tokens, and gets `rate` a second."""

    __slots__ = ("_burst", "_left", "_rate", "_since")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._since = now

    def left(self, now: float) -> float:
        """Tokens that are there; less than none where more were taken."""
        return min(self._burst, self._left + (now - self._since) * self._rate)

    def take(self, now: float, count: float = 1) -> float:
        """Take so many, whether they are there or not; gives the seconds until the debt is paid, 0 where there is none."""
        self._left = self.left(now) - count
        self._since = now
        return max(0.0, -self._left / self._rate)

    def spend(self, now: float) -> bool:
        """Take one if it is there; gives whether it was."""
        self._left = self.left(now)
        self._since = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def wait(self, now: float) -> float:
        """Seconds until there is a whole token."""
        return max(0.0, (1 - self.left(now)) / self._rate)


class Buckets:
    """A bucket for each key, of as many keys as are worth remembering."""

    def __init__(self, pace: Pace, most: int = KEYS_MAX) -> None:
        self._pace = pace
        self._most = most
        self._buckets: OrderedDict[Hashable, Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def of(self, key: Hashable, now: float) -> Bucket:
        """The bucket of this key, which is full where nothing is known of it."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(self._pace.rate, self._pace.burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key)
        return bucket

    def spend(self, key: Hashable, now: float) -> bool:
        """Take one of this key's, if there is one; gives whether there was."""
        return self.of(key, now).spend(now)


class Allowances:
    """A bucket for each source, and one for all of them, so that many sources together cause no more than that."""

    def __init__(self, each: Pace, together: Pace, most: int = KEYS_MAX) -> None:
        self._sources = Buckets(each, most)
        self._together = Bucket(together.rate, together.burst, 0.0)

    def __len__(self) -> int:
        return len(self._sources)

    def spend(self, source: str, now: float) -> bool:
        """Whether this source may cause one more."""
        return self._sources.spend(source, now) and self._together.spend(now)
