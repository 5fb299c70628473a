"""Rotation of the server's keys: who may, who is waited for, and what everybody is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from knot_keys.certificates import CertificateRefused, check_hub, read_certificate
from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_keys.keyring import KeyRing, Phase, Step
from knot_server.roster import Present
from knot_server.store.schema import Space
from knot_server.usecases.hostkeys import HostKeys
from knot_server.usecases.rotation import Rotations, What
from knot_ssh.errors import Conflict, Forbidden, NotFound, NotRunning, StillInUse, StoreUnavailable
from knot_ssh.rpc import Method
from knot_ssh.wire import HostKey, Membership, Nothing
from tests.unit.conversations import conversation
from tests.unit.knot_server.conftest import ALICE, BOB, ROOT, NoLine, World

CAS = [What.USER_CA, What.HOST_CA]
STEPS = list(Step)


@dataclass
class Scene:
    """A server whose keys are rotated, and alice's enrolled `backend`."""

    world: World
    rotations: Rotations
    space: Space

    async def take(self, what: What, step: Step, *, force: bool = False) -> list[str]:
        """Take a step as the administrator; gives the kinds of those who would be left behind by the next one."""
        standing = await self.rotations.take(ROOT, what, step, force=force)
        return [dependents.kind for dependents in standing.dependents]

    async def confirm(self) -> None:
        """The space's agent trusts all there is."""
        await self.world.enrolment.trusts(self.space.space_id, KEY, self.world.authority.names)

    async def left(self, what: What) -> list[str]:
        listing = await self.rotations.listing(ROOT)
        return [dependents.kind for standing in listing if standing.what is what for dependents in standing.dependents]


KEY = new_key("agent").convert_to_public()


@pytest.fixture
async def scene(world: World) -> Scene:
    hub_key = KeyRing.create(world.folder, "hub_key", "hub")
    rotations = Rotations(world.database, world.authority, hub_key, world.roster, world.enrolment, world.audit)
    space, token = await world.invited(ALICE, "backend")
    await world.enrolment.redeem(token.id, KEY)
    world.sql("DELETE FROM join_tokens")
    return Scene(world, rotations, space)


async def test_administrators_only(scene: Scene) -> None:
    """Nobody else may look or take a step."""
    with pytest.raises(Forbidden):
        await scene.rotations.listing(ALICE)
    with pytest.raises(Forbidden):
        await scene.rotations.take(ALICE, What.USER_CA, Step.PREPARE, force=True)
    assert scene.world.authority.users.phase is Phase.STABLE


@pytest.mark.parametrize("what", CAS)
async def test_waits_for_spaces(scene: Scene, what: What) -> None:
    """A CA is not activated while an enrolled space has not said that it trusts it; the refusal counts and names it."""
    assert await scene.take(what, Step.PREPARE) == ["spaces"]
    with pytest.raises(StillInUse, match=r"spaces that do not know the new key yet: 1 \(alice/backend\)"):
        await scene.take(what, Step.ACTIVATE)
    await scene.confirm()
    assert await scene.left(what) == []
    await scene.take(what, Step.ACTIVATE)


@pytest.mark.parametrize("what", CAS)
async def test_waits_for_certificates(scene: Scene, what: What) -> None:
    """A CA is not retired while a certificate by it is good; one that was revoked or has run out does not count."""
    await scene.world.certified(scene.space, KEY, new_key("host"))
    await scene.take(what, Step.PREPARE)
    await scene.confirm()
    assert await scene.take(what, Step.ACTIVATE) == ["certificates"]
    with pytest.raises(StillInUse, match=r"certificates by the old CA that are good still: 1 \(alice/backend\)"):
        await scene.take(what, Step.RETIRE)
    await scene.world.certified(scene.space, KEY, new_key("host"))  # another one does not make it void
    assert await scene.left(what) == ["certificates"]
    scene.world.sql("UPDATE certificates SET expires_at = ?", int(time.time()) - 1)
    assert await scene.take(what, Step.RETIRE) == []


