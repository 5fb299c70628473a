"""Who waits for what: the data path's sockets beside asyncio's, in one loop.

asyncio costs a callback, a handle and two dictionary look-ups for every socket that is ready. Here, the selector that
the event loop is made with (a public argument of `asyncio.SelectorEventLoop`) serves the data path's own sockets right
where it finds them ready, and hands asyncio only what is asyncio's: key exchange, login, timers, everything else. An
ordinary selector for asyncio hangs inside ours as one more descriptor, since an epoll set can be polled like a socket.

Rules for handlers:

* `on_event(events)` is a hint. Descriptors are watched edge-triggered, for reading and, once they have been full, for
  writing: whoever was told keeps going until the kernel says EAGAIN, or asks for another turn. A hint may also be stale
  or wrong, since numbers are used again; handlers ask the kernel and believe only that.
* What cannot be finished at once is put off with `again`: `on_turn` comes after all that is new, so that small exchanges
  go before bulk.
* `at_end(handler)` has `on_turn_end` called before the process waits: what was written in a turn leaves in one call.
* A descriptor is closed by its handler, after `forget`.

For round trips, waking up can take longer than the work: for some microseconds after there was work, the reactor asks again
instead of waiting, and yields the processor between, where `Polling` finds that it pays. An idle process does not do that.
"""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import Any, Protocol, TypeVarTuple, Unpack

import structlog

from knot_ssh.dataplane.polling import Polling

log = structlog.get_logger(__name__)

Arguments = TypeVarTuple("Arguments")

EVENTS_A_TURN = 256
"""Descriptors that are served before the rest of the loop gets its turn."""
POLLING = 100e-6
"""Seconds to keep asking after there was work."""

if sys.platform == "linux":
    READING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET

READ = 1
WRITE = 4
ERROR = 8
HANGUP = 0x10
PEER_ENDED = 0x2000
"""Linux's EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP and EPOLLRDHUP, also where there is no epoll."""


class Handler(Protocol):
    """Owns a descriptor."""

    def on_event(self, events: int) -> None:
        """The descriptor may be ready."""

    def on_turn(self) -> None:
        """What `again` has put off."""

    def on_turn_end(self) -> None:
        """What `at_end` has put off."""

    def on_crash(self) -> None:
        """One of the above has raised: a fault of ours. Give up whatever it is about, exactly."""


class Reactor(Protocol):
    """What the data path needs of a loop."""

    @property
    def now(self) -> float:
        """Seconds on the monotonic clock, as of this turn."""

    def watch(self, fd: int, handler: Handler) -> None:
        """Tell the handler from now on; also what is ready already."""

    def forget(self, fd: int, handler: Handler) -> None:
        """Tell it no more; somebody else who has the same number by now stays."""

    def want_read(self, fd: int) -> None:
        """The handler has met EAGAIN and wants to hear of data."""

    def want_write(self, fd: int) -> None:
        """The handler has met EAGAIN and wants to hear of room."""

    def again(self, handler: Handler) -> None:
        """Call `on_turn` soon, after everything that is new."""

    def at_end(self, handler: Handler) -> None:
        """Call `on_turn_end` once this turn is over."""


class _Turns:
    """What is put off: to the next turn, or to the end of this one."""

    def __init__(self) -> None:
        self._next: deque[Handler] = deque()
        self._ending: list[Handler] = []
        self.again = self._next.append
        self.at_end = self._ending.append

    def take_turn(self) -> None:
        """Let everybody who asked have one turn; who asks again meanwhile waits for the next."""
        for _ in range(len(self._next)):
            handler = self._next.popleft()
            try:
                handler.on_turn()
            except Exception:
                crashed(handler)

    def end_turn(self) -> None:
        """Let leave what was written."""
        while self._ending:
            handler = self._ending.pop()
            try:
                handler.on_turn_end()
            except Exception:
                crashed(handler)


