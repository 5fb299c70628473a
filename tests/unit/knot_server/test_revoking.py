"""Orders to revoke: what becomes void, whose it must be, and what is left."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from knot_keys.certificates import LIFETIME
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_server.actor import Actor, Grant, Scope
from knot_server.store.schema import Space
from knot_server.usecases import revocation
from knot_server.usecases.revocation import GRACE, PART, WHOLE_MAX, split
from knot_server.usecases.revoking import Voided
from knot_ssh.buckets import Bucket
from knot_ssh.errors import (
    BadInput,
    Conflict,
    Forbidden,
    JoinRefused,
    KeyRefused,
    KnotError,
    NotAuthenticated,
    NotFound,
    StoreUnavailable,
)
from knot_ssh.names import Owner, SpaceName
from knot_ssh.rpc import LINE_LIMIT
from knot_ssh.wire import ForwardRequest, Revoked
from tests.unit.knot_server.conftest import ALICE, BOB, EU, ROOT, World

KEY, HOST, LAPTOP = new_key("agent"), new_key("host"), new_key("laptop")
NOBODY = Owner("nobody")


class Scene:
    """alice's space `backend`, joined and certified, and her laptop, certified too."""

    def __init__(self, world: World, space: Space, token: JoinToken) -> None:
        self.world = world
        self.space = space
        self.token = token
        self.revoking = world.revoking

    def serials(self, kind: str) -> list[int]:
        rows = self.world.sql("SELECT serial FROM certificates WHERE key_id LIKE ?", f"{kind}/%")
        return [int(str(serial)) for (serial,) in rows]

    @property
    def void(self) -> set[int]:
        return set(self.world.revocations.current.serials)

    async def certify(self) -> None:
        """What an agent does when it renews."""
        await self.world.certified(self.space, KEY.convert_to_public(), HOST)

    async def certify_laptop(self, actor: Actor = ALICE) -> int:
        issued, _ = await self.world.enrolment.certify_person(actor, public_line(LAPTOP), None)
        return issued.serial


@pytest.fixture
async def scene(world: World) -> Scene:
    space, token = await world.invited(ALICE, "backend")
    scene = Scene(world, space, token)
    await world.enrolment.redeem(token.id, KEY.convert_to_public())
    await scene.certify()
    await scene.certify_laptop()
    return scene


def recorded(world: World) -> list[dict[str, object]]:
    """What the audit record says of revocations."""
    rows = world.sql("SELECT actor, owner, fields FROM audit WHERE event = 'revoked'")
    return [{"actor": actor, "owner": owner, **json.loads(str(fields))} for actor, owner, fields in rows]


# A certificate


@pytest.mark.parametrize("kind", ["agent", "host", "person"])
async def test_certificate(scene: Scene, kind: str) -> None:
    """One certificate is void, whatever it is for, and no other; the record and the list have the reason."""
    [serial] = scene.serials(kind)
    voided = await scene.revoking.certificate(ALICE, serial, "leaked")
    assert voided == Voided(certificates=1)
    assert scene.void == {serial}
    [line] = recorded(scene.world)
    expected = {"actor": "alice", "owner": "alice", "kind": "certificate", "what": str(serial), "reason": "leaked"}
    assert expected.items() <= line.items()
    [entry] = await scene.revoking.listing(ALICE)
    assert (entry.what, entry.reason, entry.owner) == (str(serial), "leaked", "alice")
    assert entry.key_id.startswith(f"{kind}/alice/eu/")
    assert entry.until is not None
    assert entry.until > time.time() + GRACE


async def test_no_such_certificate(scene: Scene) -> None:
    """A serial that nobody has, one that is void already, and another's are told alike; nothing has changed or is recorded."""
    [serial] = scene.serials("agent")
    said = []
    for actor, number in ((ALICE, 1), (BOB, serial)):
        with pytest.raises(NotFound) as error:
            await scene.revoking.certificate(actor, number, "")
        said.append(str(error.value).replace(str(number), "N"))
    assert said[0] == said[1]
    assert scene.void == set()
    assert recorded(scene.world) == []
    await scene.revoking.certificate(ALICE, serial, "first")
    with pytest.raises(NotFound):
        await scene.revoking.certificate(ALICE, serial, "second")
    assert [entry.reason for entry in await scene.revoking.listing(ALICE)] == ["first"]


