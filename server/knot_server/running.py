"""Running the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import structlog
import uvicorn

from knot_keys.passphrase import Passphrase
from knot_keys.recoding import finish_change
from knot_server.datafolder import check_secrets, held
from knot_server.http.app import make_app
from knot_server.http.protocol import HttpConfig
from knot_server.http.tls import Tls
from knot_server.services import Services
from knot_server.settings import ServerSettings
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.listening import bound_address, listen_on

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5
"""How long requests in progress, and what is being relayed, may take after SIGTERM."""


async def run(plane: DataPlane, folder: Path, settings: ServerSettings, passphrase: Passphrase | None = None) -> None:
    """Serve hub and HTTP API until SIGTERM or SIGINT. The passphrase is that of the CAs' keys."""
    with held(folder):
        check_secrets(folder)
        finish_change(folder, passphrase)
        await _run(plane, folder, settings, passphrase)


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
