"""Join tokens are redeemed once, and the enrolled key is what counts from then on."""

from __future__ import annotations

import asyncio

import asyncssh
import pytest

from knot_keys.certificates import CertificateRefused, check_client, check_host, read_certificate
from knot_keys.identity import Identity
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import fingerprint, new_key, public_line
from knot_keys.possession import for_host_key, prove
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_server.usecases import enrolment
from knot_server.usecases.spaces import drop_old_tokens
from knot_ssh.errors import BadInput, Conflict, JoinRefused, KeyRefused
from knot_ssh.names import Owner, SpaceId, Zone
from knot_ssh.wire import CertificateRequest
from tests.unit.knot_server.conftest import ALICE, BOB, EU, ROOT, US, World, host_key_request

CROWD = 100
"""Agents that redeem one token at the same time."""


def a_key() -> asyncssh.SSHKey:
    """A new public key."""
    return new_key("agent").convert_to_public()


def a_host_key() -> asyncssh.SSHKey:
    """A new key with its private half, which an agent must prove to hold."""
    return new_key("host")


async def refusal(world: World, token: JoinToken, key: asyncssh.SSHKey) -> str:
    """Why the token is refused."""
    with pytest.raises(JoinRefused) as caught:
        await world.enrolment.redeem(token.id, key)
    return str(caught.value)


async def test_token_enrols_a_key(world: World) -> None:
    """Redeeming a token tells the agent what it is, and makes its key the space's."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    membership = await world.enrolment.redeem(token.id, key)
    assert (membership.space_id, membership.space, membership.owner, membership.zone) == (space.id, "backend", "alice", "eu")
    assert (membership.user_cas, membership.host_cas) == ([world.authority.user_ca], [world.authority.host_ca])
    assert await world.enrolment.enrolled_key(space.space_id) == key


async def test_token_is_known_by_its_secret(world: World) -> None:
    """A token is known by id and secret together, and also once it was used."""
    _, token = await world.invited(ALICE, "backend")
    _, other = await world.invited(ALICE, "frontend")
    await world.enrolment.redeem(token.id, a_key())
    assert await world.enrolment.knows_token(token.id, token.secret)
    assert not await world.enrolment.knows_token(token.id, other.secret)
    assert not await world.enrolment.knows_token("nonsense", token.secret)


async def test_secret_is_stored_hashed(world: World) -> None:
    """The store holds no secret of any token."""
    _, token = await world.invited(ALICE, "backend")
    stored = str(world.sql("SELECT * FROM join_tokens"))
    assert token.id in stored
    assert token.secret.hex() not in stored
    assert str(token) not in stored


async def test_same_token_and_key_same_answer(world: World) -> None:
    """An agent that lost the answer asks again with its key, and gets the same."""
    _, token = await world.invited(ALICE, "backend")
    key = a_key()
    first = await world.enrolment.redeem(token.id, key)
    assert await world.enrolment.redeem(token.id, key) == first
    assert world.revocations.current == NOTHING_REVOKED


async def test_other_key_is_refused(world: World) -> None:
    """A token that was used does nothing for another key, and the refusal says how to get a new one."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    assert (
        await refusal(world, token, a_key())
        == "that join token was used already; make a new one with `knot space token backend`"
    )
    assert await world.enrolment.enrolled_key(space.space_id) == key


async def test_unknown_token_is_refused(world: World) -> None:
    """A token that was never made is refused without a hint of what there is."""
    assert "knot space token NAME" in await refusal(world, JoinToken.new(world.authority.host_ca_key), a_key())


async def test_expired_token_is_refused(world: World) -> None:
    """A token that ran out is refused and enrols nobody, not even the key that used it before."""
    space, token = await world.invited(ALICE, "backend")
    world.sql("UPDATE join_tokens SET expires_at = strftime('%s', 'now')")
    assert "has expired" in await refusal(world, token, a_key())
    assert await world.enrolment.enrolled_key(space.space_id) is None


async def test_used_token_expires_for_its_key_too(world: World) -> None:
    """The same answer is given until the token runs out, and no longer."""
    _, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    world.sql("UPDATE join_tokens SET expires_at = strftime('%s', 'now')")
    assert "has expired" in await refusal(world, token, key)


