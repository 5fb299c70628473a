"""Pooled buffers, so that reading and framing allocate nothing, and who has nothing to do holds nothing."""

from __future__ import annotations

from knot_ssh.dataplane.limits import BUFFER, SPARE_BUFFERS


class Pool:
    """Buffers of one size, as memoryviews. Whoever takes one gives it back, or drops it."""

    def __init__(self, size: int = BUFFER, spare: int = SPARE_BUFFERS) -> None:
        self.size = size
        self._most = spare
        self._spare: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer with anything in it."""
        return self._spare.pop() if self._spare else memoryview(bytearray(self.size))

    def give_back(self, buffer: memoryview) -> None:
        """Make it available to the next one."""
        if len(self._spare) < self._most:
            self._spare.append(buffer)
