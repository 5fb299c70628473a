"""The agent's SSH server: accepts certificates of its own owner and zone, and channels to loopback. Nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import structlog

from knot_agent.admission import destinations, refuse_client
from knot_agent.credentials import Credentials
from knot_keys.certificates import CertificateRefused, ClientCertificate, check_client
from knot_keys.connections import Doorkeeper, ServerConnection, Shown, close, server_options
from knot_ssh.dataplane.splice import Splice, Splices
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

DIAL_TIMEOUT = 10
"""Seconds for a service on loopback to accept."""


@dataclass(slots=True)
class Rules:
    """What all connections of one endpoint share."""

    credentials: Credentials
    allow: Collection[str]
    connected: set[EndpointDoorkeeper] = field(default_factory=set)
    splices: Splices = field(default_factory=Splices)


class Endpoint:
    """Listens on a socket that is bound already."""

    def __init__(self, credentials: Credentials, allow: Collection[str]) -> None:
        self._rules = Rules(credentials, allow)
        self._options: Any = None
        self._server: asyncio.Server | None = None
        self._tasks = Tasks()

    async def serve(self, sock: socket.socket) -> None:
        """Start accepting. Host certificate and revocations are followed from then on."""
        loop = asyncio.get_running_loop()
        credentials = self._rules.credentials
        options = await server_options(lambda: EndpointDoorkeeper(self._rules), credentials.host)
        self._options = options
        self._server = await loop.create_server(lambda: ServerConnection(loop, options), sock=sock)
        credentials.on_certificates.append(self._show_new_certificate)
        credentials.on_revocations.append(self._cut_revoked)

    def stop_accepting(self) -> None:
        if self._server:
            self._server.close()

    async def wait_idle(self) -> None:
        """Wait until every forwarded connection has ended, and its last byte is with the kernel."""
        await self._rules.splices.wait_idle()

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        self.stop_accepting()
        await asyncio.gather(*(close(keeper.connection) for keeper in list(self._rules.connected)))
        self._rules.splices.abort()
        await self._tasks.cancel()

    def _show_new_certificate(self) -> None:
        host = self._rules.credentials.host
        self._options.update(server_host_keys=[(host.key, host.certificate)])

    def _cut_revoked(self) -> None:
        revoked = self._rules.credentials.revoked
        for keeper in list(self._rules.connected):
            client = keeper.client
            if client and revoked.covers(client.serial, client.fingerprint):
                log.warning("connection cut", reason="revoked", key_id=client.identity.encode()[1], serial=client.serial)
                self._tasks.start(close(keeper.connection))


class EndpointDoorkeeper(Doorkeeper):
    """One for each connection to the endpoint. The login name is not looked at: the certificate decides."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.client: ClientCertificate | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        super().connection_made(conn)
        self._rules.connected.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._rules.connected.discard(self)

    async def welcomes(self, login: str, shown: Shown) -> bool:
        return self._judged(shown) is not None

    def entered(self, login: str, shown: Shown) -> None:
        self.client = self._judged(shown)

    def session_requested(self) -> Any:
        raise _prohibited("this endpoint forwards ports and has no shell, commands or files")

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Judge a direct-tcpip channel; gives the coroutine that dials."""
        addresses = destinations(dest_host, dest_port, self._rules.allow)
        refusal = self._refusal() or (None if addresses else "address not allowed")
        if refusal:
            log.warning("channel refused", reason=refusal, host=dest_host[:255], port=dest_port)
            raise _prohibited("not allowed here")
        return self._dialled(addresses, dest_port)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return False

    def unix_connection_requested(self, dest_path: str) -> bool:
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        return False

    def tun_requested(self, unit: int | None) -> bool:
        return False

    def tap_requested(self, unit: int | None) -> bool:
        return False

    def _refusal(self) -> str | None:
        if self.client is None:
            return "not logged in"
        credentials = self._rules.credentials
        return refuse_client(self.client, credentials.principal, credentials.revoked, time.time())

    def _judged(self, shown: Shown) -> ClientCertificate | None:
        """What the certificate says when it passes every check."""
        credentials = self._rules.credentials
        try:
            if isinstance(shown, asyncssh.SSHKey):
                raise CertificateRefused("a plain key")
            client = check_client(shown, [credentials.user_ca], credentials.revoked)
        except CertificateRefused as error:
            log.warning("login refused", reason=str(error), peer=self._peer())
            return None
        refusal = refuse_client(client, credentials.principal, credentials.revoked, time.time())
        if refusal:
            principals, key_id = client.identity.encode()
            log.warning("login refused", reason=refusal, peer=self._peer(), key_id=key_id, principals=",".join(principals))
            return None
        return client

    async def _dialled(self, addresses: list[str], port: int) -> asyncssh.SSHTCPSession[bytes]:
        """Connect to the first address that accepts; the channel opens only then."""
        reason = ""
        for address in addresses:
            splice = Splice()
            try:
                await _dial(splice, address, port)
            except TimeoutError:
                reason = reason or "no answer"
            except OSError as error:
                reason = reason or (os.strerror(error.errno).lower() if error.errno else "connection failed")
            else:
                if self.connection.lost:  # nobody would tell the splice
                    splice.abort()
                    break
                self._rules.splices.add(splice)
                self.connection.splices.add(splice)
                return splice.channel_side
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"port {port}: {reason}")

    def _peer(self) -> str:
        return str((self.connection.get_extra_info("peername") or ("unknown",))[0])


async def _dial(splice: Splice, address: str, port: int) -> None:
    async with asyncio.timeout(DIAL_TIMEOUT):
        await asyncio.get_running_loop().create_connection(lambda: splice.socket_side, address, port)


def _prohibited(reason: str) -> asyncssh.ChannelOpenError:
    return asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
