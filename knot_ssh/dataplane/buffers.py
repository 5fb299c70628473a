"""Pooled buffers, so that reading and framing allocate nothing, and who has nothing to do holds nothing."""

from __future__ import annotations

from typing import Protocol

from knot_ssh.dataplane.limits import BUFFER, PLENTY, SMALL_BUFFER, SPARE_BUFFERS


class Behind(Protocol):
    """A connection whose peer does not read its answers."""

    @property
    def waiting(self) -> int:
        """Bytes that it has not read yet."""

    def give_up(self) -> None:
        """End the connection."""


class Pool:
    """Buffers as memoryviews. Whoever takes one gives it back, or drops it with `forget`."""

    def __init__(self, size: int = BUFFER, spare: int = SPARE_BUFFERS) -> None:
        self.size = size
        self._most = spare
        self._spare: list[memoryview] = []
        self._taken = 0
        self.backlog = 0
        """Bytes of answers that wait for slow peers, on all connections; see `limits.BACKLOG`."""
        self.behind: set[Behind] = set()
        """Whose these are."""

    @property
    def is_short(self) -> bool:
        """Whether so many are in use that everybody should do with less."""
        return self._taken >= PLENTY

    def take(self) -> memoryview:
        """A buffer of full size, with anything in it."""
        self._taken += 1
        return self._spare.pop() if self._spare else memoryview(bytearray(self.size))

    def take_some(self) -> memoryview:
        """The same, or a small one where many are in use."""
        if not self.is_short:
            return self.take()
        self._taken += 1
        return memoryview(bytearray(SMALL_BUFFER))

    def give_back(self, buffer: memoryview) -> None:
        """Make it available to the next one."""
        self._taken -= 1
        if len(self._spare) < self._most and len(buffer) == self.size:
            self._spare.append(buffer)

    def forget(self) -> None:
        """One that was taken does not come back."""
        self._taken -= 1
