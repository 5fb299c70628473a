"""What all connections of one peer may use together. Before a peer is known, each connection has a share of its own."""

from __future__ import annotations

from collections.abc import Hashable

from knot_ssh.buckets import Bucket
from knot_ssh.dataplane.limits import OPEN_BURST_SECONDS, Limits


class Share:
    """One peer's connections and channels, and how fast it opens these. `now` is in seconds of a clock that goes forward."""

    __slots__ = ("_limits", "_opens", "channels", "connections")

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._opens = Bucket(limits.opens, limits.opens * OPEN_BURST_SECONDS, now)
        self.channels = 0
        self.connections = 0

    @property
    def is_full(self) -> bool:
        """Whether it has as many channels as it may."""
        return self.channels >= self._limits.peer_channels

    def opened(self, now: float) -> float:
        """The peer has asked for a channel; gives the seconds for which it is to be left alone."""
        return self._opens.take(now)


class Shares:
    """Those of all peers that are connected, by whatever identifies a peer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._shares: dict[Hashable, Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def join(self, peer: Hashable, now: float) -> Share | None:
        """The share of a peer with one connection more; None where it has as many as it may."""
        share = self._shares.get(peer) or Share(self._limits, now)
        if share.connections >= self._limits.peer_connections:
            return None
        share.connections += 1
        self._shares[peer] = share
        return share

    def leave(self, peer: Hashable) -> None:
        """It has one connection less. Nothing is kept of a peer that has none."""
        share = self._shares[peer]
        share.connections -= 1
        if not share.connections:
            del self._shares[peer]
