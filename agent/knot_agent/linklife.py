"""The life of a link, decided here and nowhere else: no input or output, and `now` is an argument.

A link has a connection or it has none, and an attempt to make one is under way or it is not. Attempts come in two
kinds: at every path, or, while the relay serves, at the direct ones alone. So the phases come in pairs, one that rests
until a moment and one that is busy:

    no connection                   RESTING    TRYING        (GONE: the target was deleted)
    a good one                      UP         IMPROVING     busy with the direct paths; rests while the path is direct
    one with an old certificate     STALE      REPLACING     new channels still use it, until that certificate ends
    one whose peer is silent        DOUBTED    ESCAPING      it may come back, or be lost soon

In each pair DUE and NEWS lead from rest to work and FAILED leads back; CONNECTED leads to UP from everywhere, and the
connection there was before is drained: what is open on it ends by itself. LOST and EXPIRED lead to RESTING, which is
left at once, unless connections were short-lived lately.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from knot_ssh.lifecycle import Life
from knot_ssh.retrying import backoff

STEADY = 10.0
"""Seconds a connection must have lasted for the next one to be made without a wait."""
PROBE = 4.0
"""Seconds between attempts to get from the relay to a direct path; they take as long again at most."""
RETRY = 2.5
"""Seconds between attempts to connect at most, however often they have failed."""
AGAIN = 1.0
"""Seconds between attempts to replace a connection whose peer is silent."""

Mode = Literal["direct", "relay"]


class Phase(StrEnum):
    """See above."""

    RESTING = "resting"
    TRYING = "trying"
    GONE = "gone"
    UP = "up"
    IMPROVING = "improving"
    STALE = "stale"
    REPLACING = "replacing"
    DOUBTED = "doubted"
    ESCAPING = "escaping"


class Event(StrEnum):
    """What can happen to a link."""

    DUE = "due"
    """The moment that a phase rests until has come."""
    NEWS = "news"
    """The hub has said something of the target, or is back: an attempt may work now."""
    CONNECTED = "connected"
    FAILED = "failed"
    MISSING = "missing"
    """The attempt has found that the target was deleted."""
    LOST = "lost"
    SILENT = "silent"
    """The peer has left a sign of life unanswered."""
    HEARD = "heard"
    """It speaks again."""
    RENEWED = "renewed"
    """We have a new certificate."""
    EXPIRED = "expired"
    """The certificate that the connection was made with has ended."""


_P, _E = Phase, Event
_OVER = {_E.LOST: _P.RESTING, _E.EXPIRED: _P.RESTING}
_CONNECTED = _OVER | {_E.SILENT: _P.ESCAPING, _E.RENEWED: _P.REPLACING}
_DONE = {_E.CONNECTED: _P.UP, _E.MISSING: _P.GONE}

TABLE: dict[Phase, dict[Event, Phase]] = {
    _P.RESTING: {_E.DUE: _P.TRYING, _E.NEWS: _P.TRYING, _E.RENEWED: _P.TRYING},
    _P.TRYING: _DONE | {_E.FAILED: _P.RESTING, _E.NEWS: _P.TRYING, _E.RENEWED: _P.TRYING},
    _P.GONE: {_E.NEWS: _P.TRYING, _E.RENEWED: _P.GONE},
    _P.UP: _CONNECTED | {_E.DUE: _P.IMPROVING, _E.NEWS: _P.UP, _E.HEARD: _P.UP},
    _P.IMPROVING: _CONNECTED | _DONE | {_E.FAILED: _P.UP, _E.NEWS: _P.IMPROVING, _E.HEARD: _P.IMPROVING},
    _P.STALE: _CONNECTED | {_E.DUE: _P.REPLACING, _E.NEWS: _P.REPLACING, _E.HEARD: _P.STALE},
    _P.REPLACING: _CONNECTED | _DONE | {_E.FAILED: _P.STALE, _E.NEWS: _P.REPLACING, _E.HEARD: _P.REPLACING},
    _P.DOUBTED: _CONNECTED | {_E.DUE: _P.ESCAPING, _E.NEWS: _P.ESCAPING, _E.HEARD: _P.UP},
    _P.ESCAPING: _CONNECTED | _DONE | {_E.FAILED: _P.DOUBTED, _E.NEWS: _P.ESCAPING, _E.HEARD: _P.UP},
}
CONNECTED = frozenset(phase for phase in TABLE if _E.LOST in TABLE[phase])
BUSY = frozenset(phase for phase in TABLE if _E.FAILED in TABLE[phase])


@dataclass(frozen=True, slots=True)
class Path:
    """How the target is reached: at this address, its own or the hub's."""

    mode: Mode
    address: str


