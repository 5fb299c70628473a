"""Token buckets: so many things a second, and so many at once after a pause."""

from __future__ import annotations


class Bucket:
    """Holds up to `burst` tokens, and gets `rate` a second. Time is an argument, in seconds of any clock that goes forward."""

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

    def wait(self, now: float) -> float:
        """Seconds until there is a whole token."""
        return max(0.0, (1 - self.left(now)) / self._rate)
