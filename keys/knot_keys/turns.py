"""Whose key exchange is next. One takes a processor 1 to 4 ms, whoever asks: thousands at once would hold up everybody else.

So they are made one at a time, and between two of them all other work has its turn. Each source (an IPv4 address, or an IPv6
network) has so many a second. Who is over that is not refused, but waits, at most for as long as a login may take. The source
that has used least of its share goes first: whoever comes from elsewhere passes a flood by. Within a source the newest goes
first, since in a flood the oldest have given up, or will before long.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from knot_keys.waitingroom import network
from knot_ssh.buckets import Buckets, Pace

KEY_EXCHANGES = 100.0
"""Key exchanges a second for those of one source who have not logged in: at most two fifths of a processor."""
BURST_SECONDS = 10.0
"""How many seconds' worth may come at once after a pause: 500 agents behind one address do, on two connections each."""
SOURCES_MAX = 10_000
"""Sources that are remembered, some 500 bytes each; beyond, the one that was heard of longest ago is forgotten."""


Who = TypeVar("Who", bound=Hashable)


class Turns(Generic[Who]):
    """Who waits, and who is next. It decides, and waits for nothing; `now` is in seconds of a clock that goes forward."""

    def __init__(self, rate: float = KEY_EXCHANGES) -> None:
        self._buckets = Buckets(Pace(rate * BURST_SECONDS, rate), SOURCES_MAX)
        self._waiting: dict[str, OrderedDict[Who, None]] = {}
        self._where: dict[Who, str] = {}

    def __len__(self) -> int:
        return len(self._where)

    def ask(self, who: Who, address: str, now: float) -> None:
        """Somebody at this address waits from now on."""
        source = network(address)
        self._where[who] = source
        self._waiting.setdefault(source, OrderedDict())[who] = None
        self._buckets.of(source, now)

    def leave(self, who: Who) -> None:
        """They wait no more; who has had their turn does not."""
        source = self._where.pop(who, None)
        if source is not None:
            del self._waiting[source][who]
            if not self._waiting[source]:
                del self._waiting[source]

    def next(self, now: float) -> Who | None:
        """Whose turn it is: the newest of the source that has used least. Takes as long as there are sources that wait."""
        source = max(self._waiting, key=lambda waiting: self._buckets.of(waiting, now).left(now), default=None)
        if source is None or not self._buckets.spend(source, now):
            return None
        who = next(reversed(self._waiting[source]))
        self.leave(who)
        return who

    def pause(self, now: float) -> float:
        """Seconds until it is the turn of one of those who wait; somebody must."""
        return min(self._buckets.of(source, now).wait(now) for source in self._waiting)


Entry = Callable[[], None]
"""Lets somebody through. One for each who waits."""


class Turnstile:
    """Lets a few through at a time, and whatever else the event loop has to do between."""

    def __init__(self, rate: float = KEY_EXCHANGES, at_once: int = 1) -> None:
        self._turns: Turns[Entry] = Turns(rate)
        self._at_once = at_once
        self._next: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._turns)

    def ask(self, entry: Entry, address: str) -> None:
        """Call this when it is the turn of somebody at this address."""
        self._turns.ask(entry, address, asyncio.get_running_loop().time())
        self._schedule(0)

    def leave(self, entry: Entry) -> None:
        """Do not call it any more."""
        self._turns.leave(entry)

    async def turn(self, address: str) -> None:
        """Wait until it is the turn of somebody at this address. Who is cancelled meanwhile waits no more."""
        waiting = asyncio.get_running_loop().create_future()
        entry = partial(_wake, waiting)
        self.ask(entry, address)
        try:
            await waiting
        finally:
            self.leave(entry)

    def close(self) -> None:
        """Let nobody through any more."""
        if self._next:
            self._next.cancel()

    def _let_through(self) -> None:
        self._next = None
        now = asyncio.get_running_loop().time()
        for _ in range(self._at_once):
            entry = self._turns.next(now)
            if entry is None:
                break
            entry()
        if len(self._turns):
            self._schedule(0 if entry else self._turns.pause(now))

    def _schedule(self, seconds: float) -> None:
        """Look again after so long, or at once: then whoever is next goes in the next turn of the loop."""
        if isinstance(self._next, asyncio.TimerHandle):
            self._next.cancel()
        elif self._next:
            return
        loop = asyncio.get_running_loop()
        self._next = loop.call_later(seconds, self._let_through) if seconds else loop.call_soon(self._let_through)


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
