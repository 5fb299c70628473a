"""The channels of one owner."""

from __future__ import annotations

import asyncio

from knot_ssh.dataplane.channel import Channel


class Channels:
    """A set that can be reset as a whole, and waited for."""

    def __init__(self) -> None:
        self._channels: set[Channel] = set()
        self._idle: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._channels)

    def add(self, channel: Channel) -> None:
        """Own this channel, until `remove`."""
        self._channels.add(channel)

    def remove(self, channel: Channel) -> None:
        """Own it no more."""
        self._channels.discard(channel)
        if not self._channels and self._idle:
            self._idle.set()
            self._idle = None

    def abort(self) -> None:
        """Reset every one."""
        for channel in list(self._channels):
            channel.abort()

    async def wait_idle(self) -> None:
        """Wait until there is none."""
        while self._channels:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()
