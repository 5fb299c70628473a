"""Windows come out of one budget, and grow only where they are what limits. Scripts of events, no input or output."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knot_ssh.dataplane.limits import KIB, MIB, WINDOW, WINDOW_FLOOR, WINDOW_MAX
from knot_ssh.dataplane.windows import MODEST, PROMPT, SHARE, Budget, ReceiveWindow

PLENTY = 1024 * MIB
ROUND_TRIP = 0.1
"""Seconds."""
FAR = 64 * MIB
"""Most that a window may grow to."""


@dataclass
class Line:
    """A window with a peer that fills it at once and a reader that takes all of it, at times of the test's choice."""

    window: ReceiveWindow
    now: float = 1000.0
    round_trip: float = ROUND_TRIP
    largest: int = FAR

    def pass_window(self, seconds: float) -> int:
        """A whole window passes, and so much time; gives what was granted."""
        self.now += seconds
        size = self.window.left
        self.window.left = 0
        return self.window.passed(size, self.now, self.round_trip, self.largest)


def line(budget: Budget | None = None) -> Line:
    """A new window that has passed once: the first time is not measured."""
    made = Line(ReceiveWindow(budget or Budget(PLENTY)))
    made.pass_window(0)
    return made


# The first window


def test_first_window_where_there_is_plenty() -> None:
    """A new channel gets the full window while there is plenty."""
    budget = Budget(PLENTY)
    window = ReceiveWindow(budget)
    assert (window.size, window.left, budget.left) == (WINDOW, WINDOW, PLENTY - WINDOW)


def test_first_window_is_a_share() -> None:
    """Where less is left a new channel gets its share of that, less and less."""
    budget = Budget(16 * MIB)
    sizes = [ReceiveWindow(budget).size for _ in range(10)]
    assert sizes[0] == 16 * MIB // SHARE
    assert sizes == sorted(sizes, reverse=True)
    assert budget.left == 16 * MIB - sum(sizes)


def test_first_window_is_never_less_than_a_packet() -> None:
    """Where next to nothing is left a new channel still gets one packet's worth, and so do all that follow."""
    budget = Budget(100)
    assert [ReceiveWindow(budget).size for _ in range(3)] == [WINDOW_FLOOR] * 3
    assert budget.left == 100 - 3 * WINDOW_FLOOR


def test_many_channels_at_once() -> None:
    """Ten thousand channels at once take the budget, and beyond that no more than a packet's worth each."""
    budget = Budget(64 * MIB)
    windows = [ReceiveWindow(budget) for _ in range(10_000)]
    assert min(window.size for window in windows) == WINDOW_FLOOR
    assert sum(window.size for window in windows) <= 64 * MIB + 10_000 * WINDOW_FLOOR


# Grants


def test_grants_are_put_together() -> None:
    """Nothing is granted before a quarter of the window has passed; then all of that at once."""
    window = ReceiveWindow(Budget(PLENTY))
    window.left = 0
    quarter = window.size // 4
    assert window.passed(quarter - 1, 0, 0, FAR) == 0
    assert window.passed(1, 0, 0, FAR) == quarter
    assert window.left == quarter
    assert window.passed(quarter - 1, 0, 0, FAR) == 0


def test_reader_that_takes_all_gets_all() -> None:
    """A reader that keeps up always leaves the peer at least three quarters of a window."""
    window = ReceiveWindow(Budget(PLENTY))
    for count in (1, 1000, 32 * KIB, 100 * KIB) * 100:
        window.left -= count
        window.passed(count, 0, 0, FAR)
        assert window.size * 3 // 4 < window.left <= window.size


# Growing


def test_window_grows_where_it_limits() -> None:
    """When a whole window passes in hardly more than a round trip twice as much is granted, again and again."""
    made = line()
    for size in (2 * WINDOW, 4 * WINDOW, 8 * WINDOW):
        assert made.pass_window(ROUND_TRIP) == size
        assert made.window.size == made.window.left == size


@pytest.mark.parametrize(("trips", "grows"), [(0.5, True), (PROMPT - 0.01, True), (PROMPT + 0.01, False), (10, False)])
def test_window_does_not_grow_where_it_does_not_limit(trips: float, grows: bool) -> None:
    """A window that takes longer than PROMPT round trips to pass is not what limits."""
    made = line()
    made.pass_window(trips * ROUND_TRIP)
    assert (made.window.size > WINDOW) is grows


def test_part_of_a_window_does_not_count() -> None:
    """Only a whole window says anything: much of one in no time does not."""
    made = line()
    part = WINDOW // 3
    for _ in range(2):
        made.window.left -= part
        assert made.window.passed(part, made.now, ROUND_TRIP, FAR) == part
    assert made.window.size == WINDOW


def test_idle_window_does_not_grow() -> None:
    """After a pause the first whole window is measured from before it: nobody was held up."""
    made = line()
    made.pass_window(60)
    assert made.window.size == WINDOW
    made.pass_window(ROUND_TRIP)
    assert made.window.size == 2 * WINDOW


def test_nothing_grows_while_the_distance_is_unknown() -> None:
    """While the round trip is not known no window grows, however fast it passes."""
    made = line()
    made.round_trip = 0
    for _ in range(5):
        assert made.pass_window(0) == WINDOW
    assert made.window.size == WINDOW


def test_window_stops_growing() -> None:
    """No window grows beyond the most that is good for this peer."""
    made = line()
    made.largest = 3 * WINDOW
    for _ in range(5):
        made.pass_window(ROUND_TRIP)
    assert made.window.size == 3 * WINDOW


