"""Where channels to the endpoint may go: decided here, without I/O, at every channel."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from knot_ssh.names import PORT_MAX, PORT_MIN

LOCALHOST = "localhost"
LOOPBACK = ("127.0.0.1", "::1")
"""What `localhost` means, in the order in which they are tried."""


def destinations(host: str, port: int, allow: Collection[str]) -> list[str]:
    """The literal addresses to dial for a channel, in order; none when it is not allowed.

    Names are never resolved: `localhost` is ours to define, and any other text must be an address from the list, in
    whatever spelling `ipaddress` takes (it takes neither `127.1` nor `0x7f.1`, and holds mapped addresses apart).
    """
    if not PORT_MIN <= port <= PORT_MAX:
        return []
    if host == LOCALHOST:
        return [address for address in LOOPBACK if address in allow]
    try:
        literal = str(ipaddress.ip_address(host))
    except ValueError:
        return []
    return [literal] if literal in allow else []
