"""What a hostile or broken server says: none of it lands in a file."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from knot_keys.authority import Authority
from knot_keys.identity import Identity
from knot_keys.keyfiles import new_key
from knot_keys.keyring import Step
from knot_keys.openssh.answers import Grant, OtherHostCa, SenselessAnswer, ask
from knot_ssh.api import Api
from knot_ssh.errors import Conflict, KnotError, Unavailable
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from tests.support.saying_api import EMPTY_KRL, SayingApi, Status

KEY = new_key("test")
ID = "11111111-2222-3333-4444-555555555555"
CERT_TIME_FOREVER = (1 << 64) - 1
"""No end (PROTOCOL.certkeys)."""
LINES = "x\nHost *\n    ProxyCommand touch owned"


def asked(server: SayingApi, *, pinned: str = "", now: float | None = None, lifetime: int | None = None) -> Grant:
    with contextlib.closing(Api(server.url, "t")) as api:
        return ask(api, KEY, lifetime, [pinned] if pinned else [], time.time() if now is None else now)


def space(**changes: Any) -> dict[str, Any]:
    return {"id": ID, "name": "frontend", "owner": "alice", "zone": "eu"} | changes


def test_good_answers(server: SayingApi, authority: Authority) -> None:
    """What is kept is what the server said, as values."""
    grant = asked(server, pinned=authority.host_ca)
    assert list(grant.host_cas) == [authority.host_ca]
    assert str(grant.hub) == "127.0.0.1:2222"
    assert [found.full_name for found in grant.spaces] == ["frontend.alice.eu.knot"]
    assert grant.krl == EMPTY_KRL
    assert asyncssh.import_certificate(grant.certificate).key.public_data == KEY.public_data
    assert grant.valid_before - grant.valid_after == 3660
    assert grant.valid_before - grant.renew_after == 1800


def test_lifetime_is_asked_for(server: SayingApi) -> None:
    """A lifetime goes into the order; half of it is over half of it before the end."""
    grant = asked(server, lifetime=600)
    assert (grant.valid_before - grant.valid_after, grant.valid_before - grant.renew_after) == (660, 300)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/ca", {}),
        ("/api/ca", []),
        ("/api/spaces", {"spaces": [space(name=LINES)]}),
        ("/api/spaces", {"spaces": [space(name="*")]}),
        ("/api/spaces", {"spaces": [space(name="a b")]}),
        ("/api/spaces", {"spaces": [space(id="hub.knot")]}),
        ("/api/spaces", {"spaces": [space(id=ID + "\n")]}),
        ("/api/spaces", {"spaces": [space(zone="eu.knot github.com")]}),
        ("/api/spaces", {"spaces": [space(owner="mallory")]}),
        ("/api/spaces", {"spaces": [space(), space(id=ID.replace("1", "2"))]}),
        ("/api/spaces", {"spaces": [space(), space(name="other")]}),
        ("/api/spaces", {"spaces": "frontend"}),
        ("/api/certificates", {"certificate": 1}),
        ("/api/certificates", {"certificate": "ssh-ed25519 AAAA"}),
        ("/api/certificates", {"certificate": "x" * 20_000}),
        ("/api/krl", b""),
        ("/api/krl", b"ssh-ed25519 AAAA\n"),
        ("/api/krl", b"SSHKRL\n\0" + b"\0\0\0\2" + b"\0" * 32),
    ],
)
def test_senseless_answers(server: SayingApi, path: str, answer: object) -> None:
    """Lines in names, patterns, another's space, a name twice, other types, no certificate, no list: refused in one line."""
    server.answers[path] = lambda _: answer
    with pytest.raises(SenselessAnswer, match="nothing was changed") as caught:
        asked(server)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "hub",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:0",
        "-oProxyCommand=x:22",
        "-x:22",
        "a b:22",
        "a\nHost *:22",
        "a%h:22",
        "[::1%lo]:22",
        "a:99999",
    ],
)
def test_senseless_hubs(server: SayingApi, authority: Authority, hub: str) -> None:
    """The hub's address is host and port, and nothing that ssh could take for more."""
    server.answers["/api/ca"] = lambda _: {"user_ca": authority.user_ca, "host_ca": authority.host_ca, "hub": hub}
    with pytest.raises(SenselessAnswer):
        asked(server)


