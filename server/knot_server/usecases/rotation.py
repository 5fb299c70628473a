"""Change a CA, or the hub's host key, for another while everybody goes on: see `knot_keys.keyring` for the phases.

prepare   everybody is told of the new key and trusts it from now on, in addition. Agents say when they do, and an sshd does by
          fetching it; who is away hears when they are back.
activate  the new key signs. Agents renew their certificates at once, people and sshds in their time. The hub goes on showing a
          certificate by the old host CA, so that who has been away all the time can come and learn.
retire    the old key is trusted no more, and its private half is gone.

A step is refused while it would leave somebody behind. Who forces it retires a key that may be in other hands: then whatever
was made under it ends as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from knot_keys.authority import Authority
from knot_keys.keyfiles import fingerprint
from knot_keys.keyring import DUE, KeyRing, Phase, Step
from knot_server.actor import Actor
from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.usecases.audit import Audit, Event, Value
from knot_server.usecases.dependents import (
    Dependents,
    certificates_by,
    people_who_have_not_asked,
    spaces_without,
    tokens_without,
)
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.lookup import administrators_only, check_current
from knot_ssh.errors import StillInUse, StoreUnavailable
from knot_ssh.names import SpaceName

log = structlog.get_logger(__name__)


class What(StrEnum):
    """The keys of the server that can be rotated."""

    USER_CA = "user-ca"
    HOST_CA = "host-ca"
    HUB_KEY = "hub-key"


@dataclass(frozen=True, slots=True)
class Standing:
    """How the rotation of one key stands. Keys are fingerprints; `since` is in seconds since 1970, 0 for a stable key."""

    what: What
    phase: Phase
    since: float
    active: str
    next: str | None
    old: str | None
    due: Step
    dependents: list[Dependents]
    """Who would be left behind by the step that is due."""


class Rotations:
    """The use cases, for administrators. `on_change` is called after each step."""

    def __init__(
        self, database: Database, authority: Authority, hub_key: KeyRing, roster: Roster, enrolment: Enrolment, audit: Audit
    ) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.hub_key = hub_key
        self._database = database
        self._authority = authority
        self._roster = roster
        self._enrolment = enrolment
        self._audit = audit
        self._stepping = asyncio.Lock()
        self._rings: Mapping[What, KeyRing] = {
            What.USER_CA: authority.users,
            What.HOST_CA: authority.hosts,
            What.HUB_KEY: hub_key,
        }

    async def listing(self, actor: Actor) -> list[Standing]:
        """How every key stands; raises Forbidden."""
        administrators_only(actor)
        async with self._database.reading() as session:
            return [await self._standing(session, what) for what in What]

    async def take(self, actor: Actor, what: What, step: Step, *, force: bool) -> Standing:
        """Take a step; gives how the key stands then. Raises Forbidden, Conflict for a step that is not due, StillInUse."""
        administrators_only(actor)
        async with self._stepping:
            ring = self._rings[what]
            before = ring.phase
            try:
                await self._step(actor, what, step, force=force)
            finally:
                if ring.phase is not before:  # also where it could not be recorded: the files have changed
                    log.info("rotated", what=str(what), step=str(step), phase=str(ring.phase), forced=force)
                    for listener in self.on_change:
                        listener()
                    await self._tell()
            async with self._database.reading() as session:
                return await self._standing(session, what)

    async def _step(self, actor: Actor, what: What, step: Step, *, force: bool) -> None:
        """Take it and record it, with the keys that were trusted until then. Raises as `take` does; where the store fails once
        the files have changed it is recorded later."""
        ring = self._rings[what]
        before = ring.phase
        told: dict[str, Value] = {"what": str(what), "step": str(step), "force": force}
        try:
            async with self._database.writing() as session:
                await check_current(session, actor)
                ring.check(step)
                left = await self._dependents(session, what)
                if left and not force:
                    raise StillInUse(_refusal(what, step, left))
                told["keys"] = [fingerprint(key) for key in ring.keys.trusted]
                told["left_behind"] = list(map(str, left))
                self._audit.record(session, Event.ROTATED, actor, owner=None, space_id=None, **told)
                await session.flush()
                ring.take(step, distrust=force and step is Step.RETIRE)
        except StoreUnavailable:
            if ring.phase is not before:
                self._audit.note(Event.ROTATED, actor, owner=None, space_id=None, **told)
            raise

    async def _tell(self) -> None:
        """Tell every connected agent whom to trust now."""
        await self._roster.tell_each(
            "membership.changed", lambda agent: self._enrolment.member(agent.space_id, SpaceName(agent.name), agent.principal)
        )

    async def _standing(self, session: AsyncSession, what: What) -> Standing:
        ring = self._rings[what]
        keys = ring.keys
        return Standing(
            what=what,
            phase=ring.phase,
            since=ring.since,
            active=fingerprint(keys.active),
            next=fingerprint(keys.next) if keys.next else None,
            old=fingerprint(keys.old) if keys.old else None,
            due=DUE[ring.phase],
            dependents=await self._dependents(session, what),
        )

    async def _dependents(self, session: AsyncSession, what: What) -> list[Dependents]:
        """Who would be left behind by the step that is due. Who pins the hub's key has nowhere to say so."""
        ring = self._rings[what]
        if what is What.HUB_KEY or ring.phase is Phase.STABLE:
            return []
        wanted = fingerprint(ring.keys.newest)
        found = [await spaces_without(session, wanted)]
        if ring.phase is Phase.PREPARED and what is What.HOST_CA:
            found.append(await people_who_have_not_asked(session, ring.since))
        if ring.keys.old is not None:
            found.append(await certificates_by(session, fingerprint(ring.keys.old), hosts=what is What.HOST_CA))
            if what is What.HOST_CA:
                found.append(await tokens_without(session, wanted))
        return [dependents for dependents in found if dependents.count]


def _refusal(what: What, step: Step, left: list[Dependents]) -> str:
    """The sentence that says who is in the way, and what to do."""
    who = "; ".join(map(str, left))
    return f"{step} of the {what} would leave some behind: {who}. Wait, see to them (`knot rotate status`), or give --force"
