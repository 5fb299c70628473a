"""Run a test of the data path on each of its reactors, in an event loop of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, ParamSpec

import pytest

from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import POLLING, AsyncioReactor, EpollReactor, ReactorLoop
from tests.support.waiting import becomes

Fixtures = ParamSpec("Fixtures")
Test = Callable[Concatenate[DataPlane, Fixtures], Coroutine[Any, Any, None]]
"""An async test: the data plane comes first, pytest's fixtures and parameters by name."""

KINDS = ("fast", "stock")


def on_both(test: Test[Fixtures]) -> Callable[..., None]:
    """Make this a test that pytest runs twice: on the epoll reactor, and on the one over asyncio."""
    return _on(KINDS, test)


def on_fast(test: Test[Fixtures]) -> Callable[..., None]:
    """Make this a test that runs on the epoll reactor alone."""
    return _on(("fast",), test)


def run_on(
    kind: str, main: Callable[[DataPlane], Coroutine[Any, Any, None]], limits: Limits | None = None, polling: float = POLLING
) -> None:
    """Run a coroutine in a loop with this kind of reactor.

    It must leave neither a task nor a watched descriptor, and no failure that nobody has seen.
    """
    if kind == "stock":
        stock = AsyncioReactor()
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(_tidily(main, DataPlane(stock, limits or Limits(), fast=False)))
        return
    reactor = EpollReactor(polling)
    with asyncio.Runner(loop_factory=lambda: ReactorLoop(reactor)) as runner:
        runner.run(_tidily(main, DataPlane(reactor, limits or Limits(), fast=True)))


def watched(plane: DataPlane) -> set[int]:
    """The descriptors that the reactor tells somebody of."""
    assert isinstance(plane.reactor, EpollReactor | AsyncioReactor)
    return set(plane.reactor._handlers)


async def _tidily(main: Callable[[DataPlane], Coroutine[Any, Any, None]], plane: DataPlane) -> None:
    unseen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    await main(plane)
    await becomes(lambda: asyncio.all_tasks() == {asyncio.current_task()}, what="no task is left")
    assert not watched(plane)
    assert not unseen, f"failures that nobody has seen: {unseen}"


def _on(kinds: tuple[str, ...], test: Test[Fixtures]) -> Callable[..., None]:
    """A test without `async` and without the plane, with the kind of reactor in its place."""

    def on_each(kind: str, **fixtures: Any) -> None:
        run_on(kind, partial(test, **fixtures))

    kind, *others = inspect.signature(test).parameters.values()
    signature = inspect.Signature([kind.replace(name="kind", annotation=str), *others])
    for name, value in (("__name__", test.__name__), ("__doc__", test.__doc__), ("__module__", test.__module__)):
        setattr(on_each, name, value)
    setattr(on_each, "__signature__", signature)  # noqa: B010  # functions have it, their type does not
    parametrized: Callable[..., None] = pytest.mark.parametrize("kind", kinds)(on_each)
    return parametrized