async def test_administrators_name_the_user(scene: Scene) -> None:
    """An administrator revokes anybody's by naming the user, and not by the serial alone; others name nobody else."""
    [serial] = scene.serials("agent")
    with pytest.raises(NotFound, match="for another's, name the user"):
        await scene.revoking.certificate(ROOT, serial, "")
    with pytest.raises(Forbidden):
        await scene.revoking.certificate(BOB, serial, "", user=ALICE.owner)
    with pytest.raises(NotFound, match="bob's"):
        await scene.revoking.certificate(ROOT, serial, "", user=BOB.owner)
    with pytest.raises(NotFound, match="no space 'backend' of bob's"):
        await scene.revoking.space(ROOT, "backend", "", user=BOB.owner)
    assert (await scene.revoking.certificate(ROOT, serial, "", user=ALICE.owner)).certificates == 1
    assert [line["actor"] for line in recorded(scene.world)] == ["root"]


# A space


async def test_space(scene: Scene) -> None:
    """All of the space's is void: key, certificates, unused tokens. Its agent hears why; the laptop's certificate is good."""
    unused = await scene.world.token(ALICE, scene.space)
    async with scene.world.running(scene.space) as agent:
        voided = await scene.revoking.space(ALICE, "backend", "stolen")
        assert "the space backend was revoked: stolen" in await agent.hears(1)
    assert voided == Voided(certificates=2, keys=1, join_tokens=2, agents_told=1)
    assert scene.void == {*scene.serials("agent"), *scene.serials("host")}
    assert scene.world.revocations.current.has_key(KEY)
    assert await scene.world.enrolment.enrolled_key(scene.space.space_id) is None
    with pytest.raises(KeyRefused):
        await scene.certify()
    for token in (scene.token, unused):
        with pytest.raises(JoinRefused, match="make a new one"):
            await scene.world.enrolment.redeem(token.id, new_key("another").convert_to_public())


async def test_space_stays(scene: Scene) -> None:
    """Name, id and stored forwards stay, and with a new token another key joins; the old one does not."""
    await scene.world.space(ALICE, "near")
    request = {"local_port": 1, "space": "near", "remote_port": 2, "persistent": True, "force": True}
    await scene.world.forwarding.forward(ALICE, "backend", ForwardRequest.model_validate(request))
    await scene.revoking.space(ALICE, "backend", "")
    assert [space.name for space in await scene.world.spaces.listing(ALICE)] == ["backend", "near"]
    assert len(await scene.world.forwarding.stored(scene.space.space_id)) == 1
    token = await scene.world.token(ALICE, scene.space)
    with pytest.raises(JoinRefused, match="replaced or revoked"):
        await scene.world.enrolment.redeem(token.id, KEY.convert_to_public())
    await scene.world.enrolment.redeem(token.id, new_key("another").convert_to_public())


async def test_name_of_a_revoked_space_is_held_back(scene: Scene) -> None:
    """Who has what was stolen still holds a host certificate for the name: it goes to no other space till that has run out."""
    await scene.revoking.space(ALICE, "backend", "stolen")
    await scene.world.renaming.rename(ALICE, "backend", SpaceName("later"))
    with pytest.raises(KnotError, match="held back"):
        await scene.world.space(ALICE, "backend")
    await scene.world.spaces.delete(ALICE, "later")
    await scene.world.space(ALICE, "backend")


async def test_anothers_space(scene: Scene) -> None:
    """Another's space is like none, and an administrator names its owner."""
    for actor, name in ((BOB, "backend"), (BOB, scene.space.id), (ROOT, "backend")):
        with pytest.raises(NotFound, match="no space"):
            await scene.revoking.space(actor, name, "")
    assert (await scene.revoking.space(ROOT, "backend", "", user=ALICE.owner)).keys == 1


# A user


