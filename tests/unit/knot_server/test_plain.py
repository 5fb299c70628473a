"""Joining with an ordinary sshd: what is asked of a request, what is enrolled, and who may have a certificate then."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import CertificateRefused, check_endpoint, read_certificate
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import fingerprint, public_line
from knot_server.hub import plain
from knot_server.hub.doorkeeper import LOGIN_REASONS, TOKEN_REFUSED, Joiner, Member
from knot_server.hub.plain import REQUEST_LIMIT, Plain
from knot_server.refusals import Refusals
from knot_server.store.schema import Space
from knot_server.usecases import enrolment
from knot_ssh.errors import BadInput, Conflict, JoinRefused, KeyRefused, KnotError
from tests.support.sshkeygen import made_key, signed
from tests.unit.knot_server.conftest import ALICE, ROOT, World, host_key_request

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


def stdin_of(data: bytes) -> Any:
    """A stream with this in it, and an end."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@dataclass
class Machine:
    """One that wants to be alice's `db`, with the two keys that it has, and a token."""

    world: World
    space: Space
    token: JoinToken
    folder: Path
    key: tuple[Path, asyncssh.SSHKey]
    host: tuple[Path, asyncssh.SSHKey]

    @property
    def plain(self) -> Plain:
        return Plain(self.world.enrolment, self.world.revocations, Refusals(LOGIN_REASONS))

    @property
    def member(self) -> Member:
        return Member(self.space.space_id, self.key[1])

    def request(self, *, namespaces: tuple[str, str] = ("knot-registration", "knot-host"), message: str = "") -> bytes:
        """What its script would send."""
        said = (message or self.space.id).encode()
        lines = [public_line(key) + " a comment\n" for _, key in (self.key, self.host)]
        pairs = zip((self.key[0], self.host[0]), namespaces, strict=True)
        return "".join([*lines, *(signed(file, namespace, said) for file, namespace in pairs)]).encode()

    async def join(self, data: bytes | None = None) -> SSHOpenSSHCertificate:
        """The certificate that it is given; it is good for this very space and host key."""
        line = await self.plain.join(Joiner(self.token.id), stdin_of(self.request() if data is None else data))
        return self.checked(line)

    def checked(self, line: bytes) -> SSHOpenSSHCertificate:
        certificate = read_certificate(line.decode())
        world, space = self.world, self.space
        revoked = world.revocations.current
        check_endpoint(certificate, [world.authority.host_ca_key], space.space_id, space.principal, revoked)
        assert fingerprint(certificate.key) == fingerprint(self.host[1])
        return certificate

    async def stored(self) -> Space:
        space = await self.world.enrolment.space(self.space.space_id)
        assert space
        return space


@pytest.fixture
async def machine(world: World, tmp_path: Path) -> Machine:
    space, token = await world.invited(ALICE, "db")
    return Machine(world, space, token, tmp_path, made_key(tmp_path, "key"), made_key(tmp_path, "host"))


async def test_join(machine: Machine) -> None:
    """Both keys are enrolled, the space has no agent from then on, and the answer certifies the host key for 30 days."""
    certificate = await machine.join()
    space = await machine.stored()
    assert (space.agentless, space.enrolled_key, space.host_key) == (
        True,
        public_line(machine.key[1]),
        public_line(machine.host[1]),
    )
    [(expires_at, starts_at)] = machine.world.sql(
        "SELECT expires_at, strftime('%s') FROM certificates WHERE space_id = ?", space.id
    )
    assert 30 * 24 * 3600 - 60 < int(str(expires_at)) - int(str(starts_at)) <= 30 * 24 * 3600
    assert certificate.principals == [space.id, "db.alice.eu.knot"]


async def test_same_token_and_keys_again(machine: Machine) -> None:
    """A machine that has lost the answer asks again, and is certified again; nothing is revoked."""
    await machine.join()
    await machine.join()
    assert not machine.world.revocations.current.serials


