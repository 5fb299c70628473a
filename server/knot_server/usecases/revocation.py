"""Make keys and certificates void: recorded, told to every connected agent, and remembered until they have expired.

In two steps: `record` within the transaction that takes the right away, and `publish` once it is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql.elements import ColumnElement

from knot_keys.authority import Authority
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.krl import make_krl
from knot_keys.revocation import RevocationList
from knot_server.roster import Roster
from knot_server.store.database import Database
from knot_server.store.schema import Certificate, RevokedCertificate, RevokedKey
from knot_server.usecases.audit import Audit
from knot_ssh.buckets import Bucket, Pace
from knot_ssh.errors import KnotError, StoreUnavailable
from knot_ssh.names import Owner, SpaceId
from knot_ssh.tasks import Tasks
from knot_ssh.wire import Revoked

log = structlog.get_logger(__name__)

GRACE = 120
"""Seconds that a revocation outlives what it revokes, for clocks that are behind ours."""
WHOLE_MAX = 1_000
"""Entries up to which agents are told the whole list at each change, some 20 KB; of a longer one they are told what is new."""
HOUR, DAY = 3600, 24 * 3600
OF_SPACES, OF_PEOPLE = DAY, 30 * DAY
"""Seconds for which a certificate that has expired is known, of a space or a person: what was opened by it may go on, and may
have to be ended. What an agent opened ends with its enrolled key, however old it is; a person has none."""
ROUNDS = Pace(burst=20, rate=2)
"""How often all agents are told. Each time takes the server a quarter of a millisecond for each of them, so that whoever
revokes without end would have it do nothing else."""
AGAIN = 1.0
"""Seconds until the store is asked again for a list that was changed, and has to take effect."""
PART = 20_000
"""Serials, and keys, in one message: 1.5 MB at most, and a line may have 2 MB (`rpc.LINE_LIMIT`). There is no bound to the
list: a longer one comes in several messages."""
_FREE = update(RevokedCertificate).values(frees_name=True)


class Revocations:
    """The list of what is revoked. `current` is the copy that the hub decides by."""

    def __init__(self, database: Database, authority: Authority, roster: Roster, audit: Audit, lifetime: int) -> None:
        self._database = database
        self._authority = authority
        self._roster = roster
        self._audit = audit
        self._lifetime = lifetime
        self.current = RevocationList()
        self._refreshing = asyncio.Lock()  # an older reading must not overtake a newer one
        self._krl: tuple[RevocationList, frozenset[str], bytes] | None = None
        self._making = asyncio.Lock()
        self.on_change: list[Callable[[], None]] = []
        self._tasks = Tasks()
        self._version, self._version_told = 0, 0
        self._told = self.current
        """What every agent has been told."""
        self._rounds = Bucket(ROUNDS.rate, ROUNDS.burst, time.monotonic())
        self._turn = asyncio.Lock()
        self._telling: asyncio.Future[list[int]] | None = None

    async def load(self) -> None:
        """Read the list at start, dropping what has run out."""
        await self._drop_old()
        await self.refresh()
        self._told, self._version_told = self.current, self._version

    async def run(self) -> None:
        """Drop what has run out, now and then, until cancelled."""
        while True:
            await asyncio.sleep(HOUR)
            try:
                await self._drop_old()
            except KnotError as error:
                log.error("old certificates not dropped", reason=str(error), detail=error.detail)

    async def close(self) -> None:
        """Tell nobody any more."""
        await self._tasks.cancel()

    async def record(
        self,
        session: AsyncSession,
        which: ColumnElement[bool],
        enrolled_key: str | None,
        reason: str,
        *,
        owner: Owner | str,
        frees_name: bool = False,
    ) -> int:
        """Make the certificates that `which` selects void, and the enrolled key (an OpenSSH line) if one is given.

        Those that have expired are among them: what they have opened ends as well. Gives how many became void by it.
        `frees_name`: their names may be given out again at once.
        """
        now = int(time.time())
        is_new = RevokedCertificate.serial.is_(None)
        both = select(Certificate).outerjoin(RevokedCertificate, RevokedCertificate.serial == Certificate.serial)
        voided = list(await session.scalars(both.where(which, is_new)))
        session.add_all(_void(certificate, reason, now + self._lifetime, frees_name=frees_name) for certificate in voided)
        if frees_name:
            serials = select(Certificate.serial).where(which)
            await session.execute(_FREE.where(RevokedCertificate.serial.in_(serials)))
        if enrolled_key:
            key = fingerprint(parse_public_key(enrolled_key))
            expires_at = now + self._lifetime + GRACE
            await session.merge(RevokedKey(fingerprint=key, reason=reason, expires_at=expires_at, owner=str(owner)))
        return len(voided)

    async def refresh(self) -> None:
        """Decide by what is committed from now on."""
        now = int(time.time())
        async with self._refreshing, self._database.reading() as session:
            serials: Iterable[int] = await session.scalars(
                select(RevokedCertificate.serial).where(RevokedCertificate.expires_at > now)
            )
            keys: Iterable[str] = await session.scalars(select(RevokedKey.fingerprint).where(RevokedKey.expires_at > now))
            found = RevocationList.of(serials, keys)
            if found != self.current:
                self.current = found
                self._version += 1

    async def publish(self, space_ids: Sequence[SpaceId], reason: str) -> int:
        """Make what was recorded take effect: decide by it, end what the hub carries by it, tell every agent, and dismiss those
        of these spaces. Gives how many agents were told.

        All are told at once and nobody is waited for long: an agent that does not read must not delay its own end, nor that
        of others. Where the store does not answer it takes effect as soon as that does; raises StoreUnavailable then.
        """
        try:
            await self.refresh()
        except StoreUnavailable:
            self._tasks.start(self._publish_later(space_ids, reason))
            raise
        return await self._spread(space_ids, reason)

    async def _publish_later(self, space_ids: Sequence[SpaceId], reason: str) -> None:
        while True:
            await asyncio.sleep(AGAIN)
            with contextlib.suppress(StoreUnavailable):
                await self.refresh()
                break
        await self._spread(space_ids, reason)

    async def _spread(self, space_ids: Sequence[SpaceId], reason: str) -> int:
        for listener in self.on_change:
            listener()
        leaving = [agent for agent in map(self._roster.get, space_ids) if agent]
        farewells = [self._roster.dismiss(agent, reason) for agent in leaving]
        told = asyncio.ensure_future(self._tell())
        await asyncio.gather(told, *farewells)
        return told.result()

    async def _tell(self) -> int:
        """Have every agent told of the present list, if they were not; gives how many were. When it is not the time for it yet,
        all who wait share one round."""
        mine = self._version
        async with self._turn:
            is_news = self._version_told < mine
            if is_news:
                await asyncio.sleep(self._rounds.take(time.monotonic()) if len(self._roster) else 0)
                news = _news(self._told, self.current)
                self._told, self._version_told = self.current, self._version
                self._telling = asyncio.gather(*(self._roster.tell("keys.revoked", part) for part in split(news)))
        counts = await asyncio.shield(self._telling) if self._telling else []
        return min(counts, default=0) if is_news else len(self._roster)

    async def krl(self) -> bytes:
        """The list as OpenSSH reads it, made when it is first asked for; raises KrlUnavailable."""
        async with self._making:
            current, cas = self.current, self._authority.names
            if self._krl is None or self._krl[0] is not current or self._krl[1] != cas:
                self._krl = current, cas, await make_krl(current, self._authority.ca_keys)
            return self._krl[2]

    async def _drop_old(self) -> None:
        now = int(time.time())
        async with self._database.writing() as session:
            of_spaces = Certificate.space_id.is_not(None)
            await session.execute(delete(Certificate).where(of_spaces, Certificate.expires_at < now - OF_SPACES))
            await session.execute(delete(Certificate).where(~of_spaces, Certificate.expires_at < now - OF_PEOPLE))
            for table in (RevokedCertificate, RevokedKey):
                await session.execute(delete(table).where(table.expires_at < now))

    def parts(self) -> list[Revoked]:
        """The whole list, in as many messages as it takes."""
        return split(_message(self.current.serials, self.current.keys))


def split(message: Revoked) -> list[Revoked]:
    """The same in messages that are short enough; all but the first add to it."""
    serials, keys = message.serials, message.keys
    starts = range(0, max(len(serials), len(keys), 1), PART)
    return [
        Revoked(serials=serials[at : at + PART], keys=keys[at : at + PART], whole=message.whole and at == 0) for at in starts
    ]


def _message(serials: Iterable[int], keys: Iterable[str], *, whole: bool = True) -> Revoked:
    return Revoked(serials=sorted(serials), keys=sorted(keys), whole=whole)


def _news(before: RevocationList, now: RevocationList) -> Revoked:
    """The whole list while that is short, so that agents forget what has run out as well."""
    if len(now.serials) + len(now.keys) <= WHOLE_MAX:
        return _message(now.serials, now.keys)
    return _message(now.serials - before.serials, now.keys - before.keys, whole=False)


def _void(certificate: Certificate, reason: str, until: int, *, frees_name: bool) -> RevokedCertificate:
    """`until` is for those that have expired: who is away for a while is to hear of them, too."""
    has_expired = certificate.expires_at <= time.time()
    return RevokedCertificate(
        serial=certificate.serial,
        reason=reason,
        expires_at=(until if has_expired else certificate.expires_at) + GRACE,
        owner=certificate.owner,
        key_id=certificate.key_id,
        frees_name=frees_name,
    )
