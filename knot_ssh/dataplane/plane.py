"""The data plane of one process: what all its connections and channels share, and the event loop it runs in."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import resource
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol, TypeVar

import asyncssh
import structlog

from knot_ssh.dataplane.buffers import Pool
from knot_ssh.dataplane.framing import can_work_in_place
from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.listening import Listener
from knot_ssh.dataplane.reactor import POLLING, AsyncioReactor, EpollReactor, Reactor, ReactorLoop
from knot_ssh.dataplane.transport import Receiver, Transport, tune
from knot_ssh.dataplane.windows import Budget
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

Kind = Literal["fast", "stock"]
Result = TypeVar("Result")

COLLECT_AT = (50_000, 20, 100)
"""Objects, and collections of the younger generations, between two collections of each generation."""
STRANGERS = 250
"""Connections that end without a login, some 20 KB each, between two full collections: what is left of each are cycles."""
M_MMAP_THRESHOLD = -3
LARGE = 1024 * 1024
"""Bytes; a block of this size is worth the system calls."""
TESTED = ("2.24.1",)
"""Versions of asyncssh that the whole suite has passed on."""


class SSHProtocol(Receiver, Protocol):
    """An SSH connection, for either kind of transport."""

    def data_received(self, data: bytes) -> None: ...

    def eof_received(self) -> bool | None: ...


class Closeable(Protocol):
    """Something that listens."""

    def close(self) -> None:
        """Listen no more."""


class DataPlane:
    """Reactor, buffers, budget and limits. `fast`: sockets in the reactor, packets in place; else asyncssh and asyncio."""

    def __init__(self, reactor: Reactor, limits: Limits, *, fast: bool, ssh_options: dict[str, Any] | None = None) -> None:
        self.reactor = reactor
        self.limits = limits
        self.ssh_options = ssh_options or {}
        self.budget = Budget(limits.in_flight, on_relief=return_free_memory)
        self.fast = fast
        self._pool = Pool()
        self._tasks = Tasks()
        self._strangers = 0

    def listen(self, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> Listener:
        """Accept on a bound socket until closed."""
        return Listener(self.reactor, sock, accepted)

    async def connect(self, host: str, port: int, connection: SSHProtocol) -> None:
        """Dial, and give the socket to this connection. Raises OSError."""
        await self.carry(await dial(host, port), connection)

    def serve(self, sock: socket.socket, connection: Callable[[], SSHProtocol]) -> Closeable:
        """Accept on a bound socket until closed, and give each socket to a new connection."""
        return self.listen(sock, lambda accepted: self.accept(accepted, connection()))

    def accept(self, sock: socket.socket, connection: SSHProtocol) -> None:
        """Give a connected socket to this connection, which hears of it soon."""
        if self.fast:
            self._carry(sock, connection)
        else:
            self._tasks.start(self.carry(sock, connection))

    async def carry(self, sock: socket.socket, connection: SSHProtocol) -> None:
        """Give a connected socket to this connection, which has heard of it when this returns."""
        if self.fast:
            self._carry(sock, connection)
        else:
            tune(sock)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)  # type: ignore[type-var]

    def stranger_gone(self) -> None:
        """A connection has ended without a login. In a flood of these memory cannot wait for the rare collection."""
        self._strangers += 1
        if self._strangers % STRANGERS == 0:
            gc.collect()

    def _carry(self, sock: socket.socket, connection: SSHProtocol) -> None:
        Transport(self.reactor, self._pool, sock, connection).start()


def run(
    main: Callable[[DataPlane], Coroutine[Any, Any, Result]],
    *,
    kind: Kind = "fast",
    limits: Limits | None = None,
    polling: float = POLLING,
    ssh_options: dict[str, Any] | None = None,
) -> Result:
    """Run a process's main coroutine with a data plane; the fast one where it can be had.

    `ssh_options` are asyncssh's, for every connection of this process. `polling` is in seconds.
    """
    raise_descriptor_limit()
    return_large_blocks()
    collect_rarely()
    limits = limits or Limits()
    obstacle = why_not_fast() if kind == "fast" else ""
    if obstacle:
        log.warning("data plane falls back to stock", reason=obstacle)
    if obstacle or kind == "stock":
        return asyncio.run(main(DataPlane(AsyncioReactor(), limits, fast=False, ssh_options=ssh_options)))
    reactor = EpollReactor(polling)
    with asyncio.Runner(loop_factory=lambda: ReactorLoop(reactor)) as runner:
        return runner.run(main(DataPlane(reactor, limits, fast=True, ssh_options=ssh_options)))


def why_not_fast() -> str:
    """What stands in the way of the fast data plane here; empty for nothing."""
    if sys.platform != "linux":
        return f"it needs Linux, this is {sys.platform}"
    if asyncssh.__version__ not in TESTED:
        return f"it was not tested with asyncssh {asyncssh.__version__}, only with {', '.join(TESTED)}"
    if not can_work_in_place:
        return "it needs a newer cryptography package"
    return ""


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may allow itself: each connection takes one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def collect_rarely() -> None:
    """Keep the garbage collector from walking thousands of channels again and again: cycles are rare here.

    What is there by now stays, and need not be looked at at all.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)


def return_large_blocks() -> None:
    """Have glibc give large blocks back to the system when they are freed.

    By itself it takes the first such block for a sign that more will come, and keeps the memory of every connection that
    was ever stuck.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def return_free_memory() -> None:
    """The same for all that lies free between other things: some milliseconds of work, for when a rush is over."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket to the first address that accepts; raises OSError."""
    loop = asyncio.get_running_loop()
    problem: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, where in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, where)
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem
