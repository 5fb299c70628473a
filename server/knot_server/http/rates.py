"""How often somebody may: a token bucket for each, of as many as are worth remembering."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from knot_ssh.buckets import Bucket

KEYS_MAX = 10_000
"""Keys that are remembered, some 300 bytes each; beyond, the one that was heard of longest ago is forgotten."""


class Rates:
    """So many a second for each key, and so many at once after a pause."""

    def __init__(self, rate: float, burst: float, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._now = now
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def wait(self, key: str) -> float:
        """Count one more, and give 0; or count nothing, and give the seconds until there is room for it."""
        now = self._now()
        bucket = self._buckets.setdefault(key, Bucket(self._rate, self._burst, now))
        self._buckets.move_to_end(key)
        if len(self._buckets) > KEYS_MAX:
            self._buckets.popitem(last=False)
        seconds = bucket.wait(now)
        if not seconds:
            bucket.take(now)
        return seconds
