"""Connections that have not logged in yet, and what to do when there are too many.

Whoever opens thousands and says nothing must not keep others out. So nobody is turned away at the door: when the room is
full, the oldest connection of the source that has most of them goes. A good login takes a few milliseconds, and is
never the oldest for long, even where it comes from the same address as the flood.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Protocol

import structlog

from knot_ssh.logs import Sparing

log = structlog.get_logger(__name__)

IPV6_PREFIX = 64
"""Bits that name one network: whoever has an IPv6 address has as many as they like."""


class Waiting(Protocol):
    """A connection."""

    def abort(self) -> None: ...


class WaitingRoom:
    """Up to `limit` connections by source."""

    def __init__(self, limit: int, reason: str = "too many that do not log in") -> None:
        """`reason` is for the log."""
        self._limit = limit
        self._reason = reason
        self._sources: dict[str, OrderedDict[Waiting, None]] = {}
        self._where: dict[Waiting, str] = {}
        self._sparing = Sparing()

    def __len__(self) -> int:
        return len(self._where)

    def enter(self, connection: Waiting, address: str) -> None:
        """A connection has come in from this address, and may have to make another one leave."""
        source = network(address)
        self._where[connection] = source
        self._sources.setdefault(source, OrderedDict())[connection] = None
        if len(self._where) > self._limit:
            self._turn_out()

    def leave(self, connection: Waiting) -> None:
        """It has logged in, or is lost. One that has left already does no harm."""
        source = self._where.pop(connection, None)
        if source is not None:
            theirs = self._sources[source]
            del theirs[connection]
            if not theirs:
                del self._sources[source]

    def _turn_out(self) -> None:
        """End the oldest connection of the busiest source."""
        source, theirs = max(self._sources.items(), key=lambda item: len(item[1]))
        oldest = next(iter(theirs))
        self.leave(oldest)
        oldest.abort()
        self._sparing.warning(log, "connection turned out", reason=self._reason, source=source)


def network(address: str) -> str:
    """What counts as one source: an IPv4 address, an IPv6 network, or whatever else it is."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and not parsed.ipv4_mapped:
        return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
