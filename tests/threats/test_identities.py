"""Certificates and keys that are somebody else's, or are for something else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import (
    MSG_SERVICE_ACCEPT,
    MSG_SERVICE_REQUEST,
    MSG_USERAUTH_FAILURE,
    MSG_USERAUTH_REQUEST,
    MSG_USERAUTH_SUCCESS,
)
from asyncssh.packet import Boolean, String
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.certificates import check_endpoint, check_hub, read_certificate
from knot_keys.connections import HostCheck, WrongHost, connect
from knot_keys.keyfiles import load_key, parse_public_key
from knot_keys.revocation import NOTHING_REVOKED
from knot_ssh.addresses import Address
from knot_ssh.names import Owner, Principal, SpaceId, Zone
from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.forgery import Forge, signed, user_ca_key
from tests.support.planes import stock_plane
from tests.support.rawhub import RawHub
from tests.support.rawssh import CERTIFICATE, LOGIN, MSG_USERAUTH_PK_OK, Denied, Ended, RawSSH, Refused
from tests.support.services import serving
from tests.support.system import AgentOf
from tests.threats.test_strangers import Strangers

Doors = dict[str, tuple[str, int]]


@pytest.fixture(scope="module")
def doors(pair: Pair) -> Doors:
    """Where to log in with a client certificate."""
    hub = Address.parse(pair.system.hub)
    return {"endpoint": pair.backend.endpoint(), "hub": (hub.host, hub.port)}


def certified(agent: AgentOf, name: str = "") -> tuple[asyncssh.SSHKey, SSHOpenSSHCertificate]:
    """An agent's client key and certificate; with a name, those of that file."""
    key = agent.folder / name if name else agent.identity()[0]
    return load_key(key), read_certificate(key.with_name(f"{key.name}-cert.pub").read_text())


def is_probed(peer: RawSSH, login: str, algorithm: bytes, blob: bytes) -> bool:
    """Whether the other side would take this key, of which we show the public half alone (RFC 4252 section 7)."""
    asked = String(login) + String("ssh-connection") + String("publickey") + Boolean(False)
    peer.send(MSG_USERAUTH_REQUEST, asked, String(algorithm), String(blob))
    return peer.expect(MSG_USERAUTH_PK_OK, MSG_USERAUTH_FAILURE)[0] == MSG_USERAUTH_PK_OK


def proves(peer: RawSSH, login: str, key: asyncssh.SSHKey, algorithm: bytes, blob: bytes) -> bool:
    """Whether a signature by this key logs in as whoever the blob is."""
    asked = String(login) + String("ssh-connection") + String("publickey") + Boolean(True) + String(algorithm) + String(blob)
    signed = String(peer.session) + bytes([MSG_USERAUTH_REQUEST]) + asked
    peer.send(MSG_USERAUTH_REQUEST, asked, String(key.sign(signed, LOGIN)))
    return peer.expect(MSG_USERAUTH_SUCCESS, MSG_USERAUTH_FAILURE)[0] == MSG_USERAUTH_SUCCESS


# Somebody else's


@pytest.mark.threat(5, "probe a victim's certificate, then sign with one's own key", "not let in")
@pytest.mark.parametrize("door", ["endpoint", "hub"])
def test_signed_with_another_key(pair: Pair, doors: Doors, strangers: Strangers, figure: Figure, door: str) -> None:
    """The certificate is good, and so the probe says; the signature is not by the key in it."""
    _, victim = certified(pair.frontend)
    mine, _ = certified(strangers["bob", "eu"])
    with RawSSH.dial(doors[door]) as peer:
        service(peer)
        probed = is_probed(peer, "knot", CERTIFICATE, victim.public_data)
        entered = proves(peer, "knot", mine, CERTIFICATE, victim.public_data)
    figure(f"probed: {'yes' if probed else 'no'}, let in: {'yes' if entered else 'no'}")
    assert (probed, entered) == (True, False)


@pytest.mark.threat(5, "probe a victim's certificate, then log in with one's own", "one is who one has proved to be")
def test_identity_after_a_probe(pair: Pair, doors: Doors, strangers: Strangers, figure: Figure) -> None:
    """At the hub bob's own certificate is good; that alice's was shown before opens nothing of hers."""
    _, victim = certified(pair.frontend)
    mine, certificate = certified(strangers["bob", "eu"])
    with RawHub.dial(doors["hub"]) as peer:
        service(peer)
        assert is_probed(peer, "knot", CERTIFICATE, victim.public_data)
        assert proves(peer, "knot", mine, CERTIFICATE, certificate.public_data)
        answer = peer.relayed(pair.backend.id)
        figure(f"logged in as oneself: the victim's space {type(answer).__name__.lower()}")
        assert isinstance(answer, Refused)