async def test_waits_for_tokens(scene: Scene) -> None:
    """The host CA is not retired while a join token names it alone; tokens made since it was prepared name both."""
    await scene.world.token(ALICE, scene.space)
    await scene.take(What.HOST_CA, Step.PREPARE)
    both = await scene.world.token(ALICE, scene.space)
    assert tuple(both.host_cas) == scene.world.authority.host_cas
    await scene.confirm()
    assert await scene.take(What.HOST_CA, Step.ACTIVATE) == ["tokens"]
    scene.world.sql("UPDATE join_tokens SET uses_left = 0 WHERE id != ?", both.id)
    assert await scene.left(What.HOST_CA) == []


async def test_waits_for_people(scene: Scene) -> None:
    """The host CA is not activated while somebody's certificate is from before it was prepared."""
    line = public_line(new_key("alice"))
    await scene.world.enrolment.certify_person(ALICE, line, None)
    scene.world.sql("UPDATE certificates SET issued_at = issued_at - 60")
    await scene.take(What.HOST_CA, Step.PREPARE)
    await scene.confirm()
    assert await scene.left(What.HOST_CA) == ["people"]
    await scene.world.enrolment.certify_person(ALICE, line, None)
    scene.world.sql("UPDATE certificates SET issued_at = issued_at + 60 WHERE issued_at > ?", int(time.time()) - 30)
    assert await scene.left(What.HOST_CA) == []


@pytest.mark.parametrize("what", CAS)
async def test_forced(scene: Scene, what: What) -> None:
    """By force every step is taken, and a CA that is retired so is named to agents as one to cut for."""
    await scene.world.certified(scene.space, KEY, new_key("host"))
    ring = scene.world.authority.users if what is What.USER_CA else scene.world.authority.hosts
    old = fingerprint(ring.keys.active)
    for step in STEPS:
        await scene.take(what, step, force=True)
    assert scene.world.enrolment.membership(scene.space).distrusted == [old]
    assert ring.phase is Phase.STABLE


async def test_hub_key_waits_for_nobody(scene: Scene) -> None:
    """The hub's key goes through its phases at once: who checks certificates need not know it."""
    for step in STEPS:
        assert await scene.take(What.HUB_KEY, step) == []


async def test_step_that_is_not_due(scene: Scene) -> None:
    """Another step than the one that is due is refused, by force too, and changes nothing."""
    for step in (Step.ACTIVATE, Step.RETIRE):
        with pytest.raises(Conflict, match="the next step is prepare"):
            await scene.take(What.USER_CA, step, force=True)
    assert scene.world.authority.users.phase is Phase.STABLE


async def test_hub_stays_behind(scene: Scene) -> None:
    """The hub is certified by the old host CA until that is retired, and by the new one then."""
    authority = scene.world.authority
    first = authority.host_ca_key
    for step in STEPS:
        shown = read_certificate(authority.certify_hub(new_key("hub"), 60).line)
        check_hub(shown, [first])
        await scene.take(What.HOST_CA, step, force=True)
    shown = read_certificate(authority.certify_hub(new_key("hub"), 60).line)
    with pytest.raises(CertificateRefused, match="unknown CA"):
        check_hub(shown, [first])
    check_hub(shown, authority.host_cas)


async def test_everybody_is_told(scene: Scene) -> None:
    """At each step every connected agent hears of the CAs to trust, the one that signs first."""
    told: asyncio.Queue[Membership] = asyncio.Queue()

    async def changed(membership: Membership) -> None:
        told.put_nowait(membership)

    async with connected(scene, {"membership.changed": (Membership, changed)}):
        for step, count in zip(STEPS, (2, 2, 1), strict=True):
            await scene.take(What.USER_CA, step, force=True)
            membership = await asyncio.wait_for(told.get(), 5)
            assert membership.user_cas == scene.world.authority.users.keys.lines
            assert (len(membership.user_cas), membership.space) == (count, "backend")


@contextlib.asynccontextmanager
async def connected(scene: Scene, methods: dict[str, Method]) -> AsyncIterator[None]:
    """The space's agent is connected, and answers these methods."""
    async with conversation({}, methods) as (peer, _):
        agent = Present(scene.space.space_id, scene.space.principal, peer, NoLine(), name="backend")
        scene.world.roster.arrive(agent)
        yield
        scene.world.roster.leave(agent)


