"""The waiting room: when it is full the oldest of the busiest source goes, and never who has just come."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_keys.waitingroom import WaitingRoom

GOOD = "192.0.2.9"


class Guest:
    """A connection that knows whether it was turned out."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.aborted = 0

    def abort(self) -> None:
        self.aborted += 1

    def __repr__(self) -> str:
        return self.name


class LeavesAtOnce(Guest):
    """Its end is heard of while it is being turned out."""

    def __init__(self, room: WaitingRoom) -> None:
        super().__init__()
        self.room = room

    def abort(self) -> None:
        super().abort()
        self.room.leave(self)


def entered(room: WaitingRoom, *addresses: str) -> list[Guest]:
    """One guest from each of these addresses, in this order."""
    guests = [Guest(f"{number} from {address}") for number, address in enumerate(addresses)]
    for guest, address in zip(guests, addresses, strict=True):
        room.enter(guest, address)
    return guests


def gone(guests: list[Guest]) -> list[int]:
    """Which of them were turned out."""
    assert all(guest.aborted <= 1 for guest in guests)
    return [number for number, guest in enumerate(guests) if guest.aborted]


def test_room_for_all() -> None:
    """As long as there is room nobody has to go."""
    room = WaitingRoom(3)
    assert gone(entered(room, GOOD, GOOD, GOOD)) == []
    assert len(room) == 3


def test_oldest_goes() -> None:
    """Beyond the limit, each newcomer takes the place of the oldest."""
    room = WaitingRoom(3)
    assert gone(entered(room, *[GOOD] * 5)) == [0, 1]
    assert len(room) == 3


def test_busiest_source_pays() -> None:
    """Those of a quiet source stay, however old they are, while another has more."""
    room = WaitingRoom(4)
    assert gone(entered(room, GOOD, "a", GOOD, "a", "a", "a", "a")) == [1, 3, 4]


def test_newcomer_from_the_busiest_source_stays() -> None:
    """A good login from the very address that the flood comes from is let in, and is the last of them to go."""
    room = WaitingRoom(10)
    flood = entered(room, *["a"] * 10)
    good = Guest("good")
    room.enter(good, "a")
    assert gone(flood) == [0]
    entered(room, *["a"] * 9)
    assert not good.aborted
    assert gone(flood) == list(range(10))
    entered(room, "a")
    assert good.aborted


def test_all_sources_alike() -> None:
    """Where every source has one connection, the one of the source that came first goes, not the newcomer."""
    assert gone(entered(WaitingRoom(3), "a", "b", "c", "d", "e")) == [0, 1]


@given(st.integers(1, 8), st.lists(st.sampled_from("abcd"), max_size=40))
def test_any_crowd(limit: int, addresses: list[str]) -> None:
    """Never more than the limit wait, the newcomer never goes, and whoever goes is the oldest of a busiest source."""
    room = WaitingRoom(limit)
    waiting: list[tuple[Guest, str]] = []
    for address in addresses:
        newcomer = Guest(address)
        waiting.append((newcomer, address))
        room.enter(newcomer, address)
        out = [(guest, source) for guest, source in waiting if guest.aborted]
        assert len(out) == (len(waiting) > limit)
        for guest, source in out:
            counts = Counter(source for _, source in waiting)
            assert guest is not newcomer
            assert counts[source] == max(counts.values())
            assert guest is next(one for one, its in waiting if its == source)
            waiting.remove((guest, source))
        assert len(room) == len(waiting)


def test_who_has_left_makes_room() -> None:
    """Who has logged in, or is lost, does not count any more."""
    room = WaitingRoom(2)
    first, second = entered(room, "a", "a")
    room.leave(first)
    third, fourth = entered(room, "b", "a")
    assert [guest.aborted for guest in (first, second, third, fourth)] == [0, 1, 0, 0]


def test_leaving_twice() -> None:
    """To leave twice, or without having come, does no harm to others."""
    room = WaitingRoom(3)
    guests = entered(room, "a", "a", "b")
    for _ in range(2):
        room.leave(guests[0])
    room.leave(Guest())
    assert len(room) == 2
    room.leave(guests[1])
    room.leave(guests[2])
    assert len(room) == 0


def test_who_was_turned_out_leaves_once_more() -> None:
    """The end of a connection that was turned out is heard of later, or at once: both are the same."""
    room = WaitingRoom(1)
    early, late = LeavesAtOnce(room), Guest()
    for guest in (early, late, Guest()):
        room.enter(guest, "a")
    assert (early.aborted, late.aborted, len(room)) == (1, 1, 1)
    room.leave(early)
    room.leave(late)
    assert len(room) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:0:ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("relay", "relay", True),
        ("relay", "192.0.2.1", False),
        ("", "relay", False),
    ],
)
def test_what_is_one_source(one: str, other: str, same: bool) -> None:
    """An IPv4 address, an IPv6 network of 64 bits, or whatever else an address may be, is one source."""
    guests = entered(WaitingRoom(3), "192.0.2.77", one, other, "192.0.2.88")
    assert gone(guests) == [1 if same else 0]
