"""Sockets that wait to be let in: all come to their turn, or go, and none is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

from knot_keys.entrance import Entrance
from knot_keys.turns import BURST_SECONDS
from tests.support.waiting import becomes

RATE = 1.0
AT_ONCE = int(RATE * BURST_SECONDS)


class Door:
    """An entrance, and the sockets that it has let in."""

    def __init__(self, limit: int = 100, patience: float = 30.0) -> None:
        self.inside: list[socket.socket] = []
        self.entrance = Entrance(self.inside.append, limit, patience, RATE)
        self.clients: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))

    def come(self, source: str = "127.0.0.1") -> socket.socket:
        """Somebody connects from this address; gives our end."""
        self.clients.append(socket.create_connection(self._listener.getsockname(), source_address=(source, 0)))
        sock, _ = self._listener.accept()
        self.entrance.come(sock)
        return sock

    def close(self) -> None:
        self.entrance.close()
        for sock in (self._listener, *self.clients, *self.inside):
            sock.close()


@contextlib.contextmanager
def door(limit: int = 100, patience: float = 30.0) -> Iterator[Door]:
    made = Door(limit, patience)
    try:
        yield made
    finally:
        made.close()


async def test_let_in_at_once() -> None:
    """Within its rate a source's sockets enter as they come, a few in each turn of the loop."""
    with door() as made:
        socks = [made.come() for _ in range(AT_ONCE)]
        await becomes(lambda: len(made.inside) == AT_ONCE)
        assert set(made.inside) == set(socks)
        assert len(made.entrance) == 0


async def test_flood_waits_and_others_pass() -> None:
    """Beyond the rate they wait outside; who comes from elsewhere enters."""
    with door() as made:
        for _ in range(AT_ONCE + 5):
            made.come()
        await becomes(lambda: len(made.inside) == AT_ONCE)
        other = made.come("127.0.0.2")
        await becomes(lambda: other in made.inside)
        assert len(made.entrance) == 5


async def test_oldest_goes() -> None:
    """Beyond the limit the oldest of those outside is closed."""
    with door(limit=3) as made:
        socks = [made.come() for _ in range(5)]
        assert [sock.fileno() == -1 for sock in socks] == [True, True, False, False, False]
        await becomes(lambda: len(made.inside) == 3)


async def test_patience_ends() -> None:
    """Who has waited for as long as a login may take is closed."""
    with door(patience=0.05) as made:
        for _ in range(AT_ONCE):
            made.come()
        await becomes(lambda: len(made.inside) == AT_ONCE)
        late = made.come()
        await becomes(lambda: late.fileno() == -1)
        assert len(made.entrance) == 0


async def test_who_has_gone_already() -> None:
    """A socket whose peer is gone before it is looked at is closed, and nothing else happens."""
    with door() as made:
        sock = socket.socket()
        made.entrance.come(sock)
        assert sock.fileno() == -1
        assert len(made.entrance) == 0


async def test_close() -> None:
    """Whoever waits when it closes is closed, and nobody enters afterwards."""
    with door() as made:
        sock = made.come()
        made.entrance.close()
        assert sock.fileno() == -1
        await asyncio.sleep(0)
        assert made.inside == []
