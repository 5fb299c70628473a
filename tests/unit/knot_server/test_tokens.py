"""API tokens: what each is good for, until when, and who may make, see and end them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from knot_keys.keyfiles import new_key, public_line
from knot_server.actor import Actor, Grant, Scope
from knot_server.usecases.audit import Event
from knot_server.usecases.tokens import KEPT, TOKENS_MAX, USED_PAUSE, Wanted
from knot_ssh.errors import BadInput, Conflict, Forbidden, NameTaken, NotAuthenticated, NotFound
from knot_ssh.names import Port, SpaceId, SpaceName, TokenName, Zone
from knot_ssh.wire import ApplyRequest, ForwardRequest, StopRequest
from tests.unit.knot_server.conftest import ALICE, BOB, ROOT, World

CI = TokenName("ci")
HOUR = 3600


async def made(world: World, actor: Actor = ALICE, **wanted: object) -> str:
    """The text of a new token called ci."""
    return (await world.tokens.create(actor, replace(Wanted(CI), **wanted)))[1]  # type: ignore[arg-type]


async def holder(world: World, actor: Actor = ALICE, **wanted: object) -> Actor:
    """Who shows such a token."""
    return await world.tokens.authenticate(await made(world, actor, **wanted))


def events(world: World) -> list[object]:
    return [event for (event,) in world.sql("SELECT event FROM audit ORDER BY id")]


@pytest.mark.parametrize("scope", [Scope.ALL, Scope.READ])
async def test_a_token_says_what_it_is_good_for(world: World, scope: Scope) -> None:
    """Who shows a token is its user, for what its scope says."""
    actor = await holder(world, scope=scope)
    assert (actor.owner, actor.admin) == (ALICE.owner, False)
    assert actor.grant is not None
    assert (actor.grant.scope, actor.grant.space, actor.grant.expires_at) == (scope, None, None)


async def test_a_token_of_one_space(world: World) -> None:
    """It names the space by its id, so that a rename does not widen it."""
    space = await world.space(ALICE, "one")
    actor = await holder(world, scope=Scope.FORWARDS, space="one")
    assert actor.grant
    assert actor.grant.space == space.id
    assert actor.can_act_on(space.id, "eu")
    assert not actor.can_act_on(str(SpaceId.new()), "eu")


async def test_a_token_of_one_space_acts_on_no_other(world: World) -> None:
    """Forwards start at its own space alone, and may lead to others; another space is as good as none, by name and by id."""
    await world.space(ALICE, "one")
    other = await world.space(ALICE, "two")
    actor = await holder(world, scope=Scope.FORWARDS, space="one")
    assert (await world.forwarding.listing(actor, "one")).forwards == []
    for reference in ("two", other.id, "none"):
        with pytest.raises(NotFound):
            await world.forwarding.listing(actor, reference)
        with pytest.raises(NotFound):
            await world.spaces.show(actor, reference)


async def test_a_name_that_changed_hands(world: World) -> None:
    """Once its space was renamed, another that has the old name is not the token's."""
    space = await world.space(ALICE, "one")
    actor = await holder(world, scope=Scope.FORWARDS, space="one")
    world.sql("UPDATE spaces SET name = 'first' WHERE id = ?", space.id)
    await world.space(ALICE, "one")
    with pytest.raises(NotFound):
        await world.spaces.show(actor, "one")
    assert (await world.spaces.show(actor, "first")).id == space.id


async def test_a_token_goes_with_its_space(world: World) -> None:
    """A deleted space takes its tokens along."""
    await world.space(ALICE, "one")
    token = await made(world, scope=Scope.FORWARDS, space="one")
    await world.spaces.delete(ALICE, "one")
    with pytest.raises(NotAuthenticated):
        await world.tokens.authenticate(token)


@pytest.mark.parametrize(
    "change",
    ["expires_at = 1", "scope = 'everything'", "scope = ''", "scope = 'ALL'", "scope = 'forwards'", "secret_hash = ''"],
)
async def test_what_makes_a_token_void(world: World, change: str) -> None:
    """One that has expired, or says what is not known, is refused with the same sentence as one that never was."""
    token = await made(world)
    world.sql(f"UPDATE api_tokens SET {change} WHERE name = 'ci'")
    said = set()
    for shown in (token, "knot_000000000000_" + "0" * 64):
        with pytest.raises(NotAuthenticated) as caught:
            await world.tokens.authenticate(shown)
        said.add(str(caught.value))
    assert len(said) == 1


