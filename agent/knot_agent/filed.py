"""The forwards of the agent's settings file: read again whenever it changes, and held to what it said when it was good last.

The file names spaces, forwards need targets. The hub says which is which: when it is connected, for every name anew, so
that a space that was deleted and made again is followed; for names that it does not know again and again. What it said is
remembered, for a start without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial

import structlog

from knot_agent.filewatch import QUIET, looks
from knot_agent.forwards import Filed, Forwards
from knot_agent.memory import Memory
from knot_agent.settings import AgentSettings
from knot_agent.settingsfile import SettingsFile
from knot_ssh.errors import BadInput, KnotError, NotFound, OtherZone
from knot_ssh.forwardsfile import FiledForward
from knot_ssh.names import BIND_HOST, Port, SpaceId
from knot_ssh.retrying import backoff, until_done
from knot_ssh.tasks import Tasks
from knot_ssh.wire import ForwardOrder, ForwardSeen, ForwardStatus, Target

log = structlog.get_logger(__name__)

LONGEST_WAIT = 30.0
"""Seconds between two questions for a space that the hub does not know, at most."""
QUESTIONS_AT_ONCE = 32
"""The hub works on twice as many requests of one agent."""

LocateByName = Callable[[str], Awaitable[Target]]
"""Asks the hub for a space by name or id; raises NotFound when there is none, Unavailable when the hub is away."""


class FiledForwards:
    """Keeps the forwards of the settings file; without a file there are none."""

    def __init__(
        self,
        file: SettingsFile | None,
        own: SpaceId,
        forwards: Forwards,
        memory: Memory,
        locate: LocateByName,
        tell: Callable[[ForwardSeen], None] = lambda _seen: None,
    ) -> None:
        self._file = file
        self._own = own
        self._forwards = forwards
        self._memory = memory
        self._locate = locate
        self._tell = tell
        self._told: dict[Port, ForwardSeen] = {}
        self._entries: list[FiledForward] = []
        self._seen: bytes | str | None = None
        self._changed_settings: list[str] = []
        self._unknown: set[str] = set()
        self._doubtful: set[str] = set()
        self._failures = 0
        self._news = asyncio.Event()
        self._putting = asyncio.Lock()
        self._room = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._tasks = Tasks()

    async def start(self) -> None:
        """Have the forwards stand, by what is remembered of their targets, and look after them from now on."""
        if self._file is None:
            self._memory.keep_filed([], {})
            return
        self._entries = self._memory.filed
        self._told = _sights(self._entries, self._memory.filed_targets)  # before the agent was started again
        await self._read(self._file)
        await self._put({})
        self._tasks.start(until_done(self._keep_asking, _nothing_more_to_say))
        if not self._file.is_pipe:
            self._tasks.start(until_done(partial(self._follow, self._file), _nothing_more_to_say))

    async def close(self) -> None:
        """Follow the file no longer; its forwards stay."""
        await self._tasks.cancel()

    def ask_again(self) -> None:
        """The hub is back: it may know better."""
        self._ask(self._names)

    def heard(self, target: Target) -> None:
        """News of a space from the hub: one that is gone, or has another name now, is not what the file means."""
        self._ask({name for name in self._names_of(target.id) if not _means(name, target)})

    def missed(self, space_id: SpaceId) -> None:
        """The hub knows this space no more."""
        self._ask(self._names_of(space_id))

    # The file

    async def _follow(self, file: SettingsFile) -> None:
        async with contextlib.aclosing(looks(file.path)) as moments:
            async for _ in moments:
                if await self._read(file):
                    await self._put({})
                    self._ask(self._missing)

    async def _read(self, file: SettingsFile) -> bool:
        """Take over what the file says; gives whether that is something else than before.

        What is wrong with it is logged once, and shown for as long as it is so.
        """
        seen = await self._steady(file)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            reading = await asyncio.to_thread(file.understand, seen)
            if reading.forwards is None and self._entries:
                raise BadInput(file.emptied)
        except BadInput as error:
            self._forwards.file_error = str(error)
            log.error("forwards of the file stay as they were", reason=str(error))
            return file.forbids_remote_bind(seen) and self._withdraw()
        self._forwards.file_error = None
        self._entries = reading.forwards or []
        self._compare(file.settings, reading.settings)
        log.info("forwards of the file read", file=str(file.path), forwards=len(self._entries))
        return True

    def _withdraw(self) -> bool:
        """Others are not to reach forwards any more; gives whether some were bound for them."""
        before = self._entries
        self._entries = [entry for entry in before if entry.bind == BIND_HOST]
        return self._entries != before

    async def _steady(self, file: SettingsFile) -> bytes | str:
        """What is in the file, once it stays so for a moment: it may be being written."""
        seen = await asyncio.to_thread(file.look)
        while self._seen not in (None, seen):
            await asyncio.sleep(QUIET)
            before, seen = seen, await asyncio.to_thread(file.look)
            if seen == before:
                break
        return seen

    def _compare(self, used: AgentSettings, read: AgentSettings) -> None:
        """Say once which settings have changed, since they are not used before the next start."""
        changed = [name for name in AgentSettings.model_fields if getattr(read, name) != getattr(used, name)]
        if changed and changed != self._changed_settings:
            log.warning("settings take effect at the next start", changed=", ".join(changed))
        self._changed_settings = changed

    # What the names in it mean

    @property
    def _names(self) -> set[str]:
        return {entry.space for entry in self._entries}

    @property
    def _missing(self) -> set[str]:
        """The names of which nobody has said yet what they mean."""
        return self._names - self._memory.filed_targets.keys()

    def _names_of(self, space_id: SpaceId) -> set[str]:
        """What the file calls this space."""
        return {name for name, target in self._memory.filed_targets.items() if target.id == space_id}

    def _ask(self, names: Collection[str]) -> None:
        """Have the hub asked for these at once."""
        if names:
            self._doubtful |= set(names)
            self._failures = 0
            self._news.set()

    async def _keep_asking(self) -> None:
        """Until there is nothing more to know; then wait for news."""
        while True:
            self._news.clear()
            names = (self._doubtful | self._missing) & self._names
            self._doubtful = set()
            found: dict[str, Target | None] = {}
            await asyncio.gather(*(self._find(name, found) for name in sorted(names)))
            self._doubtful |= names - found.keys()
            if found:
                await self._put(found)
            open_questions = self._doubtful | self._missing
            self._failures = self._failures + 1 if open_questions else 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff(self._failures, random.random(), LONGEST_WAIT) if open_questions else None):
                    await self._news.wait()

    async def _find(self, name: str, found: dict[str, Target | None]) -> None:
        """Ask the hub for this one; None is its answer when it knows none, and without an answer nothing is put down."""
        async with self._room:
            try:
                found[name] = await self._meant_by(name)
            except KnotError:
                return  # it is away, and speaks first when it is back
            except Exception as error:
                log.error("unforeseen error, trying again", exc_info=error)

    async def _meant_by(self, name: str) -> Target | None:
        """The space of that name; where there is none, the one that had it before, if it only has another name now."""
        before = self._memory.filed_targets.get(name)
        for reference in (name, *([before.id] if before else [])):
            with contextlib.suppress(NotFound, OtherZone):
                target = await self._locate(reference)
                if not target.gone:
                    return target
        return None

    # What is to stand

    async def _put(self, found: dict[str, Target | None]) -> None:
        """Have the forwards stand as the file says, with what was found now; what is not known yet is shown all the same."""
        async with self._putting:
            self._note_unknown(found)
            targets = {name: target for name, target in (self._memory.filed_targets | found).items() if target}
            names = self._names
            self._memory.keep_filed(self._entries, {name: target for name, target in targets.items() if name in names})
            targets = self._memory.filed_targets
            known = {name: target for name, target in targets.items() if target.id != self._own}
            self._tell_changes(_sights(self._entries, known))
            await self._forwards.set_filed(
                [_filed(entry, known[entry.space]) for entry in self._entries if entry.space in known],
                [self._unresolved(entry) for entry in self._entries if entry.space not in known],
            )

    def _tell_changes(self, sights: dict[Port, ForwardSeen]) -> None:
        """What the file makes and stops, for the audit record; what is replaced is made anew."""
        for port, seen in sights.items():
            if self._told.get(port) != seen:
                self._tell(seen)
        for port in self._told.keys() - sights.keys():
            self._tell(self._told[port].model_copy(update={"what": "forward stopped"}))
        self._told = sights

    def _note_unknown(self, found: dict[str, Target | None]) -> None:
        for name, target in found.items():
            if target:
                self._unknown.discard(name)
            elif name not in self._unknown:
                self._unknown.add(name)
                log.error("forwards of the file failed", reason=_unknown(name))
            if target and not _means(name, target):
                log.warning("the file calls a space by its old name", name=name, now=target.name)

    def _unresolved(self, entry: FiledForward) -> ForwardStatus:
        """How a forward stands whose target is not known."""
        if entry.space in self._unknown:
            reason = _unknown(entry.space)
        elif entry.space in self._missing:
            reason = "the server has not said yet which space that is"
        else:
            reason = f"a space cannot forward to itself: use port {entry.remote_port} directly"
        return ForwardStatus(
            local_port=entry.local_port,
            bind=entry.bind,
            origin="file",
            space=entry.space,
            space_id=None,
            remote_port=entry.remote_port,
            persistent=False,
            state="waiting" if entry.space in self._missing - self._unknown else "failed",
            reason=reason,
        )


def _sights(entries: Sequence[FiledForward], targets: Mapping[str, Target]) -> dict[Port, ForwardSeen]:
    """The forwards whose targets are known, by port."""
    return {
        entry.local_port: ForwardSeen(
            what="forward made",
            by="file",
            local_port=entry.local_port,
            remote_port=entry.remote_port,
            target_id=targets[entry.space].id,
        )
        for entry in entries
        if entry.space in targets
    }


def _filed(entry: FiledForward, target: Target) -> Filed:
    order = ForwardOrder(local_port=entry.local_port, target=target, remote_port=entry.remote_port, persistent=False)
    return Filed(order, entry.bind)


def _means(name: str, target: Target) -> bool:
    """Whether the file means this space by that name."""
    return not target.gone and name in (target.name, target.id)


def _unknown(name: str) -> str:
    return f"there is no space {name!r} of yours in this zone"


def _nothing_more_to_say(_reason: str) -> None:
    """What nobody foresaw is in the log already."""
