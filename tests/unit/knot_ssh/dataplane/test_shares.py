"""What all connections of one peer may use together."""

from __future__ import annotations

from knot_ssh.dataplane.limits import OPEN_BURST_SECONDS, Limits
from knot_ssh.dataplane.shares import Share, Shares

LIMITS = Limits(opens=10, peer_channels=3, peer_connections=2)


def test_connections_of_one_peer() -> None:
    """So many of one peer, however many others there are; one that leaves makes room."""
    shares = Shares(LIMITS)
    first = shares.join("a", 0.0)
    assert first is shares.join("a", 0.0) is not None
    assert shares.join("a", 0.0) is None
    assert shares.join("b", 0.0) not in (None, first)
    shares.leave("a")
    assert shares.join("a", 0.0) is first


def test_nothing_is_kept_of_who_has_gone() -> None:
    """The last connection of a peer takes its share along."""
    shares = Shares(LIMITS)
    for _ in range(2):
        shares.join("a", 0.0)
    shares.leave("a")
    assert len(shares) == 1
    shares.leave("a")
    assert len(shares) == 0


def test_channels_of_one_peer() -> None:
    """The channels of all its connections count together."""
    share = Share(LIMITS, 0.0)
    share.channels = 2
    assert not share.is_full
    share.channels += 1
    assert share.is_full


def test_channels_a_second() -> None:
    """Beyond what may come at once, each further one costs the peer time."""
    share = Share(LIMITS, 0.0)
    assert [share.opened(0.0) for _ in range(10 * OPEN_BURST_SECONDS)].count(0.0) == 10 * OPEN_BURST_SECONDS
    assert share.opened(0.0) > 0.09
    assert share.opened(1.0) == 0
