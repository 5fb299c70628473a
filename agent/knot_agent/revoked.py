"""The agent's view of what is revoked, and how old it is.

The hub tells the whole list at each welcome, a long one in parts before it, and from then on what is new. So the view is
current while the connection to the hub is up and the hub is heard; from then on it ages. Without `strict` an old view is used
as it is, and certificates that run out bound what it can miss. With it, a view older than `revocation_max_age` lets nobody in.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import structlog

from knot_agent.credentials import Credentials
from knot_agent.memory import Memory
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.wire import Revoked

log = structlog.get_logger(__name__)

LOOK_SECONDS = 5.0
"""Between two looks at the clock at most: timers stand still while the machine sleeps, and this clock does not."""
KEEP_SECONDS = 30.0
"""Between two notes on disk of how old the view is, for a start without the server; a quarter of the limit if that is less."""


def monotonic() -> float:
    """Seconds on a clock that nobody sets, and that runs on while the machine sleeps (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def remembered_age(kept_at: float | None, now: float) -> float:
    """How old a view is that was current at `kept_at` on the wall clock; endless if nobody knows.

    A clock that says less than it did then went backwards, and tells nothing of how long it was.
    """
    return math.inf if kept_at is None or now < kept_at else now - kept_at


class Freshness:
    """How old the view is, and whether that is too old. All moments are seconds of `monotonic`."""

    def __init__(self, limit: float, age: float, now: float) -> None:
        """`limit` is infinite where any age will do; `age` is that of what is remembered."""
        self.limit = limit
        self._sure_at = now - age
        self._is_alive = False

    def heard(self, now: float) -> None:
        """The hub has told all there is, and can be heard."""
        self._is_alive, self._sure_at = True, now

    def lost(self, now: float, quiet: float) -> None:
        """It cannot be heard any more, and was last heard `quiet` seconds ago."""
        if self._is_alive:
            self._is_alive, self._sure_at = False, now - quiet

    def age(self, now: float) -> float:
        """0 while the hub is heard."""
        return 0.0 if self._is_alive else max(0.0, now - self._sure_at)

    def left(self, now: float) -> float:
        """Seconds until it is too old, if the hub is not heard before; 0 when it is."""
        return self.limit if math.isinf(self.limit) else max(0.0, self.limit - self.age(now))


class RevokedView:
    """Keeps the list, in the credentials and on disk, and ends what may not go on under an old one."""

    def __init__(
        self,
        credentials: Credentials,
        memory: Memory,
        limit: float = math.inf,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._credentials = credentials
        self._memory = memory
        self._clock = clock
        self._wall = wall
        self._coming = NOTHING_REVOKED
        self._changed = asyncio.Event()
        self._freshness = Freshness(limit, remembered_age(memory.revoked_at, wall()), clock())
        credentials.revoke(revocation_list(memory.revoked))
        credentials.is_current = self.is_current

    def is_current(self) -> bool:
        """Whether anybody may be let in, or dialled, by this view."""
        return self._freshness.left(self._clock()) > 0

    # What the hub says

    def begin(self) -> None:
        """The next list begins: we say hello."""
        self._coming = NOTHING_REVOKED

    def listed(self, part: Revoked) -> None:
        """Some of it; the welcome has the rest."""
        self._coming |= revocation_list(part)

    def welcomed(self, rest: Revoked) -> None:
        """The list is complete."""
        self._take(self._coming | revocation_list(rest))

    def heard(self, news: Revoked) -> None:
        """Something is revoked, perhaps while the list is on its way."""
        self._coming |= revocation_list(news)
        self._take(revocation_list(news) if news.whole else self._credentials.revoked | revocation_list(news))

    def alive(self, is_alive: bool, quiet: float) -> None:
        """Whether the hub can be heard now, after its welcome; `quiet`: seconds since it was."""
        if is_alive:
            self._freshness.heard(self._clock())
        else:
            self._freshness.lost(self._clock(), quiet)
        self._keep_age()
        self._changed.set()

    # What time does to it

    async def run(self) -> None:
        """End what was opened by a view that has become too old, until cancelled; nothing where any age will do."""
        if math.isinf(self._freshness.limit):
            return
        while True:
            await self._until_old()
            log.error("revocations too old", reason="the server was not heard for too long", limit=self._freshness.limit)
            self._credentials.outdated()
            while not self.is_current():
                await self._wait(LOOK_SECONDS)
            log.info("revocations current again")

    async def _until_old(self) -> None:
        while (left := self._freshness.left(self._clock())) > 0:
            await self._wait(min(left, LOOK_SECONDS))
            self._keep_age()

    async def _wait(self, seconds: float) -> None:
        """So long, or until the hub is heard or lost."""
        self._changed.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _keep_age(self) -> None:
        """Have on disk when the view was current, now and then; only who is strict will ask."""
        age = self._freshness.age(self._clock())
        if math.isinf(self._freshness.limit) or math.isinf(age):
            return
        moment = self._wall() - age
        if abs(moment - (self._memory.revoked_at or 0)) >= (min(KEEP_SECONDS, self._freshness.limit / 4) if age == 0 else 1):
            self._memory.keep_revoked_at(moment)

    def _take(self, revoked: RevocationList) -> None:
        self._credentials.revoke(revoked)
        self._memory.keep_revoked(Revoked(serials=sorted(revoked.serials), keys=sorted(revoked.keys)))


def revocation_list(revoked: Revoked) -> RevocationList:
    """The hub's list as a value."""
    return RevocationList.of(revoked.serials, revoked.keys)