@pytest.mark.parametrize("field", ["user_ca", "host_ca"])
@pytest.mark.parametrize("line", ["", "ssh-ed25519 AAAA", "ecdsa", LINES])
def test_senseless_cas(server: SayingApi, authority: Authority, field: str, line: str) -> None:
    """A CA's key is an ed25519 key line."""
    good = {"user_ca": authority.user_ca, "host_ca": authority.host_ca, "hub": "127.0.0.1:2222"}
    server.answers["/api/ca"] = lambda _: good | {field: line}
    with pytest.raises(SenselessAnswer):
        asked(server)


def test_lines_behind_a_good_key_are_dropped(server: SayingApi, authority: Authority) -> None:
    """Of a key line the key is kept, whatever stands behind it."""
    good = {"user_ca": authority.user_ca, "host_ca": f"{authority.host_ca} a\n@cert-authority * x", "hub": "127.0.0.1:2222"}
    server.answers["/api/ca"] = lambda _: good
    assert list(asked(server).host_cas) == [authority.host_ca]


def certificates(authority: Authority, stranger: Authority) -> dict[str, str]:
    """Certificates that are not what was asked for."""
    alice = Principal(Owner("alice"), Zone("eu"))
    agent = Identity.agent(alice, SpaceName("frontend"), SpaceId(ID))
    person = Identity.person(alice.owner, [alice.zone])
    other = new_key("other").convert_to_public()
    public = KEY.convert_to_public()

    def signed(principals: list[str], **options: Any) -> str:
        """What differs from a good one in this alone."""
        nothing = dict.fromkeys(["permit_x11_forwarding", "permit_agent_forwarding", "permit_pty", "permit_user_rc"], False)
        given: dict[str, Any] = nothing | {"valid_before": "10m"} | options
        ca = authority.users.keys.active
        return _line(ca.generate_user_certificate(public, "person/alice/eu/-/-", principals=principals, **given))

    return {
        "another CA's": stranger.certify_client(public, person, 600).line,
        "for another key": authority.certify_client(other, person, 600).line,
        "an agent's": authority.certify_client(public, agent, 600).line,
        "a host's": _line(authority.hosts.keys.active.generate_host_certificate(public, "hub", principals=["hub.knot"])),
        "for nobody": signed([]),
        "of two owners": signed(["alice@eu", "bob@eu"]),
        "with a command": signed(["alice@eu"], force_command="x"),
        "for two days": signed(["alice@eu"], valid_before="2d"),
        "for ever": signed(["alice@eu"], valid_before=CERT_TIME_FOREVER),
    }


def _line(certificate: asyncssh.SSHCertificate) -> str:
    return certificate.export_certificate("openssh").decode()


@pytest.mark.parametrize(
    ("which", "complaint"),
    [
        ("another CA's", "unknown CA"),
        ("for another key", "for another key"),
        ("an agent's", "not a person's"),
        ("a host's", "refused: "),
        ("for nobody", "refused: "),
        ("of two owners", "refused: identity"),
        ("with a command", "options other than"),
        ("for two days", "longer than 24 h"),
        ("for ever", "longer than 24 h"),
    ],
)
def test_certificate_is_checked(
    server: SayingApi, authority: Authority, stranger: Authority, which: str, complaint: str
) -> None:
    """A certificate that is not a person's, for our key, of the CA that the server names, is refused."""
    line = certificates(authority, stranger)[which]
    server.answers["/api/certificates"] = lambda _: {"certificate": line}
    with pytest.raises(SenselessAnswer, match=complaint):
        asked(server)


@pytest.mark.parametrize("ahead", [-86_400, 86_400])
def test_certificate_that_is_not_good_by_our_clock(server: SayingApi, ahead: int) -> None:
    """When the clocks disagree, nothing is changed and the clock is named."""
    with pytest.raises(SenselessAnswer, match="is this machine's clock right"):
        asked(server, now=time.time() + ahead)


def test_another_host_ca_is_refused_before_anything_is_asked(server: SayingApi, stranger: Authority) -> None:
    """A server with another host CA than the pinned one gets no key of ours to sign."""
    with pytest.raises(OtherHostCa, match="run `knot ssh setup` again"):
        asked(server, pinned=stranger.host_ca)
    assert server.asked == ["/api/ca"]


@pytest.fixture
def rotating(server: SayingApi, tmp_path: Path) -> Authority:
    """CAs of the server's that no other test uses."""
    server.authority = Authority.create(tmp_path)
    return server.authority


