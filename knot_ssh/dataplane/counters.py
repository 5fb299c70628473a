"""What has passed: counters of one forward, or of one link.

`sent` went from sockets on this machine into the link, `received` came out of it: seen from a forward, towards the target
and from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(slots=True)
class Tally:
    """Bytes, connections, and what went wrong last."""

    sent: int = 0
    received: int = 0
    opened: int = 0
    closed: int = 0
    refused: int = 0
    last_error: str | None = None
    since: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return self.opened - self.closed

    def as_dict(self) -> dict[str, Any]:
        """For people and programs to read."""
        return {
            "sent": self.sent,
            "received": self.received,
            "open": self.open,
            "total": self.opened,
            "refused": self.refused,
            "last_error": self.last_error,
            "since": self.since,
        }

    def add(self, other: Tally) -> None:
        """Count all that the other has counted as well."""
        self.sent += other.sent
        self.received += other.received
        self.opened += other.opened
        self.closed += other.closed
        self.refused += other.refused

    def refuse(self, reason: str) -> None:
        """One connection could not be carried."""
        self.refused += 1
        self.last_error = reason
