"""Where an endpoint lets channels go: to literal addresses of its list."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_agent.destinations import destinations
from knot_agent.settings import DEFAULT_ALLOW

ELSEWHERE = [
    # other spellings of loopback, which resolvers and inet_aton take
    "127.1", "127.0.1", "127.0.0.1.", "0x7f.1", "0x7f.0.0.1", "0x7f000001", "2130706433", "017700000001", "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.1 ", " 127.0.0.1", "127.0.0.1\0", "\x00127.0.0.1", "127.0.0.1\n", "127.0.0.1%lo", "::1%lo", "::1%1",
    "[::1]", "::1\0",
    "\u0661\u0662\u0667.0.0.1", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "127.0.0.1/32", "127.0.0.1:80",
    "127.0.0.1,::1",
    # addresses that reach loopback all the same, or more than loopback
    "127.0.0.2", "127.255.255.255", "0", "0.0.0.0", "::", "0:0:0:0:0:0:0:0", "::ffff:127.0.0.1", "::ffff:7f00:1",
    "::127.0.0.1",
    "::ffff:0.0.0.0", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::", "255.255.255.255",
    # the neighbourhood
    "169.254.169.254", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200", "10.0.0.1", "192.168.0.1",
    "172.17.0.1", "224.0.0.1",
    "ff02::1", "metadata.google.internal",
    # names
    "", "LOCALHOST", "Localhost", "localhost.", "localhost.evil", "localhost.localdomain", "localhost\0",
    "localhost\0.evil", "localhost ",
    " localhost", "localhost\n", "local\u017fhost", "\uff4cocalhost", "localhost4", "localhost6", "ip6-localhost",
    "example.com", "*", "any",
    "/run/docker.sock", "localhost:80", "a" * 100_000, "1" * 100_000, "\ud800",
]  # fmt: skip

hosts = (
    st.sampled_from([*ELSEWHERE, "localhost", "127.0.0.1", "::1"])
    | st.text(max_size=40)
    | st.text(alphabet="0123456789abcdefx.:%", max_size=40)
    | st.ip_addresses().map(str)
    | st.ip_addresses(v=6).map(lambda address: address.exploded)
)
ports = st.sampled_from([-1, 0, 1, 80, 65535, 65536, 2**31, 2**32 - 1, 2**64]) | st.integers()


@pytest.mark.parametrize("host", ELSEWHERE, ids=lambda host: ascii(host)[:40])
def test_no_other_spelling_passes(host: str) -> None:
    """No address off the list, and no other spelling or name of one that is on it, is dialled."""
    assert destinations(host, 80, DEFAULT_ALLOW) == []


@given(hosts, ports)
def test_only_literals_of_the_list_are_dialled(host: str, port: int) -> None:
    """Whatever the peer writes, what is dialled is a literal from the list, for a port that exists."""
    found = destinations(host, port, DEFAULT_ALLOW)
    assert set(found) <= set(DEFAULT_ALLOW)
    assert not found or 1 <= port <= 65535
    assert not found or host == "localhost" or str(ipaddress.ip_address(host)) in DEFAULT_ALLOW


@given(hosts, ports)
def test_an_empty_list_lets_nothing_through(host: str, port: int) -> None:
    """Where nothing is allowed, nothing is dialled."""
    assert destinations(host, port, []) == []


@given(st.sets(st.ip_addresses().map(str), max_size=4), hosts)
def test_any_list_is_kept_to(allow: set[str], host: str) -> None:
    """Whatever the list, nothing off it is dialled."""
    assert set(destinations(host, 80, allow)) <= allow


@pytest.mark.parametrize("port", [0, -1, 65536, 2**16, 2**16 + 80, 2**31, 2**32 - 1, 2**32 + 80, 2**64])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_ports_that_do_not_exist(host: str, port: int) -> None:
    """A port that TCP does not have is not dialled, and does not wrap around to one that it has."""
    assert destinations(host, port, DEFAULT_ALLOW) == []


def test_localhost_is_both_addresses_in_order() -> None:
    """`localhost` means 127.0.0.1 and then ::1, as far as they are allowed."""
    assert destinations("localhost", 80, DEFAULT_ALLOW) == ["127.0.0.1", "::1"]
    assert destinations("localhost", 80, ["::1", "127.0.0.1"]) == ["127.0.0.1", "::1"]
    assert destinations("localhost", 80, ["::1"]) == ["::1"]
    assert destinations("localhost", 80, ["10.0.0.1"]) == []


@pytest.mark.parametrize("port", [1, 80, 65535])
def test_literals_on_the_list(port: int) -> None:
    """An address on the list is dialled as the list has it, in whatever proper spelling it was asked for."""
    assert destinations("127.0.0.1", port, DEFAULT_ALLOW) == ["127.0.0.1"]
    assert destinations("0:0:0:0:0:0:0:1", port, DEFAULT_ALLOW) == ["::1"]
    assert destinations("FD00::1", port, ["fd00::1"]) == ["fd00::1"]