def told(server: SayingApi, authority: Authority, **changes: Any) -> None:
    """Have the server say of its CAs what a good one does, but for these changes."""
    server.answers["/api/ca"] = lambda _: (
        {
            "user_ca": authority.user_ca,
            "host_ca": authority.host_ca,
            "user_cas": authority.users.keys.lines,
            "host_cas": authority.hosts.keys.lines,
            "endorsement": authority.endorsement,
            "hub": "127.0.0.1:2222",
        }
        | changes
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_rotation_is_followed(server: SayingApi, rotating: Authority, steps: int) -> None:
    """Both host CAs of a rotation are taken over by who has pinned the older one, before and after the change."""
    pinned = rotating.host_ca
    for step in (Step.PREPARE, Step.ACTIVATE)[:steps]:
        rotating.hosts.take(step)
        rotating.users.take(step)
    told(server, rotating)
    assert list(asked(server, pinned=pinned).host_cas) == rotating.hosts.keys.lines
    assert len(rotating.hosts.keys.lines) == 2


def test_rotation_that_was_missed(server: SayingApi, rotating: Authority) -> None:
    """After the old CA was retired, who has pinned that one alone is told to set up again."""
    pinned = rotating.host_ca
    for step in (Step.PREPARE, Step.ACTIVATE, Step.RETIRE):
        rotating.hosts.take(step)
    told(server, rotating)
    with pytest.raises(OtherHostCa, match="run `knot ssh setup` again"):
        asked(server, pinned=pinned)


@pytest.mark.parametrize("endorsement", ["none", "of another", "by another", "nonsense"])
def test_ca_that_nobody_vouches_for(server: SayingApi, rotating: Authority, tmp_path: Path, endorsement: str) -> None:
    """Whoever is on the way to the server can add a CA of theirs to the list: it is not taken over, and as the active one it is
    refused. Public keys are no secret; the pinned CA's signature is."""
    rotating.hosts.take(Step.PREPARE)
    (tmp_path / "stranger").mkdir()
    stranger = Authority.create(tmp_path / "stranger")
    stranger.hosts.take(Step.PREPARE)
    theirs = stranger.endorsement
    said = {"none": None, "of another": rotating.endorsement, "by another": theirs, "nonsense": "AAAA"}[endorsement]
    cas = [rotating.host_ca, stranger.hosts.keys.lines[1]]
    told(server, rotating, host_cas=cas, endorsement=said)
    assert list(asked(server, pinned=rotating.host_ca).host_cas) == [rotating.host_ca]
    told(server, rotating, host_ca=cas[1], host_cas=cas, endorsement=said)
    with pytest.raises(OtherHostCa):
        asked(server, pinned=rotating.host_ca)


@pytest.mark.parametrize(
    ("status", "code"), [(503, "krl_unavailable"), (404, "not_found")], ids=["no ssh-keygen", "an older server"]
)
def test_server_without_revocation_list(server: SayingApi, status: int, code: str) -> None:
    """A server that cannot make the list, or does not know of it, gives the rest."""
    server.answers["/api/krl"] = lambda _: Status(status, {"success": False, "error": "no", "code": code})
    assert asked(server).krl is None


def test_a_list_that_is_late_is_missing(server: SayingApi) -> None:
    """Any other failure is one: a list is never left out because a request was lost."""
    server.answers["/api/krl"] = lambda _: Status(503, {"success": False, "error": "store", "code": "store_unavailable"})
    with pytest.raises(Unavailable):
        asked(server)


def test_refusals_are_the_servers(server: SayingApi) -> None:
    """What the server refuses is raised as its error."""
    server.answers["/api/certificates"] = lambda _: Status(409, {"success": False, "error": "no space", "code": "conflict"})
    with pytest.raises(Conflict, match="no space"):
        asked(server)


@pytest.mark.parametrize("code", ["damaged_block", "senseless_answer", "other_host_ca", "not_set_up", "no_such_code"])
def test_codes_of_ours_from_the_server(server: SayingApi, code: str) -> None:
    """A server that answers with a code of errors that are made here is one that failed, no more."""
    server.answers["/api/ca"] = lambda _: Status(500, {"success": False, "error": "x", "code": code})
    with pytest.raises(KnotError, match=r"^x$"):
        asked(server)