def test_window_is_never_cut_to_its_largest() -> None:
    """A window that is larger than is good for the peer, which was not known before, stays as it is."""
    made = line()
    made.largest = WINDOW // 2
    assert made.pass_window(ROUND_TRIP) == made.window.size == WINDOW


def test_growth_ends_with_the_budget() -> None:
    """A window grows by no more than is left, and not at all where nothing is."""
    budget = Budget(16 * MIB)
    made = line(budget)
    for _ in range(10):
        made.pass_window(ROUND_TRIP)
        assert budget.left >= 0
        assert made.window.size + budget.left == 16 * MIB
    other = Budget(WINDOW_FLOOR)
    poor = line(other)
    poor.pass_window(ROUND_TRIP)
    assert (poor.window.size, other.left) == (WINDOW_FLOOR, 0)


# Giving back


def test_large_window_gives_back_when_the_budget_is_tight() -> None:
    """When the budget runs low a large window gives half of itself back with each whole window, down to a modest size."""
    budget = Budget(PLENTY)
    made = line(budget)
    for _ in range(3):
        made.pass_window(ROUND_TRIP)
    rest = budget.more(budget.left)
    sizes = []
    while made.window.size > MODEST:
        made.pass_window(60)
        sizes.append(made.window.size)
        assert budget.left + rest + made.window.size == PLENTY
    assert sizes == [8 * WINDOW // 2**count for count in range(1, len(sizes) + 1)]
    made.pass_window(60)
    assert made.window.size == sizes[-1]


def test_only_what_is_owed_is_given_back() -> None:
    """What the peer was promised is not taken from it: a window shrinks by no more than has passed."""
    budget = Budget(PLENTY)
    window = ReceiveWindow(budget)
    budget.more(budget.left)
    quarter = window.size // 4
    window.left -= quarter
    assert window.passed(quarter, 0, 0, FAR) == 0
    assert (window.size, window.left) == (WINDOW - quarter, WINDOW - quarter)


def test_window_grows_again() -> None:
    """A window that gave back grows again when there is enough."""
    budget = Budget(PLENTY)
    made = line(budget)
    rest = budget.more(budget.left)
    made.pass_window(60)
    assert made.window.size == WINDOW // 2
    budget.give_back(rest)
    made.pass_window(ROUND_TRIP)
    assert made.window.size == WINDOW


def test_budget_is_tight_below_a_quarter() -> None:
    """The budget runs low when three quarters are gone."""
    budget = Budget(1000)
    budget.more(750)
    assert not budget.is_tight
    budget.more(1)
    assert budget.is_tight


def test_closed_window_gives_everything_back() -> None:
    """A channel that is gone gives its window back, whatever of it was used, and once."""
    budget = Budget(PLENTY)
    made = line(budget)
    made.pass_window(ROUND_TRIP)
    made.window.left = 17
    made.window.close()
    made.window.close()
    assert (budget.left, made.window.size) == (PLENTY, 0)


# Relief


def test_relief_is_told() -> None:
    """When more than half of the budget was spent and more than three quarters are back, that is told, once a rush."""
    told: list[int] = []
    budget = Budget(1000, on_relief=lambda: told.append(budget.left))
    for _ in range(2):
        budget.more(501)
        budget.give_back(251)
        assert told == []
        budget.give_back(1)
        assert told == [751]
        budget.give_back(249)
        assert told == [751]
        told.clear()


def test_no_relief_without_a_rush() -> None:
    """Where half of the budget was never spent there is nothing to tell."""
    told: list[int] = []
    budget = Budget(1000, on_relief=lambda: told.append(1))
    budget.more(500)
    budget.give_back(500)
    assert told == []


def test_relief_needs_nobody() -> None:
    """A budget of which nobody wants to hear works all the same."""
    budget = Budget(1000)
    budget.give_back(budget.more(1000))
    assert budget.left == 1000


# At all times

steps = st.lists(
    st.tuples(st.sampled_from(["open", "close", "send", "read", "wait"]), st.integers(0, 5), st.floats(0, 1), st.booleans()),
    max_size=200,
)


@settings(max_examples=200)
@given(st.sampled_from([0, WINDOW_FLOOR, MIB, 8 * MIB, 256 * MIB]), steps)
def test_nothing_is_lost_or_created(total: int, script: list[tuple[str, int, float, bool]]) -> None:
    """Whatever happens, all windows and the rest of the budget add up to the budget, and no peer can send beyond its window.

    A reader that has taken everything leaves the peer more than three quarters of the window, so that every channel moves.
    """
    budget = Budget(total)
    lines: list[tuple[ReceiveWindow, list[int]]] = []
    now = 1000.0
    for name, which, part, near in script:
        now += part * (0 if near else 10)
        if name == "open":
            lines.append((ReceiveWindow(budget), [0]))
        elif lines:
            window, kept = lines[which % len(lines)]
            act(name, window, kept, part, now)
            if name == "close":
                lines.remove((window, kept))
        assert budget.left + sum(window.size for window, _ in lines) == total
        for window, kept in lines:
            assert window.size >= WINDOW_FLOOR
            assert window.size * 3 < (window.left + kept[0]) * 4
            assert window.left + kept[0] <= window.size
            assert window.left >= 0


def act(name: str, window: ReceiveWindow, kept: list[int], part: float, now: float) -> None:
    """One step of one channel: the peer sends, or the reader takes, a part of what it can."""
    if name == "close":
        window.close()
    elif name == "send":
        count = int(window.left * part)
        window.left -= count
        kept[0] += count
    elif name == "read":
        count = int(kept[0] * part)
        kept[0] -= count
        before = window.left
        grant = window.passed(count, now, ROUND_TRIP, WINDOW_MAX)
        assert grant == window.left - before >= 0
