"""How often somebody may."""

from __future__ import annotations

from knot_server.http.rates import KEYS_MAX, Rates


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_so_many_and_then_a_wait() -> None:
    """A burst passes; then the wait is told, and asking in vain does not make it longer."""
    clock = Clock()
    rates = Rates(2, 3, clock)
    assert [rates.wait("a") for _ in range(3)] == [0, 0, 0]
    assert [rates.wait("a") for _ in range(3)] == [0.5, 0.5, 0.5]
    clock.now = 0.5
    assert rates.wait("a") == 0
    assert rates.wait("a") > 0


def test_each_for_itself() -> None:
    """One that asks too often does not hold up another."""
    rates = Rates(1, 1, Clock())
    assert rates.wait("a") == 0
    assert rates.wait("a") > 0
    assert rates.wait("b") == 0


def test_memory_is_bounded() -> None:
    """However many there are, so many are remembered."""
    rates = Rates(1, 1, Clock())
    for number in range(KEYS_MAX + 100):
        rates.wait(str(number))
    assert len(rates._buckets) == KEYS_MAX