async def test_user(scene: Scene) -> None:
    """All that a user can show is void; they stay, with their space."""
    await scene.world.token(ALICE, scene.space)
    scene.world.sql("INSERT INTO api_tokens (id, secret_hash, user_name, created_at) VALUES ('x', '', 'alice', 0)")
    voided = await scene.revoking.user(ROOT, ALICE.owner, "left")
    assert voided == Voided(certificates=3, keys=1, join_tokens=2, api_tokens=2)
    assert scene.void == scene.world.serials(ALICE)
    assert scene.world.sql("SELECT id FROM api_tokens WHERE user_name = 'alice'") == []
    assert scene.world.sql("SELECT name FROM spaces") == [("backend",)]
    assert [entry.kind for entry in await scene.revoking.listing(ROOT)] == ["certificate"] * 3 + ["enrolled key"]
    assert await scene.revoking.listing(BOB) == []


async def test_who_revokes_users(scene: Scene) -> None:
    """Administrators alone, of users that there are, and not themselves."""
    for actor, name, error in ((BOB, ALICE.owner, Forbidden), (ROOT, NOBODY, NotFound), (ROOT, ROOT.owner, Conflict)):
        with pytest.raises(error):
            await scene.revoking.user(actor, name, "")
    assert scene.void == set()


async def test_token_that_was_shown_before(scene: Scene) -> None:
    """What a revoked user asks for with a token that was accepted a moment ago is refused: nothing new outlives the order."""
    [(token,)] = scene.world.sql("SELECT id FROM api_tokens WHERE user_name = 'alice'")
    grant = Grant(str(token), Scope.ALL)
    actor = Actor(ALICE.owner, grant=grant)
    await scene.certify_laptop(actor)
    await scene.revoking.user(ROOT, ALICE.owner, "left")
    for asked in (
        scene.certify_laptop(actor),
        scene.world.spaces.create(actor, SpaceName("more"), EU),
        scene.world.spaces.new_token(actor, "backend", reusable=True),
        scene.revoking.space(actor, "backend", ""),
        scene.world.users.create(Actor(actor.owner, admin=True, grant=grant), NOBODY),
    ):
        with pytest.raises(NotAuthenticated):
            await asked


# A key


async def test_persons_key(scene: Scene) -> None:
    """Every certificate for the key is void, and the key is certified no more, nor enrolled."""
    await scene.certify_laptop()
    serials = scene.serials("person")
    assert len(serials) == 2
    assert await scene.revoking.key(ALICE, public_line(LAPTOP), "lost") == Voided(certificates=2)
    assert scene.void == set(serials)
    with pytest.raises(Conflict, match="revoked: make another"):
        await scene.certify_laptop()
    token = await scene.world.token(ALICE, scene.space)
    with pytest.raises(JoinRefused, match="revoked"):
        await scene.world.enrolment.redeem(token.id, LAPTOP.convert_to_public())
    kinds = [(entry.kind, entry.until is None) for entry in await scene.revoking.listing(ALICE)]
    assert kinds == [("certificate", False)] * 2 + [("key", True)]


async def test_anothers_certificates_for_the_key_are_good(scene: Scene) -> None:
    """bob, who has had alice's public key certified for himself, makes his own certificates void by it, and none of hers."""
    await scene.world.space(BOB, "his")
    his = await scene.certify_laptop(BOB)
    assert await scene.revoking.key(BOB, public_line(LAPTOP), "") == Voided(certificates=1)
    assert scene.void == {his}
    await scene.certify_laptop()
    with pytest.raises(NotFound):
        await scene.revoking.key(BOB, fingerprint(HOST), "")


async def test_administrator_revokes_a_key_of_everybody(scene: Scene) -> None:
    """An administrator makes every certificate for a key void, whoever's; or one user's, by naming them."""
    await scene.world.space(BOB, "his")
    his = await scene.certify_laptop(BOB)
    [hers] = scene.serials("person")[:1]
    await scene.revoking.key(ROOT, fingerprint(LAPTOP), "", user=BOB.owner)
    assert scene.void == {his}
    await scene.revoking.key(ROOT, fingerprint(LAPTOP), "")
    assert scene.void == {his, hers}