async def test_token_lasts_half_an_hour(world: World) -> None:
    """A token is good for 30 minutes, a reusable one for a month and many joins."""
    space, _ = await world.invited(ALICE, "backend")
    await world.token(ALICE, space, reusable=True)
    asked = "SELECT DISTINCT (expires_at - strftime('%s', 'now') + 30) / 60, uses_left FROM join_tokens ORDER BY 1"
    assert world.sql(asked) == [(30, 1), (30 * 24 * 60, 1000)]


async def test_token_of_a_deleted_space_is_refused(world: World) -> None:
    """A token dies with its space, also where another space of that name was made."""
    space, token = await world.invited(ALICE, "backend")
    await world.spaces.delete(ALICE, space.id)
    await world.space(ALICE, "backend")
    assert await refusal(world, token, a_key())
    assert not await world.enrolment.knows_token(token.id, token.secret)


async def test_old_tokens_are_dropped(world: World) -> None:
    """A token that ran out more than a day ago is forgotten; one that ran out today can still be told so."""
    _, old = await world.invited(ALICE, "old")
    _, recent = await world.invited(ALICE, "recent")
    for token, hours in ((old, 25), (recent, 23)):
        world.sql("UPDATE join_tokens SET expires_at = strftime('%s', 'now') - ? WHERE id = ?", hours * 3600, token.id)
    await drop_old_tokens(world.database)
    assert not await world.enrolment.knows_token(old.id, old.secret)
    assert await world.enrolment.knows_token(recent.id, recent.secret)


async def test_one_of_many_wins(world: World) -> None:
    """Of many keys that redeem one token at the same time, exactly one is enrolled, and the others are told why."""
    space, token = await world.invited(ALICE, "backend")
    keys = [a_key() for _ in range(CROWD)]
    answers = await asyncio.gather(*(world.enrolment.redeem(token.id, key) for key in keys), return_exceptions=True)
    winners = [key for key, answer in zip(keys, answers, strict=True) if not isinstance(answer, BaseException)]
    assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [JoinRefused] * (CROWD - 1)
    assert [await world.enrolment.enrolled_key(space.space_id)] == winners


async def test_joining_again_replaces_the_key(world: World) -> None:
    """A new token puts a new key in place of the old one, which is revoked with all certificates of the space."""
    space, token = await world.invited(ALICE, "backend")
    old, host, new = a_key(), a_host_key(), a_key()
    await world.enrolment.redeem(token.id, old)
    await world.certified(space, old, host)
    serials = world.serials(ALICE)
    await world.enrolment.redeem((await world.token(ALICE, space)).id, new)
    assert len(serials) == 2
    assert world.revocations.current == RevocationList.of(serials, [fingerprint(old)])
    assert await world.enrolment.enrolled_key(space.space_id) == new
    with pytest.raises(KeyRefused):
        await world.certified(space, old, host)


async def test_host_key_serves_on_after_joining_again(world: World) -> None:
    """An agent that has joined again has its host key certified again; only the certificate from before is void."""
    space, token = await world.invited(ALICE, "backend")
    old, host, new = a_key(), a_host_key(), a_key()
    names = [space.id, "backend.alice.eu.knot"]
    await world.enrolment.redeem(token.id, old)
    before = await world.certified(space, old, host)
    await world.enrolment.redeem((await world.token(ALICE, space)).id, new)
    after = await world.certified(space, new, host)
    cas, revoked = [world.authority.host_ca_key], world.revocations.current
    with pytest.raises(CertificateRefused, match="revoked"):
        check_host(read_certificate(before.host), cas, names, revoked)
    check_host(read_certificate(after.host), cas, names, revoked)
    check_client(read_certificate(after.client), [world.authority.user_ca_key], revoked)


async def test_joining_again_tells_the_agents(world: World) -> None:
    """The agent that was replaced hears that it was, and every other hears of the revoked key."""
    space, token = await world.invited(ALICE, "backend")
    other = await world.space(BOB, "other")
    old = a_key()
    await world.enrolment.redeem(token.id, old)
    second = await world.token(ALICE, space)
    async with world.running(other) as bystander, world.running(space) as replaced:
        await world.enrolment.redeem(second.id, a_key())
        assert await bystander.hears(1) == [fingerprint(old)]
        assert await replaced.hears(1) == ["the space backend has joined again from elsewhere"]


async def test_revoked_key_does_not_come_back(world: World) -> None:
    """A key that was replaced is not enrolled again, whether with its own token or a new one."""
    space, first = await world.invited(ALICE, "backend")
    old, new = a_key(), a_key()
    await world.enrolment.redeem(first.id, old)
    await world.enrolment.redeem((await world.token(ALICE, space)).id, new)
    for token in (first, await world.token(ALICE, space)):
        assert "was replaced or revoked" in await refusal(world, token, old)
    assert await world.enrolment.enrolled_key(space.space_id) == new


