"""The relay on the wire: who gets through the hub, where to, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_CLOSE, MSG_CHANNEL_EOF

from knot_keys.certificates import issue_client, read_certificate
from knot_keys.identity import Identity
from knot_keys.keyfiles import load_key, new_key
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from tests.conftest import Pair
from tests.support.rawhub import RawHub
from tests.support.rawssh import PACKET, Denied, Ended, Opened, Refused
from tests.support.services import noise
from tests.support.system import AgentOf, System
from tests.support.waiting import until

BACKEND = "backend-api.alice.eu.knot"
NAMES = ["backend-api", "backend-api.knot", BACKEND]
SECONDS = 2
"""What is left of a certificate that is to end during a test."""


@pytest.fixture(scope="module")
def others(pair: Pair) -> dict[str, AgentOf]:
    """Running spaces of another zone, and of another owner."""
    system = pair.system
    return {
        "other zone": system.space("relay-zone", zone="us"),
        "other owner": system.space("relay-owner", owner="bob"),
        "neither": system.space("relay-neither", owner="bob", zone="us"),
    }


@pytest.fixture(scope="module")
def endpoint(pair: Pair) -> AgentOf:
    """A space of alice's in eu whose agent does not run: a test registers for it."""
    agent = pair.system.space("relay-endpoint")
    agent.stop()
    return agent


def name_of(agent: AgentOf, zone: str = "eu") -> str:
    return f"{agent.name}.{agent.owner}.{zone}.knot"


def ca(system: System, name: str = "user_ca") -> asyncssh.SSHKey:
    """The server's CA key, which no attacker has."""
    return load_key(system.folder / "server" / name)


def identity(agent: AgentOf) -> Identity:
    return Identity.agent(Principal(Owner("alice"), Zone("eu")), SpaceName(agent.name), SpaceId(agent.id))


# Who, and where to


def test_own_owner_and_zone_get_through(pair: Pair, tmp_path: Path) -> None:
    """An agent, and a person, of the same owner and zone reach the space by each of its names, and its endpoint answers."""
    person = pair.system.certificate("alice", tmp_path)
    certificate = read_certificate(person.with_name(person.name + "-cert.pub").read_text())
    doors: list[Callable[[], RawHub]] = [
        lambda: RawHub.caller(pair.frontend),
        lambda: RawHub.enter(pair.system, load_key(person), "whoever", certificate),
    ]
    for door in doors:
        with door() as peer:
            for name in (*NAMES, pair.backend.id):
                channel = peer.relayed(name)
                assert isinstance(channel, Opened), (name, channel)
                assert peer.read(channel, 4).startswith(b"SSH-")
                peer.sock.sendall(peer.closing(channel))
                peer.expect(MSG_CHANNEL_CLOSE)


@pytest.mark.parametrize("who", ["other zone", "other owner", "neither"])
def test_nobody_else_gets_through(pair: Pair, others: dict[str, AgentOf], who: str) -> None:
    """Another owner or zone is refused under every name, in the words for what does not exist; the target hears nothing."""
    assert pair.backend.running
    before = len(pair.backend.running.lines())
    with RawHub.caller(others[who]) as peer:
        absent = peer.relayed("absent")
        assert isinstance(absent, Refused)
        for name in (*NAMES, pair.backend.id):
            answer = peer.relayed(name)
            assert isinstance(answer, Refused)
            assert (answer.code, answer.reason.replace(name, "absent")) == (absent.code, absent.reason)
    assert len(pair.backend.running.lines()) == before


def test_the_hub_is_no_way_out(pair: Pair) -> None:
    """Through the hub one gets to endpoints, and to no address, metadata service, other port, or the hub's own ports."""
    http = int(pair.system.http_address.rpartition(":")[2])
    hosts = ("127.0.0.1", "::1", "localhost", "169.254.169.254", "0.0.0.0", "")
    places = [(host, port) for host in hosts for port in (22, http)]
    places += [(BACKEND, port) for port in (0, 21, 80, 2022, http, 2**32 - 1)]
    places += [(name, 22) for name in ("hub.knot", "example.com", BACKEND + ".", BACKEND.upper(), "\0", "x" * 30_000)]
    with RawHub.caller(pair.frontend) as peer:
        for host, port in places:
            assert isinstance(peer.relayed(host, port), Refused), (host, port)
        assert isinstance(peer.relayed(BACKEND), Opened)


# With what


