"""Token buckets: what may be taken at once, and what is owed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.buckets import KEYS_MAX, Allowances, Bucket, Buckets, Pace


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


def test_spend_what_is_there() -> None:
    """So many at once, and then as many as the rate gives; asking in vain takes nothing, and does not make the wait longer."""
    bucket = Bucket(0.5, 3, 100.0)
    assert [bucket.spend(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert bucket.wait(100.0) == pytest.approx(2)
    assert [bucket.spend(102.0), bucket.spend(102.0)] == [True, False]
    assert [bucket.spend(1000.0) for _ in range(4)] == [True, True, True, False]


def test_each_key_for_itself() -> None:
    """One that has spent all does not hold up another."""
    buckets = Buckets(Pace(burst=1, rate=1))
    assert [buckets.spend("a", 0), buckets.spend("a", 0), buckets.spend("b", 0)] == [True, False, True]


def test_keys_are_bounded() -> None:
    """However many keys there are, so many are remembered."""
    buckets = Buckets(Pace(burst=1, rate=1))
    for number in range(KEYS_MAX + 100):
        buckets.spend(number, 0)
    assert len(buckets) == KEYS_MAX


def test_each_source_and_all() -> None:
    """A source has its own allowance, and all together have one; many sources cause no more than that."""
    allowances = Allowances(Pace(2, 0), Pace(5, 0))
    assert [allowances.spend("a", 0) for _ in range(3)] == [True, True, False]
    assert [allowances.spend(name, 0) for name in "bcdef"] == [True, True, True, False, False]


def test_sources_are_bounded() -> None:
    """However many sources there are, the memory of them is bounded, and who was heard of last is remembered."""
    allowances = Allowances(Pace(1, 0), Pace(1000, 0), most=10)
    assert allowances.spend("kept", 0)
    for number in range(100):
        allowances.spend(f"source {number}", 0)
        assert not allowances.spend("kept", 0)
    assert len(allowances) == 10


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 20)), max_size=50))
def test_nobody_gets_more_than_their_share(takes: list[tuple[float, int]]) -> None:
    """Whoever waits for as long as they are told takes, over any time, no more than the burst and the rate together."""
    bucket, now, taken = Bucket(5, 20, 0.0), 0.0, 0
    for pause, count in takes:
        now += pause
        now += bucket.take(now, count)
        taken += count
        assert taken <= 20 + 5 * now + 1e-6
