"""Listening sockets: bound before anybody is told, never shared with another process."""

from __future__ import annotations

import errno
import socket

from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput, PortTaken

BACKLOG = 1024
"""Connections the kernel holds until they are accepted; a burst beyond the usual 128 is refused otherwise."""


def bind(address: Address) -> socket.socket:
    """A bound, listening TCP socket; raises OSError. No SO_REUSEPORT: nobody else can take connections meant for us."""
    family, kind, protocol, _, target = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(target)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def listen_on(address: Address, *, what: str) -> socket.socket:
    """As `bind`, for an address from the user; raises PortTaken or BadInput naming the option."""
    try:
        return bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(f"{what}: {address} is taken by another process; choose another port") from None
        raise BadInput(f"{what}: cannot listen on {address}: {error.strerror}") from None


def bound_address(sock: socket.socket) -> Address:
    """The address that a socket is really bound to."""
    name = sock.getsockname()
    return Address(name[0], name[1])