def test_plain_keys_do_not_log_in(pair: Pair) -> None:
    """A key without a certificate opens nothing: not under a name, not the enrolled one, not under another's space."""
    enrolled, new = load_key(pair.frontend.identity()[0]), new_key("x")
    for key, login in ((new, "knot"), (enrolled, "knot"), (enrolled, pair.backend.id), (new, pair.frontend.id)):
        with pytest.raises(Denied):
            RawHub.enter(pair.system, key, login)


def test_certificate_under_a_space(pair: Pair) -> None:
    """Under a space's id no certificate logs in, not even its own agent's."""
    key, certificate = pair.frontend.identity()
    with pytest.raises(Denied):
        RawHub.enter(pair.system, load_key(key), pair.frontend.id, read_certificate(certificate.read_text()))


def test_host_certificates_do_not_log_in(pair: Pair) -> None:
    """An endpoint's host certificate logs nobody in."""
    folder = pair.frontend.folder
    certificate = read_certificate((folder / "host_key-cert.pub").read_text())
    with pytest.raises(Denied):
        RawHub.enter(pair.system, load_key(folder / "host_key"), "knot", certificate)


def test_certificates_of_other_authorities_do_not_log_in(pair: Pair) -> None:
    """What is certified by the CA for hosts, by one's own, or for another's key, is worth nothing."""
    key = new_key("x")
    for authority in (ca(pair.system, "host_ca"), new_key("own CA")):
        certificate = read_certificate(issue_client(authority, key.convert_to_public(), identity(pair.frontend)).line)
        with pytest.raises(Denied):
            RawHub.enter(pair.system, key, "knot", certificate)
    stolen = read_certificate(pair.frontend.identity()[1].read_text())
    with pytest.raises(Denied):
        RawHub.enter(pair.system, key, "knot", stolen)


# For how long


def test_expired_certificate(pair: Pair, endpoint: AgentOf) -> None:
    """When a caller's certificate ends it opens nothing more, and logs in no more; what is open goes on."""
    key = new_key("x")
    now = time.time()
    issued = issue_client(ca(pair.system), key.convert_to_public(), identity(pair.frontend), lifetime=SECONDS, now=now)
    certificate = read_certificate(issued.line)
    with RawHub.member(endpoint) as far, RawHub.enter(pair.system, key, "knot", certificate) as near:
        assert far.register(name_of(endpoint))
        near.sock.sendall(near.opening(22, host=name_of(endpoint)))
        there = far.asked()
        far.grant(there)
        here = near.answer()
        assert isinstance(here, Opened)
        until(lambda: time.time() >= issued.expires_at, what="the certificate has ended")
        assert isinstance(near.relayed(name_of(endpoint)), Refused)
        near.sock.sendall(near.data(here, b"still"))
        assert far.read(there, 5) == b"still"
        with pytest.raises(Denied):
            RawHub.enter(pair.system, key, "knot", certificate)


def test_revoked_certificate(pair: Pair, endpoint: AgentOf) -> None:
    """When a caller's space is deleted its connection to the hub ends, with all that goes through, and none is made anew."""
    doomed = pair.system.space("relay-doomed")
    key, certificate = load_key(doomed.identity()[0]), read_certificate(doomed.identity()[1].read_text())
    with RawHub.member(endpoint) as far, RawHub.caller(doomed) as near:
        assert far.register(name_of(endpoint))
        near.sock.sendall(near.opening(22, host=name_of(endpoint)))
        there = far.asked()
        far.grant(there)
        assert isinstance(near.answer(), Opened)
        pair.system.knot("space", "delete", "relay-doomed", user="alice")
        assert near.has_ended()
        kind, _ = far.expect(MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE)
        assert kind in (MSG_CHANNEL_EOF, MSG_CHANNEL_CLOSE)
    with pytest.raises(Denied):
        RawHub.enter(pair.system, key, "knot", certificate)
    with pytest.raises(Denied):
        RawHub.enter(pair.system, key, doomed.id)


def is_refused(near: RawHub, name: str) -> bool:
    return isinstance(near.relayed(name), Refused)


def test_deleted_target(pair: Pair) -> None:
    """Once a space is deleted nobody is relayed to it, and its agent's connection ends."""
    doomed = pair.system.space("relay-doomed")
    with RawHub.caller(pair.frontend) as near, RawHub.member(doomed) as far:
        assert isinstance(near.relayed("relay-doomed"), Opened)
        assert far.register(name_of(doomed))
        pair.system.knot("space", "delete", "relay-doomed", user="alice")
        assert far.has_ended()
        for name in ("relay-doomed", name_of(doomed), doomed.id):
            until(partial(is_refused, near, name), what="it is gone")


