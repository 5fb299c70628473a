"""Making a server's data folder, and running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn

from knot_keys.authority import Authority
from knot_keys.keyfiles import HOST_CA_FILE, USER_CA_FILE
from knot_keys.keyring import KeyRing
from knot_keys.passphrase import Passphrase
from knot_keys.recoding import change_passphrase, finish_change
from knot_server.http.app import make_app
from knot_server.http.protocol import HttpConfig
from knot_server.http.tls import Tls
from knot_server.services import HUB_KEY_FILE, Services
from knot_server.settings import ServerSettings
from knot_server.store.database import STORE_FILE, Database
from knot_server.store.journal import JOURNAL_FILE
from knot_server.usecases.audit import SERVER, Audit
from knot_server.usecases.users import add_user, record_user
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import KnotError
from knot_ssh.files import check_folder, check_private_file, lock_folder, make_private_folder
from knot_ssh.listening import bound_address, listen_on
from knot_ssh.names import Owner

log = structlog.get_logger(__name__)

FILES = (USER_CA_FILE, HOST_CA_FILE, HUB_KEY_FILE, STORE_FILE, JOURNAL_FILE)
"""What makes a data folder a server's."""
DRAIN_SECONDS = 5
"""How long requests in progress, and what is being relayed, may take after SIGTERM."""


async def initialise(folder: Path, admin: Owner, passphrase: Passphrase | None = None) -> str:
    """Make CAs, hub key, store and the first administrator; gives their API token. The passphrase is for the CAs' keys.

    Raises KnotError where any of these is there already. What cannot be made whole is taken away again.
    """
    if any((folder / name).exists() for name in FILES):
        raise KnotError(f"{folder} holds a server's data already; start it with `knot server run --data {folder}`")
    make_private_folder(folder)
    check_folder(folder)
    try:
        return await _initialised(folder, admin, passphrase)
    except BaseException:
        _take_away(folder)
        raise


async def _initialised(folder: Path, admin: Owner, passphrase: Passphrase | None) -> str:
    Authority.create(folder, passphrase)
    KeyRing.create(folder, HUB_KEY_FILE, "knot hub")
    database = await Database.create(folder)
    try:
        async with database.writing() as session:
            user = await add_user(session, admin, admin=True)
            record_user(Audit(database), session, SERVER, user, admin=True)
    finally:
        await database.close()
    return user.token


def _take_away(folder: Path) -> None:
    """Remove what a failed start has made, also `.pub`, `-wal` and the like beside the files."""
    for made in folder.iterdir():
        if made.name.startswith(FILES) and made.is_file():
            made.unlink()


async def run(plane: DataPlane, folder: Path, settings: ServerSettings, passphrase: Passphrase | None = None) -> None:
    """Serve hub and HTTP API until SIGTERM or SIGINT. The passphrase is that of the CAs' keys."""
    with _held(folder):
        check_secrets(folder)
        finish_change(folder, passphrase)
        await _run(plane, folder, settings, passphrase)


def encrypt_authority(folder: Path, old: Passphrase | None, new: Passphrase | None) -> list[Path]:
    """Change the passphrase of the CAs' keys; gives the files. Raises as `change_passphrase` does, and while a server runs."""
    with _held(folder):
        check_secrets(folder)
        return change_passphrase(folder, old, new)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other servers out of a server's folder meanwhile; raises KnotError where there is one, or no such folder."""
    if not any((folder / name).exists() for name in FILES):
        raise KnotError(f"there is no server in {folder}; make one with `knot server init --data {folder}`")
    check_folder(folder)
    lock = lock_folder(folder, "server")
    try:
        yield
    finally:
        os.close(lock)


def check_secrets(folder: Path) -> None:
    """Refuse a folder with a secret file that others could read; raises LooseFile, naming the file and how to mend it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(FILES) and path.suffix != ".pub":
            check_private_file(path)


async def _run(plane: DataPlane, folder: Path, settings: ServerSettings, passphrase: Passphrase | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = Tls(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
    services = await Services.open(plane, folder, settings, passphrase)
    try:
        http_socket = listen_on(Address.parse(settings.http), what="--http")
        with contextlib.closing(http_socket):
            ssh = await services.hub.listen(Address.parse(settings.ssh))
            services.hub_address = settings.ssh_address or str(ssh)
            url = settings.url or f"{'https' if tls else 'http'}://{bound_address(http_socket)}"
            log.info("server ready", url=url, ssh=services.hub_address)
            if Address.parse(services.hub_address).is_wildcard:
                log.warning("agents cannot dial a wildcard address: give the hub's own with --ssh-address")
            config = HttpConfig(make_app(services, settings, url), settings, tls, timeout_graceful_shutdown=DRAIN_SECONDS)
            await _serve(services, config, http_socket, stop)
    finally:
        await services.close()
        log.info("server stopped")


async def _serve(services: Services, config: HttpConfig, http_socket: socket.socket, stop: asyncio.Event) -> None:
    """Serve both doors until told to stop, then let come to an end what is under way."""
    http = _Uvicorn(config)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(http.serve(sockets=[http_socket]))
        works = (services.audit.run(), services.keeping.run(), services.revocations.run(), _renew(config.tls))
        beside = [tasks.create_task(work) for work in works]
        await stop.wait()
        log.info("server stopping")
        http.should_exit = True
        services.hub.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await services.hub.wait_idle()
        for task in beside:
            task.cancel()


async def _renew(tls: Tls | None) -> None:
    """Follow the TLS certificate, and read it again on SIGHUP; without one SIGHUP does nothing."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, tls.reload if tls else lambda: None)
    if tls:
        await tls.watch()


class _Uvicorn(uvicorn.Server):
    """uvicorn, but signals are ours: the hub is to end with it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