async def test_token_is_used_once(machine: Machine, tmp_path: Path) -> None:
    """Another machine with the same token is refused, with what to do; the first is as it was."""
    await machine.join()
    other = Machine(machine.world, machine.space, machine.token, tmp_path, made_key(tmp_path, "k2"), machine.host)
    with pytest.raises(JoinRefused, match="used already; make a new one with `knot space sshd db`"):
        await other.join()
    assert (await machine.stored()).enrolled_key == public_line(machine.key[1])


def swapped(data: bytes) -> bytes:
    first, second, rest = data.split(b"\n", 2)
    return b"\n".join([second, first, rest])


def swapped_signatures(data: bytes) -> bytes:
    head, first, second = data.split(b"-----BEGIN")
    return b"-----BEGIN".join([head, second, first])


WRONG: dict[str, tuple[Callable[[bytes], bytes], type[KnotError]]] = {
    "nothing": (lambda data: b"", BadInput),
    "no signatures": (lambda data: data.partition(b"-----")[0], BadInput),
    "one signature": (lambda data: data.rpartition(b"-----BEGIN")[0], BadInput),
    "three": (lambda data: data + b"-----BEGIN" + data.rpartition(b"-----BEGIN")[2], BadInput),
    "cut off": (lambda data: data[:-5], BadInput),
    "something besides": (lambda data: data + b"x", BadInput),
    "too long": (lambda data: data.replace(b"a comment", b"a" * REQUEST_LIMIT, 1), BadInput),
    "one key twice": (lambda data: b"\n".join([data.split(b"\n")[0]] * 2 + data.split(b"\n")[2:]), BadInput),
    "not text": (lambda data: data.replace(b"ssh-ed25519", b"\xff\xfe", 1), KnotError),
    "keys swapped": (swapped, JoinRefused),
    "signatures swapped": (swapped_signatures, JoinRefused),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_requests(machine: Machine, case: str) -> None:
    """A request that is not whole, or proves something else, is refused and uses up nothing."""
    change, error = WRONG[case]
    with pytest.raises(error):
        await machine.join(change(machine.request()))
    assert (await machine.stored()).enrolled_key is None
    await machine.join()


@pytest.mark.parametrize(
    "options",
    [
        {"namespaces": ("knot-host", "knot-registration")},
        {"namespaces": ("knot-registration", "file")},
        {"message": "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c"},
    ],
    ids=["namespaces swapped", "another namespace", "another space"],
)
async def test_proof_of_something_else(machine: Machine, options: dict[str, Any]) -> None:
    """Signatures for another purpose or another space prove nothing, and the refusal is counted."""
    refusals = Refusals(LOGIN_REASONS)
    door = Plain(machine.world.enrolment, machine.world.revocations, refusals)
    with pytest.raises(JoinRefused, match="do not prove possession"):
        await door.join(Joiner(machine.token.id), stdin_of(machine.request(**options)))
    assert refusals.counts[TOKEN_REFUSED] == 1
    await machine.join()


async def test_request_that_does_not_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not end the request is refused in time."""
    monkeypatch.setattr(plain, "REQUEST_SECONDS", 0.01)
    with pytest.raises(BadInput, match="did not come whole"):
        await machine.plain.join(Joiner(machine.token.id), cast(Any, asyncio.StreamReader()))


async def test_renewal(machine: Machine) -> None:
    """The registration key gets another certificate, for the host key that was enrolled."""
    first = await machine.join()
    second = machine.checked(await machine.plain.certify(machine.member, stdin_of(b"")))
    assert first.public_data != second.public_data


async def test_who_gets_no_certificate(machine: Machine) -> None:
    """Not a key that is not enrolled, not an agent's, and not that of a space that is gone."""
    with pytest.raises(KeyRefused):
        await machine.plain.certify(machine.member, stdin_of(b""))
    await machine.world.enrolment.redeem(machine.token.id, machine.key[1])
    for question in (machine.plain.certify, machine.plain.krl):
        with pytest.raises(KeyRefused):
            await question(machine.member, stdin_of(b""))
    await machine.world.spaces.delete(ALICE, "db")
    for question in (machine.plain.certify, machine.plain.krl):
        with pytest.raises(KeyRefused):
            await question(machine.member, stdin_of(b""))


async def test_no_agent_with_its_key(machine: Machine) -> None:
    """The registration key gets no client certificate, and is no agent's key."""
    await machine.join()
    request = host_key_request(asyncssh.generate_private_key("ssh-ed25519"), machine.space.space_id)
    with pytest.raises(KeyRefused):
        await machine.world.enrolment.certify_agent(machine.space.space_id, machine.key[1], request)
    assert not await machine.world.enrolment.is_agents_key(machine.space.space_id, machine.key[1])


async def test_key_does_not_change_sides(machine: Machine) -> None:
    """A key that is enrolled as an sshd's cannot become an agent's, nor the other way round: neither would be cut off."""
    await machine.join()
    token = await machine.world.token(ALICE, machine.space)
    with pytest.raises(JoinRefused, match="make another"):
        await machine.world.enrolment.redeem(token.id, machine.key[1])
    other, invitation = await machine.world.invited(ALICE, "other")
    agents_key = asyncssh.generate_private_key("ssh-ed25519").convert_to_public()
    await machine.world.enrolment.redeem(invitation.id, agents_key)
    again = await machine.world.token(ALICE, other)
    with pytest.raises(JoinRefused, match="make another"):
        await machine.world.enrolment.redeem(again.id, agents_key, machine.host[1])


async def test_another_host_key(machine: Machine, tmp_path: Path) -> None:
    """When the machine's host key is a new one, what was certified for the old one is void; the registration stays good."""
    before = read_certificate((await machine.plain.join(Joiner(machine.token.id), stdin_of(machine.request()))).decode())
    machine.host = made_key(tmp_path, "new")
    machine.token = await machine.world.token(ALICE, machine.space)
    await machine.join()
    revoked = machine.world.revocations.current
    with pytest.raises(CertificateRefused, match="revoked"):
        check_endpoint(before, [machine.world.authority.host_ca_key], machine.space.space_id, machine.space.principal, revoked)
    assert not revoked.has_key(machine.key[1])


async def test_agent_voids_all_of_it(machine: Machine) -> None:
    """Once an agent has joined, the registration key and every certificate of the sshd are void, and it runs no more."""
    certificate = read_certificate((await machine.plain.join(Joiner(machine.token.id), stdin_of(machine.request()))).decode())
    token = await machine.world.token(ALICE, machine.space)
    await machine.world.enrolment.redeem(token.id, asyncssh.generate_private_key("ssh-ed25519").convert_to_public())
    revoked = machine.world.revocations.current
    assert revoked.has_key(machine.key[1])
    assert revoked.covers_certificate(certificate)
    assert not (await machine.stored()).agentless


async def test_deleted_user_voids_all_of_it(machine: Machine) -> None:
    """Once the owner is deleted, registration key and certificates are void."""
    certificate = read_certificate((await machine.plain.join(Joiner(machine.token.id), stdin_of(machine.request()))).decode())
    await machine.world.users.delete(ROOT, ALICE.owner)
    revoked = machine.world.revocations.current
    assert revoked.has_key(machine.key[1])
    assert revoked.covers_certificate(certificate)


async def test_certificates_without_end(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that asks for one certificate after the other is refused some time, until the first have expired."""
    monkeypatch.setattr(enrolment, "SSHD_CERTIFICATES_MAX", 3)
    await machine.join()
    for _ in range(2):
        await machine.plain.certify(machine.member, stdin_of(b""))
    with pytest.raises(Conflict, match="the most there may be"):
        await machine.plain.certify(machine.member, stdin_of(b""))
    machine.world.sql("UPDATE certificates SET expires_at = 1 WHERE serial = (SELECT min(serial) FROM certificates)")
    await machine.plain.certify(machine.member, stdin_of(b""))
