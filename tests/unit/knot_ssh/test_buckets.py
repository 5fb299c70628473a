"""Token buckets: what may be taken at once, and what is owed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.buckets import Bucket


def test_burst_and_rate() -> None:
    """So many at once, then so many a second."""
    bucket = Bucket(10, 3, 100.0)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.left(100.2) == pytest.approx(1)


def test_never_more_than_the_burst() -> None:
    """A long pause earns no more than the burst."""
    bucket = Bucket(10, 3, 0.0)
    assert bucket.left(1e9) == 3


def test_wait_for_a_whole_token() -> None:
    """Who takes nothing hears when there is one."""
    bucket = Bucket(10, 1, 0.0)
    assert bucket.wait(0.0) == 0
    bucket.take(0.0)
    assert bucket.wait(0.0) == pytest.approx(0.1)
    assert bucket.wait(0.1) == pytest.approx(0)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 20)), max_size=50))
def test_nobody_gets_more_than_their_share(takes: list[tuple[float, int]]) -> None:
    """Whoever waits for as long as they are told takes, over any time, no more than the burst and the rate together."""
    bucket, now, taken = Bucket(5, 20, 0.0), 0.0, 0
    for pause, count in takes:
        now += pause
        now += bucket.take(now, count)
        taken += count
        assert taken <= 20 + 5 * now + 1e-6
