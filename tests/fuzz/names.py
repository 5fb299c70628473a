"""Names and addresses: where a channel may go, whom the relay finds, and the words that everything else is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from knot_agent.destinations import LOCALHOST, LOOPBACK, destinations
from knot_agent.settings import DEFAULT_ALLOW
from knot_keys.connections import ServerConnection
from knot_server.hub.relay import Reachable, Relay
from knot_ssh.addresses import Address, is_server_url
from knot_ssh.errors import BadInput
from knot_ssh.names import Owner, Port, Principal, SpaceId, SpaceName, Zone, qualified_name, space_reference
from knot_ssh.words import printable
from tests.fuzz.credentials import text_of
from tests.fuzz.target import Target, declared
from tests.fuzz.values import ALICE, BACKEND, BACKEND_ID
from tests.support.planes import stock_plane

PARSERS: tuple[Callable[[str], object], ...] = (
    SpaceName, Owner, Zone, SpaceId, Principal.parse, Address.parse, Port.parse, space_reference,
)  # fmt: skip
FULL_NAME = qualified_name(BACKEND, ALICE)
CALLED = (str(BACKEND_ID), str(BACKEND), f"{BACKEND}.knot", FULL_NAME)
"""What a caller may call backend-api."""


def names(data: bytes) -> None:
    """An input's first two bytes are a port, the rest is a name or an address."""
    port, text = int.from_bytes(data[:2], "big") * 3, text_of(data[2:])
    for parse in PARSERS:
        with declared(BadInput):
            assert str(parse(text)).isprintable()
    is_server_url(text)
    assert printable(text).isprintable()
    dialled = destinations(text, port, DEFAULT_ALLOW)
    assert set(dialled) <= set(LOOPBACK), dialled
    assert len(dialled) <= 1 or text == LOCALHOST
    for owner in (ALICE.owner, Owner("mallory")):
        found = relay()._find(owner, text)
        assert (found is not None) == (owner == ALICE.owner and text in CALLED)


@cache
def relay() -> Relay:
    """A relay that backend-api can be reached through."""
    made = Relay(stock_plane())
    connection = cast("ServerConnection", None)  # nobody gets as far as to use it
    made.register(Reachable(BACKEND_ID, BACKEND, ALICE, connection, registered=FULL_NAME))
    return made


def names_seeds() -> list[bytes]:
    texts = [
        "127.0.0.1", "::1", "localhost", "0.0.0.0", "::ffff:127.0.0.1", "127.1", "0x7f.1", "fe80::1%eth0", "localhost.evil\0",
        "169.254.169.254:22", "[2001:db8::1]:2022", "knot.example.com:2222", "alice@eu", "https://knot.example.com:443/a?b#c",
        "http://[::1]:3000", "65535", "join", *CALLED,
    ]  # fmt: skip
    return [(22).to_bytes(2, "big") + text.encode() for text in texts]


TARGETS = (
    Target("names", names, names_seeds, [b"127.", b"::", b"%", b"0x", b"localhost", b".knot", b"@", b"\0"], input_max=400),
)