class LinkLife:
    """One link's phase, path and plans. All moments are seconds on the monotonic clock."""

    def __init__(self, now: float, luck: Callable[[], float] = random.random) -> None:
        """`luck` gives numbers from 0 to 1, which spread what many agents would do at the same moment."""
        self._life = Life(TABLE, Phase.TRYING, now)
        self._luck = luck
        self._failures = 0
        self._short_lives = 0
        self._outdated = False
        self._until = math.inf
        self._good_until = math.inf
        self.path: Path | None = None
        self.since = now
        """When the present path was taken, or the last one was lost."""
        self.reason = ""
        """Why there is no connection; empty before the first attempt has ended."""

    @property
    def phase(self) -> Phase:
        return self._life.phase

    @property
    def is_connected(self) -> bool:
        return self.phase in CONNECTED

    @property
    def wants(self) -> Literal["nothing", "any path", "a direct path"]:
        """What attempt there should be."""
        if self.phase is Phase.IMPROVING:
            return "a direct path"
        return "any path" if self.phase in BUSY else "nothing"

    @property
    def wake_at(self) -> float:
        """When to ask for what is `due` next."""
        return min(self._until, self._good_until)

    def due(self, now: float) -> Event | None:
        """The event that time has brought."""
        if now >= self._good_until:
            return Event.EXPIRED
        return Event.DUE if now >= self._until else None

    def on(self, event: Event, now: float, *, path: Path | None = None, good_until: float = math.inf, reason: str = "") -> None:
        """Take an event. CONNECTED comes with a path and with the moment when our certificate ends, others with a reason.

        Raises lifecycle.IllegalEvent.
        """
        before = self._life.on(event, now)
        self._until = math.inf
        match event:
            case Event.CONNECTED:
                self.path, self.since, self.reason = path, now, ""
                self._good_until = good_until
                self._failures = 0
                self._outdated = False
            case Event.LOST | Event.EXPIRED | Event.MISSING:
                lasted = now - self.since if before in CONNECTED else STEADY
                self._short_lives = 0 if lasted >= STEADY else self._short_lives + 1
                self._failures = self._short_lives
                self.path, self.since, self.reason = None, now, reason
                self._good_until = math.inf
                self._outdated = False
            case Event.FAILED:
                self._failures += 1
                if self.phase is Phase.RESTING:
                    self.reason = reason
            case Event.NEWS | Event.RENEWED:
                self._failures = self._short_lives = 0
                self._outdated = self._outdated or (event is Event.RENEWED and self.is_connected)
            case Event.HEARD if self._outdated and self.phase is Phase.UP:
                self._life.on(Event.RENEWED, now)
        self._plan(event, now)

    def _plan(self, event: Event, now: float) -> None:
        """Until when to rest."""
        match self.phase:
            case Phase.UP if self.path and self.path.mode == "relay":
                self._until = now if event in (Event.NEWS, Event.CONNECTED) else now + PROBE
            case Phase.RESTING | Phase.STALE:
                self._until = now + (backoff(self._failures, self._luck(), RETRY) if self._failures else 0)
            case Phase.DOUBTED:
                self._until = now + AGAIN
