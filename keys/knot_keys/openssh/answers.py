"""What the server says, checked before any of it lands in a file.

Every name, id, address and key is read by the type of its own, and only what those types hold is kept. The certificate must
be good at this moment, for our key, of the user CA that the server names, and of one person.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self, TypeVar

import asyncssh
from pydantic import BaseModel, Field, ValidationError

from knot_keys.certificates import BACKDATE, CertificateRefused, check_client, expires_at, read_certificate, starts_at
from knot_keys.identity import Role
from knot_keys.keyfiles import parse_public_key, public_line
from knot_keys.openssh.texts import Space
from knot_keys.openssh.trial import try_krl
from knot_keys.possession import for_successor, is_proof
from knot_keys.revocation import NOTHING_REVOKED
from knot_ssh.addresses import Address
from knot_ssh.api import Api
from knot_ssh.errors import BadInput, KnotError, KrlUnavailable, NotFound
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from knot_ssh.wire import first_complaint

SPACES_MAX = 10_000
LIFETIME_MAX = 24 * 3600
"""Seconds; `knot server run` takes no longer `--certificate-lifetime`. (CERT_TIME_FOREVER is no time that could be shown.)"""
LINE_MAX = 1 << 14
"""Characters of a key or certificate: one with a hundred zones and an RSA key of 16384 bits is shorter."""
CAS_MAX = 4
"""CAs of one kind that may be trusted at a time; a rotation has two."""
KRL_MAGIC = b"SSHKRL\n\x00" + b"\x00\x00\x00\x01"
"""How a key revocation list begins, with its format's version (PROTOCOL.krl, KRL_MAGIC)."""
Answer = TypeVar("Answer", bound=BaseModel)
Parsed = TypeVar("Parsed")


class OtherHostCa(KnotError):
    """The server names another host CA than the one pinned at setup. If that is meant to be, run `knot ssh setup` again."""

    code = "other_host_ca"


class SenselessAnswer(KnotError):
    """The server's answer makes no sense, and nothing was changed."""

    code = "senseless_answer"

    @classmethod
    def because(cls, complaint: str) -> Self:
        return cls(f"the server's answer makes no sense, and nothing was changed: {complaint}")


_Line = Annotated[str, Field(max_length=LINE_MAX)]


class _Ca(BaseModel):
    user_ca: str = Field(max_length=LINE_MAX)
    host_ca: str = Field(max_length=LINE_MAX)
    user_cas: list[_Line] = Field(default=[], max_length=CAS_MAX)
    host_cas: list[_Line] = Field(default=[], max_length=CAS_MAX)
    endorsement: str | None = Field(default=None, max_length=LINE_MAX)
    hub: str


class _Certificate(BaseModel):
    certificate: str = Field(max_length=LINE_MAX)


class _Space(BaseModel):
    id: SpaceId
    name: SpaceName
    owner: Owner
    zone: Zone


class _Spaces(BaseModel):
    spaces: list[_Space] = Field(max_length=SPACES_MAX)


@dataclass(frozen=True, slots=True)
class Grant:
    """All that stock ssh needs, as one server says it at one moment. Times are seconds since 1970."""

    host_cas: tuple[str, ...]
    hub: Address
    certificate: str
    valid_after: int
    valid_before: int
    spaces: tuple[Space, ...]
    krl: bytes | None
    """None where the server cannot make one."""

    @property
    def renew_after(self) -> int:
        """When half of the certificate's life is over."""
        return (self.valid_after + BACKDATE + self.valid_before) // 2


def ask(api: Api, key: asyncssh.SSHKey, lifetime: int | None, pinned: Collection[str], now: float) -> Grant:
    """Ask the server for everything. `pinned` are the host CAs to expect; none takes whatever they are.

    Raises OtherHostCa, SenselessAnswer, Conflict for who owns no space, and as Api does.
    """
    ca = _read(_Ca, api.get("api", "ca"))
    user_cas = _keys(ca.user_ca, ca.user_cas)
    host_cas = _vouched_for(_keys(ca.host_ca, ca.host_cas), ca.endorsement, pinned)
    hub = _sensible(_dialled, ca.hub)
    order = {"public_key": public_line(key)} | ({} if lifetime is None else {"lifetime": lifetime})
    certificate = _read(_Certificate, api.post("api", "certificates", body=order)).certificate
    line, owner, start, end = _sensible(lambda text: _checked(text, key, user_cas, now), certificate)
    spaces = _of_one_owner(_read(_Spaces, api.get("api", "spaces")), owner)
    return Grant(tuple(map(public_line, host_cas)), hub, line, start, end, spaces, _krl(api))


