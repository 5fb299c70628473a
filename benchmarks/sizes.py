"""How much and how long is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes, seconds and counts of one measurement."""

    rounds: int
    transfer: int
    """Bytes of one stream. 1 GB takes a second, long against everything that happens once a connection."""
    seconds: float
    """Of round trips and new connections: some thousand samples, or some dozen where each takes 20 ms."""
    bulk_seconds: float
    """Of several streams at once."""
    far_seconds: float
    """Of the stream over a long line, counted after `far_warm` seconds in which windows grow."""
    far_warm: float
    logins: int
    """SSH connections whose memory is measured."""


FULL = Sizes(rounds=7, transfer=1_000_000_000, seconds=0.5, bulk_seconds=1.5, far_seconds=4, far_warm=2, logins=50)
QUICK = Sizes(rounds=3, transfer=250_000_000, seconds=0.2, bulk_seconds=0.7, far_seconds=1.5, far_warm=1.5, logins=20)