async def test_replaced_key_does_not_come_back_once_its_revocation_has_run_out(world: World) -> None:
    """While its token is good, a replaced key stays replaced, also when the list of revoked keys no longer holds it."""
    space, first = await world.invited(ALICE, "backend")
    old, new = a_key(), a_key()
    await world.enrolment.redeem(first.id, old)
    await world.enrolment.redeem((await world.token(ALICE, space)).id, new)
    world.sql("UPDATE revoked_keys SET expires_at = 1")
    await world.revocations.load()
    assert world.revocations.current == NOTHING_REVOKED
    assert await refusal(world, first, old)
    assert await world.enrolment.enrolled_key(space.space_id) == new


async def test_revocation_outlives_the_certificates(world: World) -> None:
    """A revocation is on the list for longer than any certificate that it voids is good, and over restarts."""
    space, token = await world.invited(ALICE, "backend")
    old = a_key()
    await world.enrolment.redeem(token.id, old)
    await world.certified(space, old, a_host_key())
    await world.spaces.delete(ALICE, space.id)
    await world.revocations.load()
    assert world.revocations.current == RevocationList.of(world.serials(ALICE), [fingerprint(old)])
    late = "SELECT MIN(r.expires_at > c.expires_at), COUNT(*) FROM {} r JOIN certificates c USING ({})"
    assert world.sql(late.format("revoked_certificates", "serial")) == [(1, 2)]
    assert world.sql(late.format("revoked_keys", "fingerprint")) == [(1, 1)]


async def test_revocation_runs_out(world: World) -> None:
    """What has expired itself is dropped from the list at the next start, and not before."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    await world.certified(space, key, a_host_key())
    await world.spaces.delete(ALICE, space.id)
    whole = world.revocations.current
    await world.revocations.load()
    assert world.revocations.current == whole
    for table in ("revoked_certificates", "revoked_keys"):
        world.sql(f"UPDATE {table} SET expires_at = strftime('%s', 'now') - 1")
    await world.revocations.load()
    assert world.revocations.current == NOTHING_REVOKED


async def test_revocation_is_heard_of_after_it_holds(world: World) -> None:
    """Who listens for revocations within the server hears of them once they are decided by."""
    space, token = await world.invited(ALICE, "backend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    heard: list[bool] = []
    world.revocations.on_change.append(lambda: heard.append(world.revocations.current.has_key(key)))
    await world.spaces.delete(ALICE, space.id)
    assert heard == [True]


async def test_reusable_token(world: World) -> None:
    """A reusable token enrols one key after the other, each in place of the one before, until its uses are up."""
    space, token = await world.invited(ALICE, "template", reusable=True)
    world.sql("UPDATE join_tokens SET uses_left = 2 WHERE id = ?", token.id)
    keys = [a_key() for _ in range(3)]
    for key in keys[:2]:
        await world.enrolment.redeem(token.id, key)
    assert "used already" in await refusal(world, token, keys[2])
    assert await world.enrolment.enrolled_key(space.space_id) == keys[1]
    assert world.revocations.current == RevocationList.of([], [fingerprint(keys[0])])


async def test_agent_certificates(world: World) -> None:
    """An enrolled key is certified as client and the host key as host, both for this space alone."""
    space, token = await world.invited(ALICE, "backend")
    key, host = a_key(), a_host_key()
    await world.enrolment.redeem(token.id, key)
    issued = await world.certified(space, key, host)
    client = check_client(read_certificate(issued.client), [world.authority.user_ca_key], NOTHING_REVOKED)
    assert client.fingerprint == fingerprint(key)
    assert client.identity == Identity.agent(space.principal, space.space_name, space.space_id)
    names = [space.id, "backend.alice.eu.knot"]
    check_host(read_certificate(issued.host), [world.authority.host_ca_key], names, NOTHING_REVOKED)
    assert read_certificate(issued.host).key == host.convert_to_public()
    assert (await world.spaces.listing(ALICE))[0].host_key == public_line(host)


async def test_every_certificate_is_recorded(world: World) -> None:
    """The store knows serial, key and owner of every certificate that is good."""
    space, token = await world.invited(ALICE, "backend")
    key, host, person = a_key(), a_host_key(), a_key()
    await world.enrolment.redeem(token.id, key)
    await world.certified(space, key, host)
    issued, _ = await world.enrolment.certify_person(ALICE, public_line(person), None)
    recorded = world.sql("SELECT fingerprint, owner, space_id FROM certificates")
    expected = [
        (fingerprint(key), "alice", space.id),
        (fingerprint(host), "alice", space.id),
        (fingerprint(person), "alice", None),
    ]
    assert sorted(recorded, key=str) == sorted(expected, key=str)
    assert world.sql("SELECT COUNT(*) FROM certificates WHERE serial = ?", issued.serial) == [(1,)]


async def test_unenrolled_key_is_not_certified(world: World) -> None:
    """A key that is not the space's gets no certificate, and none is recorded."""
    space, token = await world.invited(ALICE, "backend")
    await world.enrolment.redeem(token.id, a_key())
    for space_id in (space.space_id, SpaceId.new()):
        with pytest.raises(KeyRefused):
            await world.enrolment.certify_agent(space_id, a_key(), host_key_request(a_host_key(), space_id))
    assert world.sql("SELECT * FROM certificates") == []


