"""The data plane of a process: which one it is, what it shares, and how connections come by their sockets."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh
import pytest
from structlog.testing import capture_logs

from knot_ssh.dataplane import plane as module
from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.plane import DataPlane, Kind, raise_descriptor_limit, run, why_not_fast
from knot_ssh.dataplane.reactor import AsyncioReactor, EpollReactor, ReactorLoop
from tests.support.reactors import on_both
from tests.support.services import free_port, is_refused
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE
from tests.unit.knot_ssh.dataplane.duo import listener

KINDS: list[Kind] = ["fast", "stock"]


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """A process whose limits and garbage are its own affair again after the test."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    gc.unfreeze()


class FakeConnection(asyncio.Protocol):
    """Remembers what it was given, by either kind of transport."""

    def __init__(self) -> None:
        self.data = b""
        self.transport: asyncio.Transport | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        self.data += data

    def received(self, buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
        self.data += buffer[start:end]
        return end, True

    def sealed(self, count: int) -> None:
        raise AssertionError

    def send_payload(self, kind: int, payload: bytes) -> None:
        raise AssertionError

    async def end(self) -> None:
        """Close, and wait until that is so."""
        assert self.transport
        self.transport.abort()
        await becomes(lambda: self.lost)


async def which(plane: DataPlane) -> tuple[bool, type, type]:
    """What a process runs on."""
    return plane.fast, type(plane.reactor), type(asyncio.get_running_loop())


# Which one


def test_fast_where_it_can_be_had() -> None:
    """The fast data plane is what runs here unless told otherwise, in its own event loop."""
    assert why_not_fast() == ""
    with capture_logs() as logs:
        assert run(which) == (True, EpollReactor, ReactorLoop)
    assert logs == []


def test_stock_where_it_is_wanted() -> None:
    """The stock data plane runs in an ordinary event loop."""
    with capture_logs() as logs:
        fast, reactor, loop = run(which, kind="stock")
    assert (fast, reactor, logs) == (False, AsyncioReactor, [])
    assert not issubclass(loop, ReactorLoop)


def on_another_system(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(sys, "platform", "darwin")
    return "it needs Linux, this is darwin"


def with_another_asyncssh(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(asyncssh, "__version__", "9.9.9")
    return "it was not tested with asyncssh 9.9.9, only with 2.24.1"


def with_old_cryptography(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(module, "can_work_in_place", False)
    return "it needs a newer cryptography package"


@pytest.mark.parametrize("obstacle", [on_another_system, with_another_asyncssh, with_old_cryptography])
def test_falls_back(monkeypatch: pytest.MonkeyPatch, obstacle: object) -> None:
    """Where the fast data plane cannot be had the stock one runs, and the log says why."""
    assert callable(obstacle)
    reason = obstacle(monkeypatch)
    assert why_not_fast() == reason
    with capture_logs() as logs:
        assert run(which)[:2] == (False, AsyncioReactor)
    assert logs == [{"event": "data plane falls back to stock", "log_level": "warning", "reason": reason}]


def test_nothing_to_say_where_stock_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants the stock data plane need not hear why there is no fast one."""
    on_another_system(monkeypatch)
    with capture_logs() as logs:
        run(which, kind="stock")
    assert logs == []


# What is shared


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_passed_on(kind: Kind) -> None:
    """Limits and options for asyncssh are those of the process; the budget of windows is what the limits say."""
    limits, options = Limits(in_flight=12345, channels=6), {"rekey_bytes": 1}

    async def known(plane: DataPlane) -> tuple[Limits, int, object]:
        return plane.limits, plane.budget.left, plane.ssh_options

    assert run(known, kind=kind, limits=limits, ssh_options=options) == (limits, 12345, options)
    assert run(known, kind=kind) == (Limits(), Limits().in_flight, {})


def test_polling_is_passed_on() -> None:
    """How long to keep asking may be set."""

    async def polling(plane: DataPlane) -> float | None:
        assert isinstance(plane.reactor, EpollReactor)
        polling = plane.reactor._polling
        return polling.seconds if polling else None

    assert run(polling, polling=0.0002) == 0.0002
    assert run(polling, polling=0) is None


@pytest.mark.parametrize("kind", KINDS)
def test_failure_is_the_main_coroutine_s(kind: Kind) -> None:
    """What the main coroutine raises comes out."""

    async def fail(_plane: DataPlane) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(fail, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_end_with_the_process(kind: Kind) -> None:
    """Tasks that still run when the main coroutine is done are cancelled, as by `asyncio.run`."""
    ends: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    async def main(_plane: DataPlane) -> asyncio.Task[None]:
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        return task

    assert run(main, kind=kind).cancelled()
    assert ends == ["cancelled"]


def test_descriptor_limit_is_raised() -> None:
    """A process allows itself as many descriptors as it may, also when it runs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    run(which)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


def test_system_that_will_not_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system does not allow more, that is all there is."""

    def refuse(*_args: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    with monkeypatch.context() as patch:
        patch.setattr(resource, "setrlimit", refuse)
        raise_descriptor_limit()


@pytest.mark.parametrize("trouble", [OSError, AttributeError])
def test_other_libc(monkeypatch: pytest.MonkeyPatch, trouble: type[Exception]) -> None:
    """A C library that cannot be asked to give memory back is not asked."""

    def missing(*_args: object) -> None:
        raise trouble

    monkeypatch.setattr(ctypes, "CDLL", missing)
    module.return_large_blocks()
    module.return_free_memory()


# Sockets


@on_both
async def test_connect(plane: DataPlane) -> None:
    """A connection is given a socket to the address, and bytes pass both ways."""
    connection = FakeConnection()
    with listener() as listening:
        await plane.connect("127.0.0.1", listening.getsockname()[1], connection)
        service, _ = await asyncio.get_running_loop().sock_accept(listening)
    with service:
        assert connection.transport
        connection.transport.write(b"question")
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.get_running_loop().sock_recv(service, 100) == b"question"
        service.send(b"answer")
        await becomes(lambda: connection.data == b"answer")
        await connection.end()


@on_both
async def test_connect_to_nobody(plane: DataPlane) -> None:
    """Where nobody listens that is an OSError, and the connection hears nothing."""
    connection = FakeConnection()
    with pytest.raises(ConnectionRefusedError):
        await plane.connect("127.0.0.1", free_port(), connection)
    assert connection.transport is None


@on_both
async def test_connect_to_the_second_address(plane: DataPlane) -> None:
    """Of several addresses the first that accepts is taken; where none does, that is an OSError."""
    connection = FakeConnection()
    with listener() as listening, names("::1", "127.0.0.1"):
        await plane.connect("localhost", listening.getsockname()[1], connection)
        assert connection.transport
        assert connection.transport.get_extra_info("peername") == listening.getsockname()
        await connection.end()
    with names("::1", "127.0.0.1"), pytest.raises(OSError, match=r"."):
        await plane.connect("localhost", free_port(), FakeConnection())


@on_both
async def test_connect_to_a_name_without_address(plane: DataPlane) -> None:
    """A name without an address is an OSError."""
    with names(), pytest.raises(OSError, match=r"."):
        await plane.connect("localhost", 80, FakeConnection())


@on_both
async def test_connecting_is_cancelled(plane: DataPlane) -> None:
    """Whoever gives up while a connection is being made leaves no socket open."""
    with listener() as listening:
        listening.listen(0)
        fillers = [socket.socket() for _ in range(2)]
        for sock in fillers:
            sock.setblocking(False)
            sock.connect_ex(listening.getsockname())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await plane.connect("127.0.0.1", listening.getsockname()[1], FakeConnection())
        for sock in fillers:
            sock.close()


@on_both
async def test_serve(plane: DataPlane) -> None:
    """Each socket that is accepted gets a connection of its own, until that is ended; those that are there stay."""
    made: list[FakeConnection] = []

    def make() -> FakeConnection:
        made.append(FakeConnection())
        return made[-1]

    sock = listener()
    address = sock.getsockname()
    server = plane.serve(sock, make)
    clients = [socket.create_connection(address, PATIENCE) for _ in range(3)]
    for number, client in enumerate(clients):
        client.send(str(number).encode())
    await becomes(lambda: sorted(each.data for each in made) == [b"0", b"1", b"2"])
    server.close()
    await becomes(lambda: is_refused(address[1]))
    clients[0].send(b"more")
    await becomes(lambda: b"0more" in [each.data for each in made])
    for client in clients:
        client.close()
    await becomes(lambda: all(each.lost for each in made))


@on_both
async def test_listen(plane: DataPlane) -> None:
    """Whoever wants the sockets themselves gets them."""
    accepted: list[socket.socket] = []
    sock = listener()
    listening = plane.listen(sock, accepted.append)
    with socket.create_connection(sock.getsockname(), PATIENCE):
        await becomes(lambda: accepted)
    accepted[0].close()
    listening.close()


@contextmanager
def names(*addresses: str) -> Iterator[None]:
    """Meanwhile any name has these addresses."""

    async def resolve(_host: object, port: int, **_options: object) -> list[tuple[object, ...]]:
        families = {address: socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses}
        return [(families[address], socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        yield
