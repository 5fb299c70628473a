"""What this agent sees that belongs into the audit record, told to the hub: links opened to its endpoint, by which certificate;
who was refused, and why; forwards made and stopped without the hub.

What happens while the hub is away waits for it, as much as there is room for; the rest is counted. Nothing is kept over a
restart. Refusals are caused by strangers: each of them, and all together, cause so many at once and then so many a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from knot_keys.certificates import ClientCertificate
from knot_keys.connections import RELAY_PEER
from knot_ssh.buckets import Allowances, Pace
from knot_ssh.errors import KnotError, Unavailable
from knot_ssh.wire import (
    ADDRESS_MAX,
    COUNT_MAX,
    HOST_MAX,
    REASON_MAX,
    SEEN_MAX,
    AuditReport,
    ForwardSeen,
    LinkSeen,
    RefusalSeen,
)

log = structlog.get_logger(__name__)

WAITING_MAX = 1000
"""What is kept for the hub; some 500 bytes each."""
SETTLE_SECONDS = 1.0
"""Seconds at most that what is seen waits for more to be told with it."""
BY_SOURCE, TOGETHER = Pace(burst=20, rate=0.2), Pace(burst=100, rate=1)
"""Refusals of one address, and of all."""

Sight = LinkSeen | RefusalSeen | ForwardSeen
Tell = Callable[[AuditReport], Awaitable[object]]


class Witness:
    """Keeps what was seen, and tells the hub while `run` runs."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Sight]] = deque()
        self._left_out = 0
        self._allowances = Allowances(BY_SOURCE, TOGETHER)
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def link_opened(self, client: ClientCertificate, peer: str) -> None:
        """Somebody has logged in with this certificate."""
        mode = "relay" if peer == RELAY_PEER else "direct"
        self._see(LinkSeen(serial=str(client.serial), mode=mode, address=peer[:ADDRESS_MAX]))

    def login_refused(self, reason: str, peer: str, serial: int | None = None) -> None:
        """`reason` as far as it is one of ours; what stands after a colon is for the log."""
        self._refused(
            peer, RefusalSeen(door="endpoint", reason=_name(reason), address=peer[:ADDRESS_MAX], serial=_text(serial))
        )

    def channel_refused(self, reason: str, peer: str, client: ClientCertificate | None, host: str, port: int) -> None:
        serial = _text(client.serial) if client else None
        address, host = peer[:ADDRESS_MAX], host[:HOST_MAX]
        refusal = RefusalSeen(door="channel", reason=_name(reason), address=address, serial=serial, host=host, port=port)
        self._refused(peer, refusal)

    def forward(self, seen: ForwardSeen) -> None:
        """A forward was made or stopped without the hub."""
        self._see(seen)

    def begin(self) -> None:
        """The hub is back."""
        self._news.set()

    async def run(self, tell: Tell) -> None:
        """Tell the hub, until cancelled. `tell` raises Unavailable while it is away."""
        while True:
            await self._news.wait()
            await asyncio.sleep(random.uniform(0, SETTLE_SECONDS))
            self._news.clear()
            try:
                while self._waiting or self._left_out:
                    await self._tell_some(tell)
            except Unavailable:
                continue  # it speaks first when it is back

    async def _tell_some(self, tell: Tell) -> None:
        now = time.monotonic()
        some = [self._waiting[place] for place in range(min(SEEN_MAX, len(self._waiting)))]
        left_out = min(self._left_out, COUNT_MAX)
        seen = [sight.model_copy(update={"ago": round(now - moment, 1)}) for moment, sight in some]
        try:
            await tell(AuditReport(seen=seen, left_out=left_out))
        except Unavailable:
            raise
        except KnotError as error:
            log.warning("not taken for the audit record", reason=str(error), count=len(some))
        for _ in some:
            self._waiting.popleft()
        self._left_out -= left_out

    def _refused(self, source: str, refusal: RefusalSeen) -> None:
        if self._allowances.spend(source, time.monotonic()):
            self._see(refusal)
        else:
            self._left_out += 1

    def _see(self, sight: Sight) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._left_out += 1
        else:
            self._waiting.append((time.monotonic(), sight))
        self._news.set()


def _name(reason: str) -> str:
    return reason.partition(":")[0][:REASON_MAX]


def _text(serial: int | None) -> str | None:
    return None if serial is None else str(serial)