@pytest.mark.threat(
    5, "probe a victim's enrolled key under its id, then log in under one's own", "one is who one has proved to be"
)
def test_login_name_after_a_probe(pair: Pair, doors: Doors, strangers: Strangers, figure: Figure) -> None:
    """Changing the login name between requests (RFC 4252 section 5) leaves nothing of the one before."""
    victim, _ = certified(pair.frontend)
    agent = strangers["bob", "us"]
    mine, _ = certified(agent)
    with RawHub.dial(doors["hub"]) as peer:
        service(peer)
        assert is_probed(peer, pair.frontend.id, LOGIN, victim.public_data)
        with contextlib.suppress(Ended, Denied):  # who refuses the change is safe, too
            assert proves(peer, agent.id, mine, LOGIN, mine.public_data)
            as_victim = peer.register("frontend.alice.eu.knot")
            figure(f"logged in as oneself: may be relayed to as the victim: {'yes' if as_victim else 'no'}")
            assert not as_victim
            return
    figure("not let in")


def service(peer: RawSSH) -> None:
    """Ask for authentication."""
    peer.send(MSG_SERVICE_REQUEST, String("ssh-userauth"))
    peer.expect(MSG_SERVICE_ACCEPT)


# For something else

Shown = tuple[asyncssh.SSHKey, SSHOpenSSHCertificate | None]


def host_certificate(pair: Pair, _forge: Forge) -> Shown:
    return certified(pair.frontend, "host_key")


def plain_ca_key(_pair: Pair, forge: Forge) -> Shown:
    return load_key(user_ca_key(forge)), None


def certified_ca_key(_pair: Pair, forge: Forge) -> Shown:
    key = signed(key=user_ca_key)(forge)
    return load_key(key), read_certificate(key.with_name(f"{key.name}-cert.pub").read_text())


@pytest.mark.threat(4, "a host certificate, or a CA's key, to log in with", "not let in")
@pytest.mark.parametrize("door", ["endpoint", "hub"])
@pytest.mark.parametrize("shown", [host_certificate, plain_ca_key, certified_ca_key], ids=lambda shown: shown.__name__)
def test_other_uses(
    pair: Pair,
    doors: Doors,
    tmp_path: Path,
    figure: Figure,
    door: str,
    shown: Callable[[Pair, Forge], Shown],
) -> None:
    """What certifies hosts certifies no clients, and what signs certificates is no key to log in with."""
    key, certificate = shown(pair, Forge(pair.system, tmp_path))
    for login in ("knot", pair.frontend.id, "root"):
        with RawSSH.dial(doors[door]) as peer, pytest.raises(Denied):
            peer.prove(key, login, certificate)
    figure("not let in under any name")


@contextlib.contextmanager
def showing(key: asyncssh.SSHKey, shown: SSHOpenSSHCertificate) -> Iterator[Address]:
    """An SSH server that proves to be this."""

    def serve(connection: socket.socket) -> None:
        peer = RawSSH(connection, server_key=key, shown=shown.public_data)
        with contextlib.suppress(Ended, OSError):
            peer.greet()
            peer.exchange_keys()
            peer.has_ended()

    with serving(serve) as port:
        yield Address("127.0.0.1", port)


@pytest.mark.threat(4, "a client certificate to pass for a host with", "the host is refused for its kind")
@pytest.mark.parametrize("whom", ["hub", "endpoint"])
async def test_client_certificate_as_host(pair: Pair, figure: Figure, whom: str) -> None:
    """Who dials takes no client certificate for a host's, not even where both CAs are trusted."""
    key, certificate = certified(pair.frontend)
    ca = pair.system.api("alice").get("api", "ca")
    cas = [parse_public_key(ca["host_ca"]), parse_public_key(ca["user_ca"])]
    principal = Principal(Owner("alice"), Zone("eu"))
    checks: dict[str, HostCheck] = {
        "hub": lambda shown: check_hub(shown, cas),
        "endpoint": lambda shown: discard(check_endpoint(shown, cas, SpaceId(pair.frontend.id), principal, NOTHING_REVOKED)),
    }
    with showing(key, certificate) as address:
        async with asyncio.timeout(10):
            with pytest.raises(WrongHost, match="wrong kind of certificate") as refused:
                await connect(stock_plane(), address, "knot", checks[whom])
    figure(str(refused.value).rpartition(": ")[2])


def discard(_result: object) -> None:
    """For a check whose result nobody wants."""