async def test_every_step_is_recorded(scene: Scene) -> None:
    """Each step stands in the audit record: who, which key, whether by force; a refused one does not."""
    await scene.take(What.HOST_CA, Step.PREPARE)
    with pytest.raises(StillInUse):
        await scene.take(What.HOST_CA, Step.ACTIVATE)
    await scene.take(What.HOST_CA, Step.ACTIVATE, force=True)
    rows = scene.world.sql("SELECT actor, fields FROM audit WHERE event = 'rotated' ORDER BY id")
    found = [(actor, json.loads(str(fields))) for actor, fields in rows]
    assert [(actor, entry["what"], entry["step"], entry["force"]) for actor, entry in found] == [
        ("root", "host-ca", "prepare", False),
        ("root", "host-ca", "activate", True),
    ]
    assert "alice/backend" in found[1][1]["left_behind"][0]


@pytest.mark.parametrize("what", CAS)
async def test_takes_effect_though_it_is_not_recorded(scene: Scene, what: What, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store fails when the files have changed, everybody goes by the files, and the record hears of it later."""
    for step in (Step.PREPARE, Step.ACTIVATE):
        await scene.take(what, step, force=True)
    changes: list[Phase] = []
    scene.rotations.on_change.append(lambda: changes.append(scene.world.authority.users.phase))
    keep = scene.world.database._journal.keep

    async def fails(_entries: object) -> None:
        monkeypatch.setattr(scene.world.database._journal, "keep", keep)
        raise StoreUnavailable

    monkeypatch.setattr(scene.world.database._journal, "keep", fails)
    with pytest.raises(StoreUnavailable):
        await scene.take(what, Step.RETIRE, force=True)
    assert len(changes) == 1
    await scene.world.audit.flush()
    *_, (last,) = scene.world.sql("SELECT fields FROM audit WHERE event = 'rotated' ORDER BY id")
    assert {"what": str(what), "step": "retire", "force": True}.items() <= json.loads(str(last)).items()


async def test_only_known_cas_are_noted(scene: Scene) -> None:
    """What an agent says it trusts is noted as far as it is ours."""
    await scene.world.enrolment.trusts(scene.space.space_id, KEY, ["SHA256:other", *scene.world.authority.names])
    [(trusts,)] = scene.world.sql("SELECT trusts FROM spaces")
    assert set(str(trusts).split()) == scene.world.authority.names


# The host key of a space


@pytest.fixture
def keys(scene: Scene) -> HostKeys:
    return HostKeys(scene.world.database, scene.world.roster, scene.world.audit)


async def test_host_key_of_a_space(scene: Scene, keys: HostKeys) -> None:
    """The agent makes the next key, which is listed beside the present one; it changes over, and the former one is listed until
    it is retired."""
    first, second = new_key("first"), new_key("second")
    await scene.world.certified(scene.space, KEY, first)

    async def prepare(_request: Nothing) -> HostKey:
        return HostKey(public_key=public_line(second))

    async def activate(key: HostKey) -> None:
        assert key.public_key == public_line(second)
        await scene.world.certified(scene.space, KEY, second)

    seen = []
    async with connected(scene, {"host_key.prepare": (Nothing, prepare), "host_key.activate": (HostKey, activate)}):
        for step in STEPS:
            space = await keys.take(ALICE, "backend", step)
            seen.append([key == public_line(second) for key in space.host_keys])
    assert seen == [[False, True], [True, False], [True]]


async def test_host_key_takes_an_agent_and_its_owner(scene: Scene, keys: HostKeys) -> None:
    """It is refused while the agent is away, to other owners, and out of turn."""
    with pytest.raises(NotRunning):
        await keys.take(ALICE, "backend", Step.PREPARE)
    with pytest.raises(NotFound):
        await keys.take(BOB, "backend", Step.PREPARE)
    with pytest.raises(Conflict, match="the next step is prepare"):
        await keys.take(ALICE, "backend", Step.RETIRE)


async def test_unannounced_host_key(scene: Scene) -> None:
    """A host key that the agent has lost and made anew is listed alone."""
    for number in range(2):
        key = new_key(str(number))
        await scene.world.certified(scene.space, KEY, key)
    space = await scene.world.enrolment.space(scene.space.space_id)
    assert space
    assert space.host_keys == [public_line(key)]