async def test_host_key_of_somebody_else_is_not_certified(world: World) -> None:
    """bob's agent cannot get alice's public host key certified without its private half."""
    alices, alices_token = await world.invited(ALICE, "backend")
    bobs, bobs_token = await world.invited(BOB, "backend")
    alices_key, bobs_key, alices_host, bobs_host = a_key(), a_key(), a_host_key(), a_host_key()
    await world.enrolment.redeem(alices_token.id, alices_key)
    await world.enrolment.redeem(bobs_token.id, bobs_key)
    await world.certified(alices, alices_key, alices_host)
    overheard = host_key_request(alices_host, alices.space_id)
    made_up = prove(bobs_host, for_host_key(bobs.space_id))
    for signature in (overheard.signature, made_up, "", "nonsense", "AAAA"):
        request = CertificateRequest(host_key=overheard.host_key, signature=signature)
        with pytest.raises(BadInput, match="does not prove possession of the host key"):
            await world.enrolment.certify_agent(bobs.space_id, bobs_key, request)
    assert world.serials(BOB) == set()
    assert [space.host_key for space in await world.spaces.listing(BOB)] == [None]
    await world.certified(bobs, bobs_key, bobs_host)
    assert len(world.serials(BOB)) == 2


async def test_deleting_a_space_spares_other_peoples_keys(world: World) -> None:
    """Deleting bob's space, or bob, does not make a key of alice's void, even one that bob had certified."""
    alices, alices_token = await world.invited(ALICE, "backend")
    bobs, bobs_token = await world.invited(BOB, "backend")
    key, host, bobs_key = a_key(), a_host_key(), a_key()
    await world.enrolment.redeem(alices_token.id, key)
    issued = await world.certified(alices, key, host)
    await world.enrolment.redeem(bobs_token.id, bobs_key)
    await world.certified(bobs, bobs_key, a_host_key())
    for line in (public_line(key), public_line(host)):
        await world.enrolment.certify_person(BOB, line, None)
    bobs_serials = world.serials(BOB)
    await world.spaces.delete(BOB, bobs.id)
    await world.users.delete(ROOT, BOB.owner)
    assert world.revocations.current == RevocationList.of(bobs_serials, [fingerprint(bobs_key)])
    check_client(read_certificate(issued.client), [world.authority.user_ca_key], world.revocations.current)
    names = [alices.id, "backend.alice.eu.knot"]
    check_host(read_certificate(issued.host), [world.authority.host_ca_key], names, world.revocations.current)
    assert await world.enrolment.enrolled_key(alices.space_id) == key
    await world.certified(alices, key, host)


async def test_deleting_a_space_spares_its_owners_other_certificates(world: World) -> None:
    """With a space go its own certificates; those of the owner's other spaces, and the owner's own, stay good."""
    gone, gone_token = await world.invited(ALICE, "gone")
    kept, kept_token = await world.invited(ALICE, "kept")
    keys = a_key(), a_key()
    await world.enrolment.redeem(gone_token.id, keys[0])
    await world.enrolment.redeem(kept_token.id, keys[1])
    await world.certified(gone, keys[0], a_host_key())
    void = world.serials(ALICE)
    await world.certified(kept, keys[1], a_host_key())
    await world.enrolment.certify_person(ALICE, public_line(a_key()), None)
    await world.spaces.delete(ALICE, gone.id)
    assert world.revocations.current == RevocationList.of(void, [fingerprint(keys[0])])