async def test_a_token_of_all_with_a_space_is_void(world: World) -> None:
    """A space beside a scope that is not about one is a store gone wrong, and opens nothing."""
    space = await world.space(ALICE, "one")
    token = await made(world)
    world.sql("UPDATE api_tokens SET space_id = ? WHERE name = 'ci'", space.id)
    with pytest.raises(NotAuthenticated):
        await world.tokens.authenticate(token)


async def test_a_token_lives_as_long_as_asked(world: World) -> None:
    """Its lifetime is counted from now; without one it has no end."""
    before = int(time.time())
    actor = await holder(world, lifetime=HOUR)
    assert actor.expires_at is not None
    assert before + HOUR <= actor.expires_at <= int(time.time()) + HOUR


@pytest.mark.parametrize("lifetime", [None, 10 * HOUR, HOUR])
async def test_no_token_outlives_the_one_that_made_it(world: World, lifetime: int | None) -> None:
    """What is made with a token ends when that does, at the latest: tokens, users' first tokens, join tokens."""
    soon = int(time.time()) + 60
    [(shown,)] = world.sql("SELECT id FROM api_tokens WHERE user_name = 'root'")
    asking = replace(ROOT, grant=Grant(str(shown), Scope.ALL, None, soon))
    assert (await holder(world, asking, lifetime=lifetime)).expires_at == soon
    user = await world.users.create(asking, TokenName("ann"))  # type: ignore[arg-type]
    assert (await world.tokens.authenticate(user.token)).expires_at == user.expires_at == soon
    await world.spaces.create(asking, SpaceName("one"), Zone("eu"))
    await world.spaces.new_token(asking, "one", reusable=True)
    assert set(world.sql("SELECT expires_at FROM join_tokens")) == {(soon,)}


async def test_no_certificate_outlives_the_token_that_asked(world: World) -> None:
    """A person's certificate ends with the token that it was asked for with, whatever lifetime was asked for."""
    await world.space(ALICE, "one")
    soon = int(time.time()) + 100
    asking = replace(ALICE, grant=Grant("0" * 12, Scope.ALL, None, soon))
    world.sql(
        "INSERT INTO api_tokens (id, secret_hash, user_name, created_at, name, scope) VALUES (?, '', 'alice', 0, 'x', 'all')",
        "0" * 12,
    )
    issued, _ = await world.enrolment.certify_person(asking, public_line(new_key("k")), 3600)
    assert abs(issued.expires_at - soon) <= 1


async def test_space_goes_with_the_scope(world: World) -> None:
    """A space without the scope that is about one, or that scope without a space, is a mistake, and nothing is made."""
    await world.space(ALICE, "one")
    for wrong in ({"scope": Scope.FORWARDS}, {"scope": Scope.READ, "space": "one"}, {"space": "one"}):
        with pytest.raises(BadInput):
            await made(world, **wrong)
    assert [view.row.name for view in await world.tokens.listing(ALICE)] == ["first"]


async def test_names_are_unique_for_a_user(world: World) -> None:
    """A name says which token is meant; another user may have the same."""
    await made(world)
    with pytest.raises(NameTaken):
        await made(world)
    await made(world, BOB)


@pytest.mark.parametrize("name", ["0123456789ab", "", "A", "a b", "a\x1b[31m", "join"])
def test_names_that_are_none(name: str) -> None:
    """No name looks like an id, or holds what a terminal or a log would act on."""
    with pytest.raises(BadInput):
        TokenName(name)


async def test_there_is_an_end(world: World) -> None:
    """A user has so many tokens at most; those that expired long ago make room."""
    for number in range(TOKENS_MAX - 1):
        world.sql(
            "INSERT INTO api_tokens (id, secret_hash, user_name, created_at, name, scope) VALUES (?, '', 'alice', 0, ?, 'all')",
            f"{number:012x}",
            f"t{number}",
        )
    with pytest.raises(Conflict):
        await made(world)
    world.sql("UPDATE api_tokens SET expires_at = ? WHERE name = 't1'", int(time.time()) - KEPT - 1)
    await made(world)


async def test_only_administrators_make_tokens_for_others(world: World) -> None:
    """An administrator makes one for who has lost theirs, for a space of that user; it is recorded who made it."""
    await world.space(BOB, "one")
    with pytest.raises(Forbidden):
        await made(world, ALICE, user=BOB.owner)
    with pytest.raises(NotFound):
        await made(world, ROOT, user=TokenName("nobody"))
    actor = await holder(world, ROOT, user=BOB.owner, scope=Scope.FORWARDS, space="one")
    assert (actor.owner, actor.admin) == (BOB.owner, False)
    records = world.sql("SELECT actor, owner FROM audit WHERE event = ?", str(Event.TOKEN_MADE))
    assert ("root", "bob") in records