async def test_enrolled_key(scene: Scene) -> None:
    """With an enrolled key all of its space is void, for its holder may have had any host key certified; its tokens are not."""
    voided = await scene.revoking.key(ALICE, fingerprint(KEY), "copied")
    assert voided == Voided(certificates=2, keys=1)
    assert scene.world.revocations.current.has_key(KEY)
    with pytest.raises(KeyRefused):
        await scene.certify()


async def test_host_key(scene: Scene) -> None:
    """A host key is certified no more; the space's enrolled key is good, and has another certified."""
    assert await scene.revoking.key(ALICE, fingerprint(HOST), "") == Voided(certificates=1)
    with pytest.raises(BadInput, match="host key was revoked; remove host_key"):
        await scene.certify()
    await scene.world.certified(scene.space, KEY.convert_to_public(), new_key("another"))


@pytest.mark.parametrize("text", ["", "SHA256:short", "ssh-ed25519 x", "SHA256:" + "=" * 43, "x\n" * 100])
async def test_what_is_no_key(scene: Scene, text: str) -> None:
    """What is neither a fingerprint nor a public key is bad input."""
    with pytest.raises(BadInput, match="fingerprint like SHA256"):
        await scene.revoking.key(ALICE, text, "")


async def test_own_key_of_an_administrator(scene: Scene) -> None:
    """An administrator who revokes their own key has their API token still."""
    await scene.world.space(ROOT, "roots")
    await scene.certify_laptop(ROOT)
    await scene.revoking.key(ROOT, public_line(LAPTOP), "", user=ROOT.owner)
    assert len(scene.world.sql("SELECT id FROM api_tokens WHERE user_name = 'root'")) == 1
    with pytest.raises(Conflict):
        await scene.certify_laptop(ROOT)


# The moment


async def test_issued_at_the_same_moment(scene: Scene) -> None:
    """Whatever is issued while a space is revoked is void, or was refused."""

    async def certified() -> bool:
        try:
            await scene.certify()
        except KeyRefused:
            return False
        return True

    order = scene.revoking.space(ALICE, "backend", "")
    await asyncio.gather(*(certified() for _ in range(5)), order, *(certified() for _ in range(5)))
    assert not await certified()
    assert {*scene.serials("agent"), *scene.serials("host")} == scene.void


# How agents are told


def test_long_list_in_parts() -> None:
    """A list of any length is told in lines that may be so long, all but the first of which add to it."""
    serials = [2**63 - 1 - number for number in range(2 * PART + 1)]
    keys = ["SHA256:" + "x" * 43] * (PART + 1)
    parts = split(Revoked(serials=serials, keys=keys))
    assert [part.whole for part in parts] == [True, False, False]
    assert [serial for part in parts for serial in part.serials] == serials
    assert sum(len(part.keys) for part in parts) == len(keys)
    assert max(len(part.model_dump_json()) for part in parts) < LINE_LIMIT - 1000
    assert split(Revoked(serials=[], keys=[])) == [Revoked(serials=[], keys=[])]


async def test_agents_are_told_what_is_new(scene: Scene) -> None:
    """Of a long list agents that are connected are told what is new; a whole one replaces what they know."""
    until = int(time.time()) + 1000
    rows = ", ".join(f"({number}, '', {until})" for number in range(WHOLE_MAX + 1))
    scene.world.sql(f"INSERT INTO revoked_certificates (serial, reason, expires_at) VALUES {rows}")
    await scene.world.revocations.load()
    [serial] = scene.serials("person")
    other = await scene.world.space(ALICE, "near")
    async with scene.world.running(other) as agent:
        voided = await scene.revoking.certificate(ALICE, serial, "")
        assert voided.agents_told == 1
        assert await agent.hears(1) == [str(serial)]
    assert len(scene.world.revocations.parts()[0].serials) == WHOLE_MAX + 2


