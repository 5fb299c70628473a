"""Buffers are used again, and not kept for ever."""

from __future__ import annotations

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.limits import BUFFER, PLENTY, SMALL_BUFFER, SPARE_BUFFERS


def test_buffer_can_be_written() -> None:
    """A buffer has the pool's size, and its memory is the taker's to write."""
    pool = Pool()
    buffer = pool.take()
    buffer[-1] = 7
    assert (pool.size, len(buffer), buffer[-1], buffer.readonly) == (BUFFER, BUFFER, 7, False)


def test_nobody_shares_a_buffer() -> None:
    """Whoever takes a buffer has it alone until it is given back."""
    pool = Pool(size=10)
    taken = [pool.take() for _ in range(20)]
    for number, buffer in enumerate(taken):
        buffer[0] = number
    assert [buffer[0] for buffer in taken] == list(range(20))


def test_what_is_given_back_is_used_again() -> None:
    """A buffer that was given back is the next one to be taken: it is still in the cache."""
    pool = Pool(size=10)
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take() is second
    assert pool.take() is first


def test_spare_buffers_are_few() -> None:
    """Of all that is given back only so many are kept."""
    pool = Pool(size=10)
    given = [pool.take() for _ in range(SPARE_BUFFERS + 5)]
    for buffer in given:
        pool.give_back(buffer)
    kept = {id(buffer) for buffer in given[:SPARE_BUFFERS]}
    again = [pool.take() for _ in range(SPARE_BUFFERS + 5)]
    assert {id(buffer) for buffer in again} & {id(buffer) for buffer in given} == kept


def test_pool_without_spare_buffers() -> None:
    """A pool may keep none."""
    pool = Pool(size=10, spare=0)
    buffer = pool.take()
    pool.give_back(buffer)
    assert pool.take() is not buffer


def test_small_buffers_where_many_are_in_use() -> None:
    """Beyond PLENTY buffers in use, whoever can do with less gets a small one; who cannot still gets a whole one."""
    pool = Pool()
    taken = [pool.take_some() for _ in range(PLENTY - 1)]
    assert not pool.is_short
    taken.append(pool.take_some())
    assert {len(buffer) for buffer in taken} == {BUFFER}
    assert pool.is_short
    small, whole = pool.take_some(), pool.take()
    assert (len(small), len(whole)) == (SMALL_BUFFER, BUFFER)
    for buffer in (small, whole, taken[0]):
        pool.give_back(buffer)
    assert not pool.is_short
    assert len(pool.take_some()) == BUFFER


def test_small_buffers_are_not_kept() -> None:
    """A small buffer that comes back is nobody's next one."""
    pool = Pool(size=BUFFER)
    taken = [pool.take() for _ in range(PLENTY)]
    pool.give_back(pool.take_some())
    assert len(pool.take()) == BUFFER
    assert len(taken) == PLENTY


def test_buffer_that_does_not_come_back() -> None:
    """A buffer that is dropped is not in use any more once that was said."""
    pool = Pool(size=10)
    for _ in range(PLENTY):
        pool.take()
    assert pool.is_short
    pool.forget()
    assert not pool.is_short