def _read(model: type[Answer], answer: Any) -> Answer:
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise SenselessAnswer.because(first_complaint(error)) from None


def _sensible(parse: Callable[[str], Parsed], text: str) -> Parsed:
    try:
        return parse(text)
    except KnotError as error:
        raise SenselessAnswer.because(str(error)) from None


def _keys(active: str, trusted: Sequence[str]) -> list[asyncssh.SSHKey]:
    """The CAs of one kind, each once, the active one first; a server of before names it alone."""
    return [_sensible(parse_public_key, line) for line in dict.fromkeys([active, *trusted])]


def _vouched_for(cas: list[asyncssh.SSHKey], endorsement: str | None, pinned: Collection[str]) -> list[asyncssh.SSHKey]:
    """The host CAs to trust: all where none is pinned, else those that are, and the one that a pinned one has signed.

    A list alone proves nothing: public keys are no secret, and who is on the way to the server could add another. Raises
    OtherHostCa where the active one is not to be trusted.
    """
    known = [ca for ca in cas if not pinned or public_line(ca) in pinned]
    vouched = [ca for ca in cas if endorsement and any(is_proof(pin, for_successor(ca), endorsement) for pin in known)]
    trusted = [ca for ca in cas if ca in known or ca in vouched]
    if cas[0] not in trusted:
        raise OtherHostCa
    return trusted


def _dialled(text: str) -> Address:
    """The hub's address; a host that begins like an option, and a port that nobody listens at, are none."""
    address = Address.parse(text, what="the hub's address")
    if address.host.startswith("-") or not address.port:
        raise BadInput(f"the hub's address {text!r} is not one to dial")
    return address


def _checked(line: str, key: asyncssh.SSHKey, user_cas: Collection[asyncssh.SSHKey], now: float) -> tuple[str, Owner, int, int]:
    """The certificate's own line, whose it is, and from when until when it is good."""
    certificate = read_certificate(line)
    try:
        client = check_client(certificate, user_cas, NOTHING_REVOKED, now=now)
    except CertificateRefused as error:
        raise KnotError(f"the certificate is refused: {error} (is this machine's clock right?)") from None
    if certificate.key.public_data != key.public_data:
        raise KnotError("the certificate is for another key")
    if client.identity.role is not Role.PERSON:
        raise KnotError("the certificate is not a person's")
    if expires_at(certificate) > now + BACKDATE + LIFETIME_MAX:
        raise KnotError(f"the certificate is for longer than {LIFETIME_MAX // 3600} h")
    words = certificate.export_certificate("openssh").decode("ascii").split()[:2]
    return " ".join(words), client.identity.owner, int(starts_at(certificate)), int(expires_at(certificate))


def _of_one_owner(answer: _Spaces, owner: Owner) -> tuple[Space, ...]:
    """The spaces, each name and each id once; raises SenselessAnswer."""
    spaces = [Space(space.name, Principal(space.owner, space.zone), space.id) for space in answer.spaces]
    if any(space.principal.owner != owner for space in spaces):
        raise SenselessAnswer.because("it lists another user's space")
    if len({space.name for space in spaces}) != len(spaces) or len({space.space_id for space in spaces}) != len(spaces):
        raise SenselessAnswer.because("it lists a space twice")
    return tuple(sorted(spaces))


def _krl(api: Api) -> bytes | None:
    try:
        krl = api.get_bytes("api", "krl")
    except (KrlUnavailable, NotFound):
        return None
    if not krl.startswith(KRL_MAGIC):
        raise SenselessAnswer.because("what it calls a key revocation list is none")
    try_krl(krl)
    return krl
