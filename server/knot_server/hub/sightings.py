"""What an agent says that it has seen, for the audit record. It is not trusted: it speaks of its own space alone, so often and
no more; certificates and targets are looked up in our own store; and what it has said is marked as that."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.certificates import CLIENT_REASONS
from knot_keys.identity import HOST_KEY_ID
from knot_keys.permission import PERMISSION_REASONS
from knot_server.actor import Actor
from knot_server.refusals import OTHER
from knot_server.store.database import Database
from knot_server.store.schema import Certificate
from knot_server.usecases.audit import STRANGER, Audit, Event
from knot_server.usecases.lookup import names_now
from knot_ssh.buckets import Bucket, Pace
from knot_ssh.names import SpaceId, SpaceName
from knot_ssh.wire import AuditReport, ForwardSeen, LinkSeen, RefusalSeen

EACH_AGENT = Pace(burst=1000, rate=2)
"""What one agent may have recorded: the links of a large space that is started again, and two a second from then on."""
REASONS = frozenset({*CLIENT_REASONS, *PERMISSION_REASONS, "a plain key", "not logged in", "address not allowed"})
"""Why an endpoint refuses; any other reason that an agent gives is `other`."""
LATE = 2.0
"""Seconds after which it is worth saying how long ago it was."""


class Sightings:
    """Of one agent, while it is connected."""

    def __init__(self, database: Database, audit: Audit, space_id: SpaceId) -> None:
        self._database = database
        self._audit = audit
        self._space_id = space_id
        self._allowance = Bucket(EACH_AGENT.rate, EACH_AGENT.burst, time.monotonic())

    async def take(self, actor: Actor, report: AuditReport) -> None:
        """Note what this agent reports; raises StoreUnavailable, and it may tell again."""
        if report.left_out:
            self._audit.leave_out(report.left_out)
        async with self._database.reading() as session:
            openers = await _openers(session, actor, [seen.serial for seen in report.seen if _has_proved(seen) and seen.serial])
            targets = [seen.target_id for seen in report.seen if isinstance(seen, ForwardSeen) and seen.target_id]
            names = await names_now(session, actor, targets)
        for seen in report.seen:
            if not self._allowance.spend(time.monotonic()):
                self._audit.leave_out(1)
            elif isinstance(seen, LinkSeen):
                self._link(actor, seen, openers.get(int(seen.serial)))
            elif isinstance(seen, RefusalSeen):
                self._refusal(actor, seen, openers.get(int(seen.serial or 0)) if _has_proved(seen) else None)
            else:
                self._forward(actor, seen, names)

    def _link(self, actor: Actor, seen: LinkSeen, opener: Certificate | None) -> None:
        self._audit.observe(
            Event.LINK_OPENED,
            _who(opener.key_id) if opener else STRANGER,
            owner=actor.owner,
            space_id=self._space_id,
            space=actor.space_name,
            source_id=opener.space_id if opener else None,
            serial=seen.serial,
            key_id=opener.key_id if opener else None,
            mode=seen.mode,
            address=seen.address,
            reported=True,
            seconds_ago=_late(seen.ago),
        )

    def _refusal(self, actor: Actor, seen: RefusalSeen, holder: Certificate | None) -> None:
        self._audit.refuse(
            seen.door,
            seen.reason if seen.reason in REASONS else OTHER,
            self._space_id,
            _who(holder.key_id) if holder else STRANGER,
            owner=actor.owner,
            space_id=self._space_id,
            space=actor.space_name,
            serial=seen.serial,
            key_id=holder.key_id if holder else None,
            host=seen.host,
            port=seen.port,
            address=seen.address,
            reported=True,
            seconds_ago=_late(seen.ago),
        )

    def _forward(self, actor: Actor, seen: ForwardSeen, names: Mapping[SpaceId, SpaceName]) -> None:
        target = seen.target_id if seen.target_id in names else None
        self._audit.observe(
            Event(seen.what),
            actor,
            owner=actor.owner,
            space_id=self._space_id,
            space=actor.space_name,
            by=seen.by,
            local_port=int(seen.local_port),
            remote_port=int(seen.remote_port),
            target=names[target] if target else None,
            target_id=target,
            persistent=False,
            reported=True,
            seconds_ago=_late(seen.ago),
        )


def _has_proved(seen: LinkSeen | RefusalSeen | ForwardSeen) -> TypeGuard[LinkSeen | RefusalSeen]:
    """Whether somebody has logged in with the certificate of whom this tells; a login that is refused has only shown it."""
    return isinstance(seen, LinkSeen) or (isinstance(seen, RefusalSeen) and seen.door == "channel")


async def _openers(session: AsyncSession, actor: Actor, serials: Sequence[str]) -> dict[int, Certificate]:
    """Those of these certificates that are known, of clients, and of the agent's owner. Nobody logs in with a host's."""
    numbers = [number for number in map(int, serials) if number < 1 << 63]
    theirs = select(Certificate).where(Certificate.owner == str(actor.owner), ~Certificate.key_id.startswith(HOST_KEY_ID))
    question = theirs.where(Certificate.serial.in_(numbers))
    return {certificate.serial: certificate for certificate in await session.scalars(question)} if numbers else {}


def _who(key_id: str) -> str:
    """The holder of a certificate of ours, as the record names them."""
    role, owner, _zones, space, _id = key_id.split("/")
    return f"{role} {space}" if role == "agent" else owner


def _late(ago: float) -> float | None:
    return ago if ago > LATE else None
