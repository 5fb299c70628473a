"""Which requests come in, by their target, Host and origin."""

from __future__ import annotations

from typing import Any

import pytest

from knot_server.http.gate import Known, host_in, origin_of, refusal, unknown_parameter

KNOWN = Known.of("https://knot.example.com", ["2001:db8::7", "alias"])


def asked(*headers: tuple[str, str], target: str = "/healthz", server: str = "10.0.0.7") -> str | None:
    """The code that a request with these headers is refused with."""
    scope: dict[str, Any] = {
        "headers": [(name.encode(), value.encode()) for name, value in headers],
        "raw_path": target.encode(),
        "path": target,
        "server": (server, 3000),
    }
    error = refusal(scope, KNOWN)
    return error.code if error else None


@pytest.mark.parametrize(
    "host",
    ["knot.example.com", "KNOT.Example.COM", "knot.example.com.", "knot.example.com:443", "knot.example.com.:8443", "alias",
     "localhost", "localhost:1", "127.0.0.1", "127.0.0.1:3000", "[::1]", "[::1]:3000", "[0:0:0:0:0:0:0:1]", "[2001:DB8::7]:80",
     "10.0.0.7", "10.0.0.7:99"],
)  # fmt: skip
def test_known_hosts(host: str) -> None:
    """What the server is known by, in any spelling and with any port, and the address that was dialled."""
    assert asked(("host", host)) is None


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "knot.example.com.evil.example", "evil.example:3000", "knot.example.com..", ".knot.example.com",
     "knot.example.com:", "knot.example.com:x", "knot.example.com:123456", "knot.example.com:80:80", "user@knot.example.com",
     "knot.example.com/", "knot.example.com, evil.example", "127.0.0.1.evil.example", "127.1", "0x7f.1", "2130706433", "0",
     "::1", "[::1", "[::1]evil", "[::ffff:127.0.0.1]", "[127.0.0.1]", "[evil]", "[]", "10.0.0.8", "local host",
     "knot.example.com\0",     "\xe9", "a" * 300, "%6b", "*"],
)  # fmt: skip
def test_other_hosts(host: str) -> None:
    """A name that is not ours is refused, and so is what is no host at all or spells an address as no browser does."""
    assert asked(("host", host)) == "host_refused"


def test_no_host_and_several() -> None:
    """HTTP/1.0 can leave it out, and no rule says which of two would count."""
    assert asked() == "host_refused"
    assert asked(("host", "localhost"), ("host", "localhost")) == "host_refused"


@pytest.mark.parametrize("target", ["http://localhost/healthz", "http://evil/", "localhost:3000", "healthz", "%2Fhealthz"])
def test_targets(target: str) -> None:
    """Only a path: an absolute target (RFC 9112 section 3.2.2) would count instead of the Host."""
    assert asked(("host", "localhost"), target=target) == "host_refused"


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("https://knot.example.com", None),
        ("null", "origin_refused"),
        ("", "origin_refused"),
        ("http://knot.example.com", "origin_refused"),
        ("https://knot.example.com:444", "origin_refused"),
        ("https://knot.example.com.evil.example", "origin_refused"),
        ("https://evil.example", "origin_refused"),
        ("http://127.0.0.1:3000", "origin_refused"),
    ],
)
def test_origins(origin: str, code: str | None) -> None:
    """A page of our own URL may ask; one from anywhere else may not, and one that hides where it is from neither."""
    assert asked(("host", "localhost"), ("origin", origin)) == code


def test_two_origins() -> None:
    """One that is ours does not make up for another."""
    ours = ("origin", "https://knot.example.com")
    assert asked(("host", "localhost"), ours, ("origin", "https://evil.example")) == "origin_refused"


@pytest.mark.parametrize(
    ("site", "code"),
    [
        ("same-origin", None),
        ("none", None),
        ("cross-site", "origin_refused"),
        ("same-site", "origin_refused"),
        ("", "origin_refused"),
    ],
)
def test_fetch_metadata(site: str, code: str | None) -> None:
    """A browser says where a request is from also where it sends no Origin: images, links, forms by GET."""
    assert asked(("host", "localhost"), ("sec-fetch-site", site)) == code


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://knot.example.com", "https://knot.example.com"),
        ("https://knot.example.com:443/", "https://knot.example.com"),
        ("http://KNOT.example.com:80/x", "http://knot.example.com"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_origin_of_a_url(url: str, origin: str) -> None:
    """Scheme, host and port, without the port that the scheme has anyway."""
    assert origin_of(url) == origin


def test_hosts_are_compared_in_one_form() -> None:
    """Case, a dot at the end, the spelling of an IPv6 address and the port make no other host of it."""
    assert host_in("A.b.:1") == "a.b"
    assert host_in("[0::1]:1") == "::1"
    assert host_in("a b") is None


@pytest.mark.parametrize("query", [b"token=knot_x", b"a", b"&", b"=", b"a=1&token=x", b"%61=1", b"A=1"])
def test_parameters_that_no_route_knows(query: bytes) -> None:
    """Any name in a query that is not known is refused, however it is spelt, and is not repeated."""
    error = unknown_parameter(query, {"a"} if b"&" in query else set())
    assert error
    assert error.code == "bad_input"
    assert "knot_x" not in str(error)


def test_parameters_that_are_known() -> None:
    """Those that the route knows pass."""
    assert unknown_parameter(b"", set()) is None
    assert unknown_parameter(b"a=1&b=2&a=3", {"a", "b"}) is None