# Registering


def test_own_name_alone(pair: Pair, endpoint: AgentOf) -> None:
    """An agent is relayed to under its own full name, and under no other name or port."""
    for host, port in ((BACKEND, 22), ("", 22), ("relay-endpoint", 22), (name_of(endpoint, "us"), 22), (name_of(endpoint), 0)):
        with RawHub.member(endpoint) as far:
            assert not far.register(host, port)
    with RawHub.member(endpoint) as far:
        assert far.register(name_of(endpoint))


def test_members_and_callers_are_two_things(pair: Pair) -> None:
    """With a certificate one is not relayed to; with an enrolled key one opens no channel."""
    with RawHub.caller(pair.frontend) as near, RawHub.member(pair.frontend) as far:
        assert not near.register("frontend.alice.eu.knot")
        assert isinstance(far.relayed(BACKEND), Refused)


def test_latest_registration_serves(pair: Pair, endpoint: AgentOf) -> None:
    """Of two connections of one space the later is relayed to, and the earlier once that is gone or has taken it back."""
    name = name_of(endpoint)
    with RawHub.member(endpoint) as first, RawHub.caller(pair.frontend) as near:
        assert first.register(name)

        def reaches(far: RawHub) -> None:
            near.sock.sendall(near.opening(22, host=name))
            far.refuse(far.asked())
            assert isinstance(near.answer(), Refused)

        reaches(first)
        for goes in ("lost", "taken back"):
            with RawHub.member(endpoint) as second:
                assert second.register(name)
                reaches(second)
                if goes == "taken back":
                    assert second.register(name, kind="cancel-tcpip-forward")
                    reaches(first)
            until(lambda: serves(near, name, first), what="the first serves again")


def serves(near: RawHub, name: str, far: RawHub) -> bool:
    """Whether a caller is relayed to this connection; the answer may also be that of one that is just lost."""
    near.sock.sendall(near.opening(22, host=name))
    far.sock.settimeout(0.2)
    try:
        far.refuse(far.asked())
    except TimeoutError:
        return False
    finally:
        far.sock.settimeout(20)
        near.answer()
    return True


def test_registering_twice(pair: Pair, endpoint: AgentOf) -> None:
    """However often a connection asks, once it is gone nobody is relayed to it."""
    name = name_of(endpoint)
    with RawHub.caller(pair.frontend) as near:
        with RawHub.member(endpoint) as far:
            assert far.register(name)
            for _ in range(5):
                far.register(name)
        until(lambda: "no space" in getattr(near.relayed(name), "reason", ""), what="it is known no more")


def test_taking_back_twice(pair: Pair, endpoint: AgentOf) -> None:
    """To take back what is not there ends the connection of who does it, and nobody else's."""
    name = name_of(endpoint)
    with RawHub.member(endpoint) as first, RawHub.member(endpoint) as second, RawHub.caller(pair.frontend) as near:
        assert first.register(name)
        assert second.register(name)
        assert second.register(name, kind="cancel-tcpip-forward")
        with pytest.raises(Ended):
            second.register(name, kind="cancel-tcpip-forward")
        near.sock.sendall(near.opening(22, host=name))
        first.refuse(first.asked())
        assert isinstance(near.answer(), Refused)


# What passes


def say(peer: RawHub, channel: Opened, data: bytes) -> None:
    """All of this, and the end."""
    pieces = [peer.data(channel, data[at : at + PACKET]) for at in range(0, len(data), PACKET)]
    peer.sock.sendall(b"".join(pieces) + peer.eof(channel))


def test_bytes_and_ends_pass(pair: Pair, endpoint: AgentOf) -> None:
    """What each side says arrives whole, in its order, and its end behind it, while the other side goes on."""
    there, back = noise(1_000_000), noise(900_000)
    with RawHub.member(endpoint) as far, RawHub.caller(pair.frontend) as near:
        assert far.register(name_of(endpoint))
        near.sock.sendall(near.opening(22, host=name_of(endpoint)))
        their = far.asked()
        far.grant(their)
        ours = near.answer()
        assert isinstance(ours, Opened)
        assert min(ours.window, their.window) > len(there)
        say(near, ours, there)
        assert (far.read(their, len(there)) == there) is True
        far.expect(MSG_CHANNEL_EOF)
        say(far, their, back)
        assert (near.read(ours, len(back)) == back) is True
        near.expect(MSG_CHANNEL_EOF)
        for peer in (near, far):
            peer.expect(MSG_CHANNEL_CLOSE)
