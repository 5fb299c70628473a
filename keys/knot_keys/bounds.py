"""What strangers may take of a hub or an endpoint before they have logged in."""

from __future__ import annotations

from dataclasses import dataclass

from knot_keys.entrance import CONNECTIONS
from knot_keys.turns import KEY_EXCHANGES

LOGIN_TIMEOUT = 10.0
"""Seconds for key exchange and login together."""
LOGIN_TRIES = 6
"""Keys and passwords one connection may try (sshd's MaxAuthTries)."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ones that may be set."""

    unauthenticated: int
    """Connections that have not logged in yet; as many again wait to be set up."""
    connections: float = CONNECTIONS
    """Connections a second of one source that are set up; further ones wait."""
    key_exchanges: float = KEY_EXCHANGES
    """Key exchanges a second of one source; further ones wait."""
    login_timeout: float = LOGIN_TIMEOUT
    login_tries: int = LOGIN_TRIES
