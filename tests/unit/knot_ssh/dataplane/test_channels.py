"""The channels of one owner: reset as a whole, and waited for."""

from __future__ import annotations

import asyncio

from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.plane import DataPlane
from tests.support.planes import stock_plane
from tests.support.reactors import on_both
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import MUCH, PATIENCE, Bench, FakeOwner, new, opened, whole


class Collector(FakeOwner):
    """An owner that has its channels in a set, as owners do."""

    def __init__(self, plane: DataPlane) -> None:
        super().__init__(plane)
        self.channels = Channels()

    def own(self) -> Channel:
        """A channel that is not asked for."""
        channel = Channel(self)
        self.channels.add(channel)
        return channel

    def channel_gone(self, channel: Channel) -> None:
        super().channel_gone(channel)
        self.channels.remove(channel)


async def test_idle_without_channels() -> None:
    """Who owns no channel need not wait."""
    async with asyncio.timeout(PATIENCE):
        await Channels().wait_idle()


async def test_set_of_channels() -> None:
    """A channel counts once, from `add` to `remove`; taking it away again does nothing."""
    owner = Collector(stock_plane())
    first, second = owner.own(), owner.own()
    owner.channels.add(first)
    assert len(owner.channels) == 2
    owner.channels.remove(first)
    owner.channels.remove(first)
    assert len(owner.channels) == 1
    owner.channels.remove(second)
    assert len(owner.channels) == 0


async def test_idle_when_the_last_has_gone() -> None:
    """An owner is idle when its last channel is gone, and not before."""
    owner = Collector(stock_plane())
    first, second = owner.own(), owner.own()
    idle = asyncio.ensure_future(owner.channels.wait_idle())
    first.abort()
    await asyncio.sleep(0)
    assert not idle.done()
    second.abort()
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_idle_again_after_more() -> None:
    """An owner that was idle is so no more with a new channel, and again when that is gone."""
    owner = Collector(stock_plane())
    owner.own().abort()
    await owner.channels.wait_idle()
    channel = owner.own()
    idle = asyncio.ensure_future(owner.channels.wait_idle())
    await asyncio.sleep(0)
    assert not idle.done()
    channel.abort()
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_not_idle_when_another_came_meanwhile() -> None:
    """Whoever waits goes on waiting when there is a new channel before it is woken."""
    owner = Collector(stock_plane())
    first = owner.own()
    idle = asyncio.ensure_future(owner.channels.wait_idle())
    await asyncio.sleep(0)
    first.abort()
    second = owner.own()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not idle.done()
    second.abort()
    async with asyncio.timeout(PATIENCE):
        await idle


async def test_several_wait() -> None:
    """Several may wait for the same channels, and each is woken."""
    owner = Collector(stock_plane())
    channel = owner.own()
    waiting = [asyncio.ensure_future(owner.channels.wait_idle()) for _ in range(3)]
    await asyncio.sleep(0)
    channel.abort()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*waiting)


async def test_owner_aborts_every_one() -> None:
    """An owner may end all its channels, each of which leaves the set meanwhile."""
    owner = Collector(stock_plane())
    channels = [owner.own() for _ in range(5)]
    owner.channels.abort()
    assert all(channel.is_gone for channel in channels)
    assert (len(owner.channels), owner.heard) == (0, ["gone"] * 5)


@on_both
async def test_abort_resets(plane: DataPlane) -> None:
    """An owner that ends its channels resets every socket."""
    with opened(plane) as one, new(plane) as other:
        channels = Channels()
        channels.add(one.channel)
        channels.add(other.channel)
        channels.abort()
        await one.is_reset()
        await other.is_reset()


@on_both
async def test_not_idle_while_the_last_byte_waits(plane: DataPlane) -> None:
    """A channel that is closed both ways counts until the kernel has taken its last byte."""
    with opened(plane) as bench:
        owner = taken_over(bench)
        idle = asyncio.ensure_future(owner.channels.wait_idle())
        bench.receive(MUCH)
        await whole(bench)
        bench.channel.got_close()
        await bench.reads(1000)
        assert not idle.done()
        await bench.reads()
        async with asyncio.timeout(PATIENCE):
            await idle
        await becomes(lambda: bench.channel.is_gone)
        bench.owner.heard += owner.heard


def taken_over(bench: Bench) -> Collector:
    """Another owner for this channel."""
    owner = Collector(bench.plane)
    owner.channels.add(bench.channel)
    bench.channel.owner = owner
    return owner
