"""Stock ssh reaches that very space and no other: its host certificate is checked under the space's id."""

from __future__ import annotations

import pytest

from tests.conftest import Pair
from tests.support.plainssh import HUB_HOST, Desk, Way, straight
from tests.support.services import Ends, answering, serving


def test_host_certificate_is_verified(way: Way, pair: Pair) -> None:
    """`ssh -v` shows the certificate of that space, its id as the name that was checked, and our CA as its signer."""
    with serving(answering(b"verified")) as port:
        result = way.run("-v", "-W", f"127.0.0.1:{port}")
    said = result.stderr.decode()
    assert result.stdout == b"verified"
    shown = next(line for line in said.splitlines() if f'ID "host/alice/eu/backend-api/{pair.backend.id}"' in line)
    assert "Server host certificate: ssh-ed25519-cert-v01@openssh.com" in shown
    assert f"Host '{pair.backend.id}' is known and matches the ED25519-CERT host certificate." in said
    assert f"Found CA key in {way.desk.folder / 'known_hosts'}:1" in said


def test_hub_is_verified(desk: Desk) -> None:
    """The hub shows a certificate for `hub.knot`, whatever its address is."""
    said = desk.run("-v", HUB_HOST).stderr.decode()
    assert "Host 'hub.knot' is known and matches the ED25519-CERT host certificate." in said


def refuses_the_other(result_stderr: bytes, pair: Pair) -> None:
    said = result_stderr.decode()
    assert "Certificate invalid: name is not a listed principal" in said
    assert f"No ED25519 host key is known for {pair.backend.id} and you have requested strict checking" in said
    assert "Host key verification failed" in said


def test_wrong_port(desk: Desk, pair: Pair) -> None:
    """Another space of the same owner and zone that answers at the address is refused, before it learns who asks."""
    way = straight(desk, pair.backend)
    options = [str(pair.frontend.endpoint()[1]) if word == way.options[-1] else word for word in way.options]
    ends = Ends(b"wrong")
    with serving(ends) as port:
        result = Way(desk, way.host, tuple(options)).run("-v", "-W", f"127.0.0.1:{port}")
    assert (result.returncode, result.stdout, ends.seen) == (255, b"", [])
    refuses_the_other(result.stderr, pair)
    assert b"Offering public key" not in result.stderr


def test_relay_that_leads_elsewhere(desk: Desk, pair: Pair) -> None:
    """A hub that connects the caller with another space's endpoint is found out."""
    elsewhere = f"ProxyCommand=ssh -F {desk.config} -W {pair.frontend.id}:22 {HUB_HOST}"
    ends = Ends(b"wrong")
    with serving(ends) as port:
        result = desk.run("-o", elsewhere, "-W", f"127.0.0.1:{port}", "backend-api.knot")
    assert (result.returncode, result.stdout, ends.seen) == (255, b"", [])
    refuses_the_other(result.stderr, pair)


def test_hub_that_is_an_endpoint(desk: Desk, pair: Pair) -> None:
    """An endpoint that answers at the hub's address is not taken for the hub."""
    address, port = pair.frontend.endpoint()
    result = desk.run("-o", f"HostName={address}", "-p", str(port), HUB_HOST)
    assert result.returncode == 255
    assert b"Certificate invalid: name is not a listed principal" in result.stderr
    assert b"Offering public key" not in result.stderr


@pytest.mark.parametrize("name", ["backend-api.knot", "backend-api.alice.eu.knot"])
def test_names(desk: Desk, name: str) -> None:
    """A space answers to its short and to its full name."""
    with serving(answering(b"by name")) as port:
        assert desk.run("-W", f"127.0.0.1:{port}", name).stdout == b"by name"


@pytest.mark.parametrize("name", ["nobody.knot", "backend-api.bob.eu.knot", "backend-api.alice.us.knot"])
def test_other_names(desk: Desk, name: str) -> None:
    """A name that is no space of one's own is refused by the hub in one sentence."""
    result = desk.run("-W", "127.0.0.1:1", name)
    assert result.returncode == 255
    assert b"no space of yours that can be reached has that name or id" in result.stderr
