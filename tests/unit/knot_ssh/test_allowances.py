"""How much somebody may cause."""

from __future__ import annotations

from knot_ssh.allowances import Allowance, Allowances, Pace


def test_burst_then_rate() -> None:
    """So many at once, and then as many as the rate gives; what is saved up is no more than the burst."""
    allowance = Allowance(Pace(burst=3, rate=0.5))
    assert [allowance.take(100) for _ in range(5)] == [True, True, True, False, False]
    assert [allowance.take(102), allowance.take(102)] == [True, False]
    assert [allowance.take(1000) for _ in range(4)] == [True, True, True, False]


def test_each_source_and_all() -> None:
    """A source has its own allowance, and all together have one; many sources cause no more than that."""
    allowances = Allowances(Pace(2, 0), Pace(5, 0))
    assert [allowances.take("a", 0) for _ in range(3)] == [True, True, False]
    assert [allowances.take(name, 0) for name in "bcdef"] == [True, True, True, False, False]


def test_sources_are_bounded() -> None:
    """However many sources there are, the memory of them is bounded, and who was heard of last is remembered."""
    allowances = Allowances(Pace(1, 0), Pace(1000, 0), most=10)
    assert allowances.take("kept", 0)
    for number in range(100):
        allowances.take(f"source {number}", 0)
        assert not allowances.take("kept", 0)
    assert len(allowances) == 10