async def test_enrolled_key_of_nobody(world: World) -> None:
    """A space that has not been joined, or does not exist, has no key."""
    space = await world.space(ALICE, "backend")
    assert await world.enrolment.enrolled_key(space.space_id) is None
    assert await world.enrolment.enrolled_key(SpaceId.new()) is None


async def test_person_has_a_principal_for_each_zone(world: World) -> None:
    """A person's certificate is for the zones in which they own spaces, and for no owner but them."""
    for name, zone in (("one", EU), ("two", US), ("three", US)):
        await world.space(ALICE, name, zone)
    await world.space(BOB, "other", Zone("asia"))
    key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    issued, names = await world.enrolment.certify_person(ALICE, public_line(key), None)
    checked = check_client(read_certificate(issued.line), [world.authority.user_ca_key], NOTHING_REVOKED)
    assert checked.identity == Identity.person(Owner("alice"), [EU, US])
    assert names == ["alice@eu", "alice@us"]


async def test_person_without_spaces(world: World) -> None:
    """Who owns no space gets no certificate."""
    with pytest.raises(Conflict, match="you own no space yet"):
        await world.enrolment.certify_person(ALICE, public_line(a_key()), None)


@pytest.mark.parametrize(("wanted", "given"), [(None, 3600), (60, 60), (3600, 3600), (10**9, 3600)])
async def test_lifetime_is_capped(world: World, wanted: int | None, given: int) -> None:
    """A person may ask for less time than the server gives, never for more."""
    await world.space(ALICE, "backend")
    issued, _ = await world.enrolment.certify_person(ALICE, public_line(a_key()), wanted)
    [(left,)] = world.sql("SELECT expires_at - strftime('%s', 'now') FROM certificates")
    assert isinstance(left, int)
    assert given - 5 <= left <= given
    assert issued.expires_at


@pytest.mark.parametrize("line", ["", "nonsense", "ssh-ed25519 AAAA", "ssh-dss AAAAB3NzaC1kc3M=", "é"])
async def test_other_text_is_not_certified(world: World, line: str) -> None:
    """What is no public key is bad input."""
    await world.space(ALICE, "backend")
    with pytest.raises(BadInput, match=r"^public_key: "):
        await world.enrolment.certify_person(ALICE, line, None)


async def test_short_rsa_key_of_a_person(world: World) -> None:
    """An RSA key that could be factored is bad input."""
    await world.space(ALICE, "backend")
    short = asyncssh.generate_private_key("ssh-rsa", key_size=1024)
    with pytest.raises(BadInput, match=r"^public_key: this ssh-rsa key is not accepted"):
        await world.enrolment.certify_person(ALICE, public_line(short), None)


async def test_ca_key_of_a_person(world: World) -> None:
    """The server's own CA key, which everybody can read, is bad input as a person's key."""
    await world.space(ALICE, "backend")
    with pytest.raises(BadInput, match=r"^public_key: that key cannot be certified: a CA's key"):
        await world.enrolment.certify_person(ALICE, world.authority.user_ca, None)
    assert world.serials(ALICE) == set()


@pytest.mark.parametrize("whose", ["AGENT", "PERSON"])
async def test_certificates_have_an_end(world: World, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has certificates made without end; when some have expired there are others."""
    monkeypatch.setattr(enrolment, f"{whose}_CERTIFICATES_MAX", 3)
    space, token = await world.invited(ALICE, "backend")
    key, host_key = a_key(), a_host_key()
    await world.enrolment.redeem(token.id, key)

    async def certify() -> None:
        if whose == "AGENT":
            await world.certified(space, key, host_key)
        else:
            await world.enrolment.certify_person(ALICE, public_line(key), None)

    for _ in range(3):
        await certify()
    with pytest.raises(Conflict, match="3 certificates"):
        await certify()
    world.sql("UPDATE certificates SET expires_at = 1")
    await certify()


async def test_revoked_person_is_not_certified(world: World) -> None:
    """A key that was revoked is not certified again."""
    space, token = await world.invited(ALICE, "backend")
    await world.space(ALICE, "frontend")
    key = a_key()
    await world.enrolment.redeem(token.id, key)
    await world.certified(space, key, a_host_key())
    await world.spaces.delete(ALICE, space.id)
    assert world.revocations.current.has_key(key)
    with pytest.raises((BadInput, KeyRefused, Conflict)):
        await world.enrolment.certify_person(ALICE, public_line(key), None)
