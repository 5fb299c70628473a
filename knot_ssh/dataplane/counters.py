"""What has passed: counters of one forward, or of one link."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Bytes, connections, and what went wrong last. `sent` is towards the target, `received` comes from it."""

    sent: int = 0
    received: int = 0
    opened: int = 0
    closed: int = 0
    refused: int = 0
    last_error: str | None = None
    since: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self.opened - self.closed

    def refuse(self, reason: str) -> None:
        """One connection could not be carried."""
        self.refused += 1
        self.last_error = reason
