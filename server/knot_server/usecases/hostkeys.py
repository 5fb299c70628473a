"""Change the host key of a space's endpoint for another, in the phases of `knot_keys.keyring`.

Whoever checks host certificates, as agents and `knot ssh` do, need not hear of it. The phases are for clients that pin the
plain key, such as paramiko: they can take over the next one from `host_keys` before it is shown. The agent makes the key and
holds it; here is only its public half.
"""

from __future__ import annotations

from knot_keys.keyfiles import fingerprint, parse_public_key, public_line
from knot_keys.keyring import DUE, Phase, Step
from knot_server.actor import Actor
from knot_server.roster import Present, Roster
from knot_server.store.database import Database
from knot_server.store.schema import Space
from knot_server.usecases.audit import Audit, Event
from knot_server.usecases.lookup import visible_space
from knot_ssh.errors import Conflict, KnotError, NotRunning, Unavailable
from knot_ssh.wire import HostKey, Nothing


class HostKeys:
    """The use case, for a space's owner."""

    def __init__(self, database: Database, roster: Roster, audit: Audit) -> None:
        self._database = database
        self._roster = roster
        self._audit = audit

    async def take(self, actor: Actor, reference: str, step: Step) -> Space:
        """Take a step; gives the space as it is then.

        Raises NotFound, NotRunning, Unavailable, or Conflict where the step is not the one that is due.
        """
        async with self._database.reading() as session:
            space = await visible_space(session, actor, reference)
        _check(space, step)
        following = await self._ask(space, step)
        async with self._database.writing() as session:
            space = await visible_space(session, actor, space.id)
            if step is Step.PREPARE:
                _check(space, step)  # somebody else may have been faster
                space.host_key_next = following
            elif step is Step.RETIRE:
                space.host_key_old = None
            elif space.host_key != following:
                raise Unavailable("the agent of that space did not show its new host key; try again")
            keys = [fingerprint(parse_public_key(key)) for key in space.host_keys]
            self._audit.record(
                session,
                Event.ROTATED,
                actor,
                owner=space.owner,
                space_id=space.id,
                space=space.name,
                what="host key",
                step=str(step),
                keys=keys,
            )
        return space

    async def _ask(self, space: Space, step: Step) -> str | None:
        """Have the agent do its part; gives the next host key. On activation it has itself certified, and so it is recorded."""
        if step is Step.PREPARE:
            answer = await self._agent(space).ask("host_key.prepare", Nothing(), HostKey)
            return _checked(answer.public_key)
        if step is Step.ACTIVATE:
            assert space.host_key_next
            await self._agent(space).ask("host_key.activate", HostKey(public_key=space.host_key_next), Nothing)
            return space.host_key_next
        return None

    def _agent(self, space: Space) -> Present:
        agent = self._roster.get(space.space_id)
        if agent is None:
            raise NotRunning(f"the space {space.name} is not running: its agent makes the key")
        return agent


def phase_of(space: Space) -> Phase:
    """Where the space's host key stands."""
    if space.host_key_next:
        return Phase.PREPARED
    return Phase.ACTIVATED if space.host_key_old else Phase.STABLE


def change_host_key(space: Space, line: str) -> None:
    """The endpoint shows this host key from now on: the one that was prepared, or another, which nobody could be told of."""
    if line == space.host_key:
        return
    space.host_key_old = space.host_key if line == space.host_key_next else None
    space.host_key, space.host_key_next = line, None


def _check(space: Space, step: Step) -> None:
    if space.agentless:
        raise Conflict(
            "an ordinary sshd has the machine's own host key: change it there, and run the script of `knot space sshd`"
        )
    if DUE[phase_of(space)] is not step:
        due = DUE[phase_of(space)]
        raise Conflict(f"the host key of {space.name} is {phase_of(space)}: the next step is {due!s}, not {step!s}")


def _checked(line: str) -> str:
    try:
        return public_line(parse_public_key(line))
    except KnotError as error:
        raise Unavailable(f"the agent of that space named a host key that is none: {error}") from None
