"""An event loop with something real in it, for targets that are conversations. Nothing in it reaches any network."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from tests.fuzz.watching import Finding, uncounted

World = TypeVar("World")
INPUTS = 200
"""After which a world is made anew: what an input finds there should not be the doing of too many others."""
PATIENCE = 10.0
"""Seconds for anything that must come; longer than it takes on a busy machine."""


class OfflineLoop(asyncio.SelectorEventLoop):
    """A loop in which nobody can be found or dialled, whatever address an input holds."""

    async def getaddrinfo(self, *_args: Any, **_options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "nothing is looked up here")

    async def sock_connect(self, *_args: Any) -> None:
        raise ConnectionRefusedError("nobody is dialled here")


class Stage(Generic[World]):
    """A world that is made when it is first used, and made anew after so many inputs."""

    def __init__(self, build: Callable[[], AbstractAsyncContextManager[World]], inputs: int = INPUTS) -> None:
        self._build = build
        self._inputs = inputs
        self._left = 0
        self._runner: asyncio.Runner | None = None
        self._unhandled: list[str] = []

    def run(self, act: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        """Do something in it; raises Finding for what the loop says that nobody has handled."""
        if self._left == 0:
            with uncounted():
                self.close()
                self._open()
        self._left -= 1
        assert self._runner
        self._runner.run(act(self._world))
        unhandled, self._unhandled = self._unhandled, []
        if unhandled:
            raise Finding("; ".join(unhandled))

    def spoil(self) -> None:
        """The next input is to find another world."""
        self._left = 0

    def close(self) -> None:
        """End the world, if there is one."""
        if self._runner:
            self._runner.run(self._context.__aexit__(None, None, None))
            self._runner.close()
            self._runner = None
            self._left = 0

    def _open(self) -> None:
        self._runner = asyncio.Runner(loop_factory=OfflineLoop)
        self._runner.get_loop().set_exception_handler(lambda _loop, told: self._unhandled.append(repr(told)))
        self._context = self._build()
        self._world = self._runner.run(_entered(self._context))
        self._left = self._inputs
        if self not in _open:
            _open.append(self)


async def _entered(context: AbstractAsyncContextManager[World]) -> World:
    return await context.__aenter__()


_open: list[Stage[Any]] = []


def close_all() -> None:
    """End every world there is."""
    while _open:
        _open.pop().close()
