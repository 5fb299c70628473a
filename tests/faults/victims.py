"""An agent under attack, and what must hold of it afterwards."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from knot_ssh.dataplane.limits import WINDOW
from knot_ssh.dataplane.windows import SHARE
from tests.faults.beds import FULL, Bed, Settings
from tests.support.load import Pinging
from tests.support.measures import MIB, Growth
from tests.support.services import connect
from tests.support.system import Running
from tests.support.waiting import until

SOON = 0.05 if FULL else 0.25
"""Seconds, for the 99th of a hundred round trips of others. The short form allows for a machine that others use, too:
what it is to notice is somebody who is shut out, and those wait for seconds."""
SOON_STOCK = 0.15 if FULL else 0.5
"""The same of the stock data plane: a packet takes asyncssh some 30 microseconds, and where there are 10,000 channels with all
that asyncio keeps of each, the collector of garbage alone stops it for 50 to 120 ms."""
GREEDY = 16 * MIB
"""What a single SSH connection may cost, whatever it does."""
IN_FLIGHT = WINDOW * SHARE
"""With this as `max_in_flight` the first window of a channel is WINDOW only if not a byte of it is in use."""
FAULTS = ("data path fault", "Traceback", "unforeseen")
"""Words that the log of a sound agent does not have."""


TRIES = 3
"""A test that finds others disturbed is made again: the machine is shared, and only who disturbs each time does it."""

Test = TypeVar("Test", bound=Callable[..., None])


class Disturbed(AssertionError):
    """Others had to wait longer than they may."""


def steadily(test: Test) -> Test:
    """Have a test made again, up to a limit, when others were disturbed."""

    @functools.wraps(test)
    def steady(*args: Any, **arguments: Any) -> None:
        for left in reversed(range(TRIES)):
            try:
                return test(*args, **arguments)
            except Disturbed as error:
                if not left:
                    raise
                print(f"{error}; once more")
        return None

    return steady  # type: ignore[return-value]  # the same signature, for pytest


def in_time(seconds: float, bound: float) -> None:
    """Something took so long, and may take so long."""
    if seconds >= bound:
        raise Disturbed(f"{seconds:.2f} s, more than {bound} s")


@dataclass(frozen=True, slots=True)
class Victim:
    """A bed whose target is attacked, and a forward to an echo service on which others' round trips are made."""

    bed: Bed
    local: int
    echo: int
    soon: float
    """Seconds that others' round trips may take."""

    @staticmethod
    def settings(plane: str) -> Settings:
        return {"data_plane": plane, "max_in_flight": IN_FLIGHT}

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[Watch]:
        """Whatever happens meanwhile, others do not notice, and nothing of it is left afterwards."""
        assert self.works()
        meters = self.bed.meters
        before = [meter.descriptors() for meter in meters]
        logs = [len(running.lines()) for running in self._running()]
        watch = Watch(Growth(meters[1]), Pinging(self.local))
        with watch.trips:
            yield watch
        for running, start in zip(self._running(), logs, strict=True):
            assert running.process.poll() is None, f"{running.log.name} is dead"
            faults = [line for line in running.lines()[start:] if any(word in line for word in FAULTS)]
            assert not faults, faults[0]
        until(lambda: [meter.descriptors() for meter in meters] <= before, what=f"descriptors as before: {before}")
        until(lambda: self.first_window() == WINDOW, what="every window is given back")
        assert self.works()
        if watch.trips.p99 >= self.soon:
            raise Disturbed(str(watch.trips))

    def works(self) -> bool:
        """Whether a new connection through the forward is served."""
        with connect(self.local) as sock:
            sock.sendall(b"still there?")
            sock.shutdown(socket.SHUT_WR)
            return sock.makefile("rb").read() == b"still there?"

    def first_window(self) -> int:
        """What the target grants on a new channel of a new connection."""
        with self.bed.peer() as peer:
            return peer.open(self.echo).window

    def _running(self) -> list[Running]:
        return [agent.running for agent in (self.bed.source, self.bed.target) if agent.running]


@dataclass(frozen=True, slots=True)
class Watch:
    """What an attack costs."""

    growth: Growth
    trips: Pinging

    def __str__(self) -> str:
        return f"{self.growth}; others: {self.trips}"
