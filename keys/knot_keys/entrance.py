"""Sockets that were accepted, until there is an SSH connection for each: a flood of them must not keep the others out.

To set up a connection takes a quarter of a millisecond, to accept one a tenth of that. So who is over the rate of their source
is accepted, too, but waits outside, where nothing is read: else the kernel's queue fills up, and the next good login stands
at its end, or finds no place in it. As in the `WaitingRoom`, beyond so many the oldest of the busiest source goes.
"""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Callable

from knot_keys.turns import Turnstile
from knot_keys.waitingroom import WaitingRoom

CONNECTIONS = 1000.0
"""Connections a second from one source that are set up: a quarter of a processor."""
AT_ONCE = 4
"""Connections that are set up before others get their turn: a millisecond."""


class Outside:
    """A socket that waits."""

    def __init__(self, entrance: Entrance, sock: socket.socket, deadline: float) -> None:
        self._entrance = entrance
        self._sock = sock
        self.deadline = deadline

    def enter(self) -> None:
        """It is its turn."""
        self._entrance.let_in(self, self._sock)

    def abort(self) -> None:
        """It waits no more."""
        self._entrance.forget(self)
        self._sock.close()


class Entrance:
    """Gives sockets to `accept` when it is their turn; they wait for `patience` seconds at most."""

    def __init__(self, accept: Callable[[socket.socket], None], limit: int, patience: float, rate: float = CONNECTIONS) -> None:
        self._accept = accept
        self._room = WaitingRoom(limit)
        self._turnstile = Turnstile(rate, AT_ONCE)
        self._patience = patience
        self._outside: OrderedDict[Outside, None] = OrderedDict()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._outside)

    def come(self, sock: socket.socket) -> None:
        """A socket was accepted."""
        loop = asyncio.get_running_loop()
        try:
            address = str(sock.getpeername()[0])
        except OSError:  # it has gone already
            sock.close()
            return
        waiting = Outside(self, sock, loop.time() + self._patience)
        self._outside[waiting] = None
        self._turnstile.ask(waiting.enter, address)
        self._room.enter(waiting, address)
        if self._sweep is None:
            self._sweep = loop.call_later(self._patience, self._turn_away)

    def let_in(self, waiting: Outside, sock: socket.socket) -> None:
        """It is the turn of this one."""
        self.forget(waiting)
        self._accept(sock)

    def forget(self, waiting: Outside) -> None:
        """This one waits no more."""
        self._outside.pop(waiting, None)
        self._room.leave(waiting)
        self._turnstile.leave(waiting.enter)

    def close(self) -> None:
        """Let nobody in any more."""
        self._turnstile.close()
        if self._sweep:
            self._sweep.cancel()
        for waiting in list(self._outside):
            waiting.abort()

    def _turn_away(self) -> None:
        """Whoever has waited for too long goes."""
        self._sweep = None
        loop = asyncio.get_running_loop()
        while self._outside and (first := next(iter(self._outside))).deadline <= loop.time():
            first.abort()
        if self._outside:
            self._sweep = loop.call_at(next(iter(self._outside)).deadline, self._turn_away)
