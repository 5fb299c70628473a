"""Whether asking pays is found out by trying."""

from __future__ import annotations

from knot_ssh.dataplane.polling import PHASES_MAX, PHASES_MIN, WAITS, Polling

SECONDS = 100e-6


def asked(polling: Polling, asking: float, sleeping: float, phases: int, since: float = 0.0) -> list[bool]:
    """The answers over so many phases, where one wait to the next takes one time or the other; the last of each phase."""
    now, asks, answers = since, False, []
    for _ in range(phases):
        for _ in range(WAITS):
            now += asking if asks else sleeping
            asks = polling.next_wait(now)
        answers.append(asks)
    return answers


def test_begins_asleep_and_tries() -> None:
    """Nobody asks at first; after a few phases it is tried."""
    polling = Polling(SECONDS)
    assert asked(polling, 50e-6, 50e-6, PHASES_MIN) == [False] * (PHASES_MIN - 1) + [True]


def test_asks_where_it_is_faster() -> None:
    """Where waits are shorter with asking it goes on, but for a trial of sleep now and then."""
    answers = asked(Polling(SECONDS), 20e-6, 40e-6, 1000)
    assert answers[-500:].count(False) <= 500 // PHASES_MAX + 1


def test_sleeps_where_asking_brings_nothing() -> None:
    """What is slower, or only as fast, is tried ever more rarely."""
    for asking in (40e-6, 60e-6):
        answers = asked(Polling(SECONDS), asking, 40e-6, 1000)
        assert answers[-500:].count(True) <= 500 // PHASES_MAX + 1


def test_sleeps_where_waits_are_long() -> None:
    """A difference in waits that no asking bridges does not count."""
    answers = asked(Polling(SECONDS), 1e-3, 2e-3, 1000)
    assert answers[-500:].count(True) <= 500 // PHASES_MAX + 1


def test_changes_its_mind() -> None:
    """When the machine is shared with others from now on, it learns."""
    polling = Polling(SECONDS)
    asked(polling, 20e-6, 40e-6, 1000)
    answers = asked(polling, 80e-6, 40e-6, 2 * PHASES_MAX, since=10.0)
    assert answers[-10:].count(True) <= 1
