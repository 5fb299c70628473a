"""Making a server's data folder, and running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn

from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE, Authority
from knot_keys.keyfiles import create_key
from knot_server.http.app import make_app
from knot_server.http.protocol import Protocol
from knot_server.services import HUB_KEY_FILE, Services
from knot_server.store.database import STORE_FILE, Database
from knot_server.store.journal import JOURNAL_FILE
from knot_server.usecases.users import add_user
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import KnotError
from knot_ssh.files import lock_folder, make_private_folder
from knot_ssh.listening import bound_address, listen_on
from knot_ssh.names import Owner

log = structlog.get_logger(__name__)

FILES = (USER_CA_FILE, HOST_CA_FILE, HUB_KEY_FILE, STORE_FILE, JOURNAL_FILE)
"""What makes a data folder a server's."""
DRAIN_SECONDS = 5
"""How long requests in progress, and what is being relayed, may take after SIGTERM."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What `knot server run` was told."""

    data: Path
    http: Address
    ssh: Address
    url: str | None
    ssh_address: str | None
    certificate_lifetime: int


async def initialise(folder: Path, admin: Owner) -> str:
    """Make CAs, hub key, store and the first administrator; gives their API token.

    Raises KnotError where any of these is there already. What cannot be made whole is taken away again.
    """
    if any((folder / name).exists() for name in FILES):
        raise KnotError(f"{folder} holds a server's data already; start it with `knot server run --data {folder}`")
    make_private_folder(folder)
    try:
        return await _initialised(folder, admin)
    except BaseException:
        _take_away(folder)
        raise


async def _initialised(folder: Path, admin: Owner) -> str:
    Authority.create(folder)
    create_key(folder / HUB_KEY_FILE, "knot hub")
    database = await Database.create(folder)
    try:
        async with database.writing() as session:
            user = await add_user(session, admin, admin=True)
    finally:
        await database.close()
    return user.token


def _take_away(folder: Path) -> None:
    """Remove what a failed start has made, also `.pub`, `-wal` and the like beside the files."""
    for made in folder.iterdir():
        if made.name.startswith(FILES) and made.is_file():
            made.unlink()


async def run(plane: DataPlane, settings: RunSettings) -> None:
    """Serve hub and HTTP API until SIGTERM or SIGINT."""
    if not any((settings.data / name).exists() for name in FILES):
        raise KnotError(f"there is no server in {settings.data}; make one with `knot server init --data {settings.data}`")
    lock = lock_folder(settings.data, "server")
    try:
        await _run(plane, settings)
    finally:
        os.close(lock)


async def _run(plane: DataPlane, settings: RunSettings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    services = await Services.open(plane, settings.data, settings.certificate_lifetime)
    try:
        http_socket = listen_on(settings.http, what="--http")
        with contextlib.closing(http_socket):
            ssh = await services.hub.listen(settings.ssh)
            services.hub_address = settings.ssh_address or str(ssh)
            url = settings.url or f"http://{bound_address(http_socket)}"
            log.info("server ready", url=url, ssh=services.hub_address)
            if Address.parse(services.hub_address).is_wildcard:
                log.warning("agents cannot dial a wildcard address: give the hub's own with --ssh-address")
            await _serve(services, http_socket, stop)
    finally:
        await services.close()
        log.info("server stopped")


async def _serve(services: Services, http_socket: socket.socket, stop: asyncio.Event) -> None:
    """Serve both doors until told to stop, then let come to an end what is under way."""
    config = uvicorn.Config(
        make_app(services),
        http=Protocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    http = _Uvicorn(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(http.serve(sockets=[http_socket]))
        await stop.wait()
        log.info("server stopping")
        http.should_exit = True
        services.hub.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await services.hub.wait_idle()


class _Uvicorn(uvicorn.Server):
    """uvicorn, but signals are ours: the hub is to end with it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
