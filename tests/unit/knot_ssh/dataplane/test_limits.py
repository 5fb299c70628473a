"""The bounds of the data path fit together."""

from __future__ import annotations

import dataclasses

import pytest

from knot_ssh.dataplane import limits
from knot_ssh.dataplane.connection import PACKET_LENGTH
from knot_ssh.dataplane.framing import LENGTH, OVERHEAD, TAG
from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.outbox import RESERVE, WORTHWHILE


def test_any_packet_fits_a_buffer() -> None:
    """A packet of the largest size that we take fits into a buffer: a reader that has no room left would take that for EOF."""
    assert limits.PACKET + OVERHEAD <= LENGTH + PACKET_LENGTH + TAG < limits.BUFFER


def test_bulk_fits_beside_the_reserve() -> None:
    """An empty buffer has room for a packet of bulk data beside what bulk must leave free, and that is worth the while."""
    assert limits.BUFFER - RESERVE - OVERHEAD >= limits.PACKET
    assert limits.POLITE_TURN >= limits.POLITE_CHUNK >= WORTHWHILE
    assert limits.SMALL_BUFFER - limits.SMALL_BUFFER // 8 - OVERHEAD >= WORTHWHILE
    assert RESERVE >= limits.SMALL + OVERHEAD


def test_every_window_takes_a_packet() -> None:
    """The smallest window takes a packet of the size that everybody must take (RFC 4253 section 6.1)."""
    assert limits.PACKET_MIN <= limits.PLAIN_PACKET <= limits.WINDOW_FLOOR <= limits.WINDOW
    assert limits.PLAIN_PACKET == 32768


def test_windows_have_an_order() -> None:
    """Windows start below what they may grow to, towards OpenSSH too, and all fit the field of a packet."""
    assert limits.WINDOW < limits.WINDOW_MAX_OPENSSH < 16 * limits.MIB < limits.WINDOW_MAX <= limits.SEND_WINDOW_MAX


def test_defaults() -> None:
    """The bounds that may be set are sane by themselves, and cannot be changed afterwards."""
    made = Limits()
    assert made.in_flight >= limits.WINDOW_MAX
    assert made.channels >= 10_000
    assert made.small_packets > 1 / 0.001
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.channels = 1  # type: ignore[misc]