async def test_what_has_run_out_is_told_no_more(scene: Scene) -> None:
    """An entry leaves the list once what it revoked has run out, without a restart."""
    scene.world.sql("INSERT INTO revoked_certificates (serial, reason, expires_at) VALUES (1, '', 1)")
    [serial] = scene.serials("person")
    await scene.revoking.certificate(ALICE, serial, "")
    assert scene.void == {serial}
    assert [entry.what for entry in await scene.revoking.listing(ROOT)] == [str(serial)]


# What has expired


def expire(world: World, seconds: int) -> None:
    """As if all certificates had been made so much earlier that they expired so many seconds ago."""
    world.sql("UPDATE certificates SET expires_at = ?", int(time.time()) - seconds)


@pytest.mark.parametrize("by", ["serial", "key", "user"])
async def test_expired_certificate_is_void_as_well(scene: Scene, by: str) -> None:
    """What a person opened goes on when the certificate has expired, and can still be ended: agents hear of the serial, for as
    long as of any other."""
    [serial] = scene.serials("person")
    expire(scene.world, 3 * 3600)
    if by == "serial":
        await scene.revoking.certificate(ALICE, serial, "")
    elif by == "key":
        await scene.revoking.key(ALICE, fingerprint(LAPTOP), "")
    else:
        await scene.revoking.user(ROOT, ALICE.owner, "")
    assert serial in scene.void
    [until] = [entry.until for entry in await scene.revoking.listing(ROOT) if entry.what == str(serial)]
    assert until is not None
    assert until > time.time() + LIFETIME


async def test_expired_certificates_are_dropped_in_the_end(scene: Scene) -> None:
    """Those of spaces after a day, those of people after a month."""
    left = {}
    for days in (0.9, 1.1, 29, 31):
        expire(scene.world, int(days * 24 * 3600))
        await scene.world.revocations.load()
        left[days] = [kind for kind in ("agent", "host", "person") if scene.serials(kind)]
    assert left == {0.9: ["agent", "host", "person"], 1.1: ["person"], 29: ["person"], 31: []}


# A store that fails


async def test_takes_effect_when_the_store_answers_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was stored takes effect though the store fails right then: by itself, for who asks again hears that it is void."""
    monkeypatch.setattr(revocation, "AGAIN", 0.01)
    [serial] = scene.serials("person")
    read = scene.world.database.reading
    answers = iter([False, False])

    def reading() -> object:
        if next(answers, True):
            return read()
        raise StoreUnavailable

    monkeypatch.setattr(scene.world.database, "reading", reading)
    async with scene.world.running(scene.space) as agent:
        with pytest.raises(StoreUnavailable):
            await scene.revoking.certificate(ALICE, serial, "leaked")
        assert scene.void == set()
        assert await agent.hears(1) == [str(serial)]
        assert scene.void == {serial}


# Who revokes without end


async def test_agents_are_told_of_news_alone(scene: Scene) -> None:
    """To revoke what is void already tells nobody anything."""
    async with scene.world.running(scene.space) as agent:
        [serial] = scene.serials("person")
        await scene.revoking.certificate(ALICE, serial, "")
        for _ in range(3):
            assert (await scene.revoking.key(ALICE, fingerprint(LAPTOP), "")).agents_told == 1
        assert await agent.hears(1) == [str(serial)]


async def test_many_orders_share_a_round(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a pace all that is revoked meanwhile is told at once; each order is answered once its own was told."""
    monkeypatch.setattr(scene.world.revocations, "_rounds", Bucket(10, 1, time.monotonic()))
    serials = [await scene.certify_laptop() for _ in range(30)]
    rounds = []
    tell = scene.world.roster.tell

    async def counted(method: str, message: Revoked) -> int:
        rounds.append(set(message.serials))
        return await tell(method, message)

    monkeypatch.setattr(scene.world.roster, "tell", counted)

    async def revoke(serial: int) -> None:
        assert (await scene.revoking.certificate(ALICE, serial, "")).agents_told == 1
        assert any(serial in told for told in rounds)

    async with scene.world.running(scene.space):
        await asyncio.gather(*map(revoke, serials))
    assert len(rounds) < len(serials) / 2