async def test_revoked_by_name_or_id(world: World) -> None:
    """A revoked token is refused at once; others of that user stay."""
    for reference in ("ci", None):
        view, token = await world.tokens.create(ALICE, Wanted(CI))
        await world.tokens.revoke(ALICE, reference or view.row.id)
        with pytest.raises(NotAuthenticated):
            await world.tokens.authenticate(token)
    assert [view.row.name for view in await world.tokens.listing(ALICE)] == ["first"]
    assert events(world).count(str(Event.TOKEN_REVOKED)) == 2


async def test_others_tokens_are_out_of_reach(world: World) -> None:
    """Nobody ends or sees another's token but an administrator, by its id; a name means one's own."""
    view, token = await world.tokens.create(BOB, Wanted(CI))
    for actor, reference in ((ALICE, view.row.id), (ALICE, "ci"), (ROOT, "ci")):
        with pytest.raises(NotFound):
            await world.tokens.revoke(actor, reference)
    assert {seen.row.user_name for seen in await world.tokens.listing(ALICE)} == {"alice"}
    assert {seen.row.user_name for seen in await world.tokens.listing(ROOT)} == {"alice", "bob", "root"}
    await world.tokens.authenticate(token)
    await world.tokens.revoke(ROOT, view.row.id)
    with pytest.raises(NotAuthenticated):
        await world.tokens.authenticate(token)


FORWARD = ForwardRequest(local_port=Port(8080), space="two", remote_port=Port(80), persistent=True, force=True)
Change = Callable[[World, Actor], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "forward": lambda world, actor: world.forwarding.forward(actor, "one", FORWARD),
    "apply": lambda world, actor: world.forwarding.apply(actor, "one", ApplyRequest(forwards=[FORWARD])),
    "stop": lambda world, actor: world.forwarding.stop(actor, "one", StopRequest(local_port=FORWARD.local_port)),
    "rename": lambda world, actor: world.renaming.rename(actor, "one", SpaceName("three")),
    "delete": lambda world, actor: world.spaces.delete(actor, "one"),
    "delete a user": lambda world, actor: world.users.delete(actor, BOB.owner),
    "revoke a token": lambda world, actor: world.tokens.revoke(actor, "first"),
    "revoke a space": lambda world, actor: world.revoking.space(actor, "one", ""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_token_that_is_revoked_meanwhile(world: World, change: Change) -> None:
    """Who calls is asked before the body of a request is read, which may come slowly: a token that was revoked since changes
    nothing more."""
    for name in ("one", "two"):
        await world.space(ROOT, name)
    actor = await holder(world, ROOT)
    await world.tokens.revoke(ROOT, str(CI))
    before = events(world)
    with pytest.raises(NotAuthenticated):
        await change(world, actor)
    assert events(world) == before


async def test_use_is_noted_once_in_a_while(world: World) -> None:
    """The first use is noted, the next ones within a minute are not; later ones are."""
    token = await made(world)
    for _ in range(3):
        await world.tokens.authenticate(token)
    await world.tokens.close()
    [(used,)] = world.sql("SELECT last_used FROM api_tokens WHERE name = 'ci'")
    assert isinstance(used, int)
    assert used >= time.time() - 10
    world.sql("UPDATE api_tokens SET last_used = ? WHERE name = 'ci'", used - USED_PAUSE + 10)
    await world.tokens.authenticate(token)
    await world.tokens.close()
    assert world.sql("SELECT last_used FROM api_tokens WHERE name = 'ci'") == [(used - USED_PAUSE + 10,)]
    world.sql("UPDATE api_tokens SET last_used = ? WHERE name = 'ci'", used - USED_PAUSE - 1)
    await world.tokens.authenticate(token)
    await world.tokens.close()
    assert world.sql("SELECT last_used FROM api_tokens WHERE name = 'ci'")[0][0] >= used  # type: ignore[operator]


async def test_agents_are_not_narrowed(world: World) -> None:
    """An agent shows no token: it acts within its zone."""
    actor = Actor(ALICE.owner, zone=Zone("eu"))
    assert actor.can_act_on("any", "eu")
    assert not actor.can_act_on("any", "us")