class EpollReactor(_Turns, selectors.BaseSelector):
    """The selector of an event loop that serves the data path inline. Linux alone."""

    def __init__(self, polling: float = POLLING) -> None:
        super().__init__()
        self.now = time.monotonic()
        self._polling = Polling(polling) if polling else None
        self._handlers: dict[int, Handler] = {}
        self._writers: set[int] = set()
        self._others = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._others_fd = self._others.fileno()
        self._epoll.register(self._others_fd, select.EPOLLIN)
        self._busy = False
        self.leave = False

    def watch(self, fd: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._writers.discard(fd)
        try:
            self._epoll.register(fd, READING)
        except FileExistsError:  # it was another handler's before
            self._epoll.modify(fd, READING)

    def forget(self, fd: int, handler: Handler) -> None:
        """The kernel forgets by itself when the descriptor is closed."""
        if self._handlers.get(fd) is handler:
            del self._handlers[fd]
            self._writers.discard(fd)

    def want_read(self, fd: int) -> None:
        """Edge-triggered: the kernel tells."""

    def want_write(self, fd: int) -> None:
        """Edge-triggered too, once the kernel knows that we care; most sockets never get full."""
        if fd not in self._writers:
            self._writers.add(fd)
            self._epoll.modify(fd, READING | select.EPOLLOUT)

    # What asyncio asks of its selector

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Serve what is ours for as long as nothing else is to be done; gives what is ready of asyncio's."""
        self.leave = False
        until = None if timeout is None else time.monotonic() + timeout
        self.end_turn()
        while True:
            events = self._wait(0 if self._next else timeout)
            self.now = now = time.monotonic()
            others = self._serve(events)
            if self._next:
                self._busy = True
                self.take_turn()
            if self._ending:
                self.end_turn()
            if others is not None or self.leave:
                return others or []
            if until is not None:
                timeout = until - now
                if timeout <= 0:
                    return []

    def _serve(self, events: list[tuple[int, int]]) -> list[tuple[selectors.SelectorKey, int]] | None:
        """Tell our handlers; gives what there is for asyncio, None when there is nothing."""
        others = None
        self._busy = False
        handlers = self._handlers
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is not None:
                self._busy = True
                try:
                    handler.on_event(mask)
                except Exception:
                    crashed(handler)
            elif fd == self._others_fd:
                others = self._others.select(0)
        return others

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._others.get_map()

    def close(self) -> None:
        self._epoll.close()
        self._others.close()

    def _wait(self, timeout: float | None) -> list[tuple[int, int]]:
        """What is ready; sleep until something is, or, where there was work just now and it pays, ask a little before."""
        poll = self._poll
        if self._busy and timeout != 0 and self._polling and self._polling.next_wait(self.now):
            until = time.monotonic() + self._polling.seconds
            while time.monotonic() < until:
                events = poll(0, EVENTS_A_TURN)
                if events:
                    return events
                os.sched_yield()
        return poll(timeout, EVENTS_A_TURN)


class ReactorLoop(asyncio.SelectorEventLoop):
    """An event loop that calls its reactor away from the sockets as soon as there is anything else to do."""

    def __init__(self, reactor: EpollReactor) -> None:
        self._reactor = reactor
        super().__init__(reactor)

    def call_soon(
        self, callback: Callable[[Unpack[Arguments]], object], *args: *Arguments, context: Context | None = None
    ) -> asyncio.Handle:
        self._reactor.leave = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Arguments]], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._reactor.leave = True
        return super().call_at(when, callback, *args, context=context)


class AsyncioReactor(_Turns):
    """The same over any event loop's readers and writers: for other systems, and to compare with."""

    def __init__(self) -> None:
        super().__init__()
        self._handlers: dict[int, Handler] = {}
        self._scheduled = False
        self.again = self._again
        self.at_end = self._at_end

    @property
    def now(self) -> float:
        return time.monotonic()

    def watch(self, fd: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self.want_read(fd)

    def forget(self, fd: int, handler: Handler) -> None:
        if self._handlers.get(fd) is handler:
            del self._handlers[fd]
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)

    def want_read(self, fd: int) -> None:
        asyncio.get_running_loop().add_reader(fd, self._readable, fd)

    def want_write(self, fd: int) -> None:
        asyncio.get_running_loop().add_writer(fd, self._writable, fd)

    def _again(self, handler: Handler) -> None:
        self._next.append(handler)
        self._schedule()

    def _at_end(self, handler: Handler) -> None:
        self._ending.append(handler)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self.take_turn()
        self.end_turn()

    def _readable(self, fd: int) -> None:
        """Told once: a level-triggered loop would go on and on about what a handler has put off."""
        asyncio.get_running_loop().remove_reader(fd)
        self._tell(fd, READ)

    def _writable(self, fd: int) -> None:
        asyncio.get_running_loop().remove_writer(fd)
        self._tell(fd, WRITE)

    def _tell(self, fd: int, events: int) -> None:
        handler = self._handlers.get(fd)
        if handler is None:
            return
        try:
            handler.on_event(events)
        except Exception:
            crashed(handler)


def crashed(handler: Handler) -> None:
    """A fault of ours, which is being handled: it ends what it concerns, and nothing else."""
    log.exception("data path fault", handler=type(handler).__name__)
    try:
        handler.on_crash()
    except Exception:
        log.exception("data path fault", handler=type(handler).__name__, twice=True)
