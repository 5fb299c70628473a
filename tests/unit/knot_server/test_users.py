"""Users: who asks, and who may make and delete whom."""

from __future__ import annotations

import asyncio

import pytest

from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_keys.revocation import RevocationList
from knot_server.usecases.tokens import TOKEN_PREFIX
from knot_ssh.errors import Conflict, Forbidden, NameTaken, NotAuthenticated, NotFound
from knot_ssh.names import Owner
from tests.unit.knot_server.conftest import ALICE, BOB, ROOT, World

ANN = Owner("ann")


async def test_new_user_is_who_the_token_says(world: World) -> None:
    """The token of a new user authenticates that user, who is no administrator."""
    user = await world.users.create(ROOT, ANN)
    actor = await world.tokens.authenticate(user.token)
    assert (user.name, actor.owner, actor.admin, actor.zone, actor.space) == ("ann", "ann", False, None, None)


async def test_new_administrator(world: World) -> None:
    """A user who was made an administrator is one."""
    user = await world.users.create(ROOT, ANN, admin=True)
    assert (await world.tokens.authenticate(user.token)).admin


async def test_token_is_one_word(world: World) -> None:
    """A token can be copied with a double click, and told from a join token."""
    token = (await world.users.create(ROOT, ANN)).token
    assert token.replace("_", "").isalnum()
    assert token.startswith(TOKEN_PREFIX)
    assert not token.startswith("knotjoin_")


async def test_secret_is_stored_hashed(world: World) -> None:
    """The store holds no token's secret."""
    secret = (await world.users.create(ROOT, ANN)).token.rpartition("_")[2]
    stored = str(world.sql("SELECT * FROM api_tokens"))
    assert len(secret) == 64
    assert secret not in stored


async def test_other_tokens_are_nobody(world: World) -> None:
    """A token that is not exactly one we made is nobody's, and the refusal does not say why."""
    ann = (await world.users.create(ROOT, ANN)).token
    other = (await world.users.create(ROOT, Owner("eve"))).token
    crossed = f"{ann.rpartition('_')[0]}_{other.rpartition('_')[2]}"
    last = "0" if ann[-1] != "0" else "1"
    tokens = ["", "_", TOKEN_PREFIX, "nonsense", ann[:-1], ann[:-1] + last, ann + "0", ann[len(TOKEN_PREFIX) :], crossed,
              ann.rpartition("_")[0] + "_", f"{TOKEN_PREFIX}%_{'0' * 64}", ann.replace("_", "\0"), "é" * 50]  # fmt: skip
    said = set()
    for token in tokens:
        with pytest.raises(NotAuthenticated) as caught:
            await world.tokens.authenticate(token)
        said.add(str(caught.value))
    assert len(said) == 1


async def test_names_are_unique(world: World) -> None:
    """Two users cannot have one name."""
    await world.users.create(ROOT, ANN)
    with pytest.raises(NameTaken, match="there is a user 'ann' already"):
        await world.users.create(ROOT, ANN)


async def test_of_two_at_once_one_gets_the_name(world: World) -> None:
    """Of two who ask for a name at the same time, one gets it."""
    answers = await asyncio.gather(*(world.users.create(ROOT, ANN) for _ in range(2)), return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["NameTaken", "NewUser"]


async def test_only_administrators(world: World) -> None:
    """Who is no administrator makes and deletes nobody."""
    with pytest.raises(Forbidden):
        await world.users.create(ALICE, ANN)
    with pytest.raises(Forbidden):
        await world.users.delete(ALICE, BOB.owner)
    assert [user.name for user in await world.users.listing(ROOT)] == ["alice", "bob", "root"]


async def test_listing(world: World) -> None:
    """An administrator sees everybody by name, others themselves."""
    assert [user.name for user in await world.users.listing(ROOT)] == ["alice", "bob", "root"]
    assert [user.name for user in await world.users.listing(ALICE)] == ["alice"]


async def test_deleted_user_is_nobody(world: World) -> None:
    """A deleted user's token is good for nothing, and their spaces are gone; nobody else's are."""
    ann = await world.users.create(ROOT, ANN)
    actor = await world.tokens.authenticate(ann.token)
    await world.space(actor, "one")
    await world.space(BOB, "one")
    await world.users.delete(ROOT, ANN)
    with pytest.raises(NotAuthenticated):
        await world.tokens.authenticate(ann.token)
    assert world.sql("SELECT owner FROM spaces") == [("bob",)]


async def test_deleting_cuts_the_agents(world: World) -> None:
    """The agents of a deleted user hear that they are cut off, with the reason."""
    space = await world.space(ALICE, "one")
    async with world.running(space) as agent:
        await world.users.delete(ROOT, ALICE.owner)
        assert await agent.hears(1) == ["the user alice was deleted"]


async def test_deleting_revokes_what_the_agents_have(world: World) -> None:
    """Every certificate for a deleted user's spaces is revoked, and every key that was enrolled for them."""
    space, token = await world.invited(ALICE, "one")
    key, host = new_key("agent").convert_to_public(), new_key("host")
    await world.enrolment.redeem(token.id, key)
    await world.certified(space, key, host)
    serials = world.serials(ALICE)
    await world.users.delete(ROOT, ALICE.owner)
    assert len(serials) == 2
    assert world.revocations.current == RevocationList.of(serials, [fingerprint(key)])


async def test_deleting_revokes_the_persons_certificates(world: World) -> None:
    """Nor is the deleted user's own certificate good for anything; its key, which may be anybody's, is not held against it."""
    await world.space(ALICE, "one")
    key = new_key("person").convert_to_public()
    issued, _ = await world.enrolment.certify_person(ALICE, public_line(key), None)
    await world.users.delete(ROOT, ALICE.owner)
    assert world.revocations.current == RevocationList.of([issued.serial], [])


async def test_name_is_held_back(world: World) -> None:
    """A deleted user's name is given out again only when the last certificate for it has expired."""
    await world.space(ALICE, "one")
    await world.enrolment.certify_person(ALICE, public_line(new_key("person")), None)
    await world.users.delete(ROOT, ALICE.owner)
    with pytest.raises(NameTaken, match=r"held back until its last certificate has expired, for 60 min"):
        await world.users.create(ROOT, ALICE.owner)
    world.sql("UPDATE certificates SET expires_at = strftime('%s', 'now') - 1")
    assert (await world.users.create(ROOT, ALICE.owner)).name == "alice"


async def test_name_without_certificates_is_free(world: World) -> None:
    """A name for which no certificate is good can be given out at once."""
    await world.users.delete(ROOT, ALICE.owner)
    assert (await world.users.create(ROOT, ALICE.owner)).name == "alice"


async def test_nobody_deletes_themselves(world: World) -> None:
    """The last administrator cannot lock everybody out."""
    with pytest.raises(Conflict, match="cannot delete yourself"):
        await world.users.delete(ROOT, ROOT.owner)


async def test_deleting_nobody(world: World) -> None:
    """Who is not there cannot be deleted."""
    with pytest.raises(NotFound, match="there is no user 'ann'"):
        await world.users.delete(ROOT, ANN)
