"""Addresses are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput

ports = st.integers(0, 65535)


@given(st.ip_addresses(v=4), ports)
def test_ipv4_round_trip(host: object, port: int) -> None:
    """An IPv4 address is read back from its text."""
    address = Address(str(host), port)
    assert Address.parse(str(address)) == address
    assert str(address) == f"{host}:{port}"


@given(st.ip_addresses(v=6), ports)
def test_ipv6_round_trip(host: object, port: int) -> None:
    """An IPv6 address stands in brackets, and is read back."""
    address = Address(str(host), port)
    assert Address.parse(str(address)) == address
    assert str(address) == f"[{host}]:{port}"


@pytest.mark.parametrize("text", ["localhost:22", "knot.example.com:2222", "my_host:0", "xn--bcher-kva.example:65535"])
def test_host_names(text: str) -> None:
    """A host name is taken as it is."""
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":22", "host", "host:", "host:port", "host:65536", "host:-1", "host:+1", "host: 1", "host:1 ", "host:1\n",
        "host:٣", "host:000022", "::1:22", "[::1]", "[::1]22", "[]:22", "[::1:22", "::1]:22", "[host]:22", "[fe80::1%eth0]:22",
        "ho st:22", "user@host:22", "host/path:22", "http://host:22", "host:22/", "hé:22", "a\0:22", "a" * 254 + ":22",
    ],
)  # fmt: skip
def test_other_text_is_no_address(text: str) -> None:
    """What is not host:port is refused."""
    with pytest.raises(BadInput, match="is not host:port"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["[.]:22", "[:]:22", "[:::]:22", "[12345::]:22", "[127.0.0.1]:22", "[1:2:3]:22"])
def test_brackets_hold_an_ipv6_address(text: str) -> None:
    """Only an IPv6 address may stand in brackets."""
    with pytest.raises(BadInput, match="is not host:port"):
        Address.parse(text)


def test_refusal_names_what_and_stays_short() -> None:
    """The error begins with what was wrong, on one line, however long the text."""
    with pytest.raises(BadInput, match=r"^--ssh 'x") as caught:
        Address.parse("x" * 10_000 + "\n", what="--ssh")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("host", "wildcard"), [("0.0.0.0", True), ("::", True), ("127.0.0.1", False), ("localhost", False)])
def test_wildcard(host: str, wildcard: bool) -> None:
    """Only the unspecified addresses stand for every address."""
    assert Address(host, 1).is_wildcard is wildcard


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("0.0.0.0", False),
     ("::", False), ("localhost.evil", False)],
)  # fmt: skip
def test_loopback(host: str, loopback: bool) -> None:
    """Loopback is what only this machine can reach."""
    assert Address(host, 1).is_loopback is loopback
