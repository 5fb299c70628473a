"""The agent's SSH server: accepts certificates of its own owner and zone, and channels to loopback. Nothing else."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncssh
import structlog
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_agent.credentials import Credentials
from knot_agent.destinations import destinations
from knot_agent.relaying import Inlet
from knot_agent.witness import Witness
from knot_keys.bounds import Bounds
from knot_keys.certificates import UNKNOWN_CA, CertificateRefused, ClientCertificate, check_client, serial_of
from knot_keys.connections import ClientConnection, Doorkeeper, ServerConnection, Shown, close, server_options
from knot_keys.entrance import Entrance
from knot_keys.permission import OUTDATED, must_end, outlives_its_ca, refuse_client
from knot_keys.turns import Turnstile
from knot_keys.waitingroom import WaitingRoom
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.dialling import Dial
from knot_ssh.dataplane.plane import Closeable, DataPlane
from knot_ssh.dataplane.shares import Shares
from knot_ssh.dataplane.windows import Budget
from knot_ssh.logs import STRANGERS_AT_ONCE, Sparing
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

UNAUTHENTICATED_MAX = 256
"""Connections that have not logged in yet; some 17 KB each."""
ENDPOINT_BOUNDS = Bounds(UNAUTHENTICATED_MAX)

PLAIN_KEY = "a plain key"


@dataclass(slots=True)
class Rules:
    """What all connections of one endpoint share. Owns the channels that others have opened to us."""

    plane: DataPlane
    credentials: Credentials
    allow: Collection[str]
    bounds: Bounds = ENDPOINT_BOUNDS
    connected: set[EndpointDoorkeeper] = field(default_factory=set)
    channels: Channels = field(default_factory=Channels)
    tally: Tally = field(default_factory=Tally)
    room: WaitingRoom = field(init=False)
    turnstile: Turnstile = field(init=False)
    shares: Shares = field(init=False)
    tasks: Tasks = field(default_factory=Tasks)
    witness: Witness = field(default_factory=Witness)
    strangers: Sparing = field(default_factory=lambda: Sparing(STRANGERS_AT_ONCE))

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.bounds.unauthenticated)
        self.turnstile = Turnstile(self.bounds.key_exchanges)
        self.shares = Shares(self.plane.limits)

    @property
    def budget(self) -> Budget:
        return self.plane.budget

    def channel_opened(self, channel: Channel) -> None:
        """The service has accepted."""

    def channel_refused(self, channel: Channel, reason: str) -> None:
        self.tally.refuse(reason)

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        """We ask nobody for channels."""

    def channel_gone(self, channel: Channel) -> None:
        self.channels.remove(channel)


class Endpoint:
    """Takes connections from a socket that is bound already, and those that come through the hub."""

    def __init__(
        self,
        plane: DataPlane,
        credentials: Credentials,
        allow: Collection[str],
        bounds: Bounds = ENDPOINT_BOUNDS,
        witness: Witness | None = None,
    ) -> None:
        self._rules = Rules(plane, credentials, allow, bounds, witness=Witness() if witness is None else witness)
        self._options: Any = None
        self._listener: Closeable | None = None
        self._entrance: Entrance | None = None
        self._accepting = False

    async def serve(self, sock: socket.socket | None) -> None:
        """Start accepting; without a socket, what comes through the hub alone.

        Host certificate and revocations are followed from then on.
        """
        plane, credentials, bounds = self._rules.plane, self._rules.credentials, self._rules.bounds
        keeper = partial(EndpointDoorkeeper, self._rules)
        self._options = await server_options(plane, keeper, credentials.host, bounds.login_timeout)
        self._accepting = True
        if sock:
            self._entrance = Entrance(self._accept, bounds.unauthenticated, bounds.login_timeout, bounds.connections)
            self._listener = plane.listen(sock, self._entrance.come)
        credentials.on_certificates.append(self._show_new_certificate)
        credentials.on_revocations.append(self._cut_revoked)
        credentials.on_trust.append(self._cut_distrusted)
        credentials.on_moved.append(self._cut_revoked)
        credentials.on_outdated.append(self._cut_all)

    def take_relayed(self, hub: ClientConnection) -> tuple[Channel, Inlet]:
        """The hub wants to pass a connection on to us; raises asyncssh.ChannelOpenError."""
        if not self._accepting:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "the endpoint is not open")
        inlet = Inlet(self._rules.plane, hub, self._accept)
        return inlet.channel, inlet

    def stop_accepting(self) -> None:
        self._accepting = False
        if self._listener:
            self._listener.close()
        if self._entrance:
            self._entrance.close()

    async def wait_idle(self) -> None:
        """Wait until every forwarded connection has ended, and its last byte is with the kernel."""
        await self._rules.channels.wait_idle()

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        self.stop_accepting()
        await asyncio.gather(*(close(keeper.connection) for keeper in list(self._rules.connected)))
        self._rules.channels.abort()
        await self._rules.tasks.cancel()

    def _accept(self, sock: socket.socket) -> None:
        self._rules.plane.accept(sock, ServerConnection(self._rules.plane, self._options))

    def _show_new_certificate(self) -> None:
        host = self._rules.credentials.host
        self._options.update(server_host_keys=[(host.key, host.certificate)])

    def _cut_revoked(self) -> None:
        credentials = self._rules.credentials
        for keeper in list(self._rules.connected):
            if keeper.client and (reason := must_end(keeper.client, credentials.principal, credentials.revoked)):
                self._cut(keeper, reason)

    def _cut_all(self) -> None:
        """Nobody knows who of them is revoked by now."""
        for keeper in list(self._rules.connected):
            self._cut(keeper, OUTDATED)

    def _cut(self, keeper: EndpointDoorkeeper, reason: str) -> None:
        client = keeper.client
        if client:
            log.warning("connection cut", reason=reason, key_id=client.identity.encode()[1], serial=client.serial)
        self._rules.tasks.start(close(keeper.connection))

    def _cut_distrusted(self) -> None:
        """A CA was retired: end what its certificates have opened, but for what may outlive a certificate anyway."""
        own, now = self._rules.credentials, time.time()
        for keeper in list(self._rules.connected):
            if keeper.client and outlives_its_ca(keeper.client, own.user_ca_names, own.membership.distrusted, now):
                self._cut(keeper, UNKNOWN_CA)


class EndpointDoorkeeper(Doorkeeper):
    """One for each connection to the endpoint. The login name is not looked at: the certificate decides."""

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules.bounds, rules.room, rules.turnstile, rules.shares, rules.tasks)
        self._rules = rules
        self.client: ClientCertificate | None = None
        self._kinds: set[type[Shown]] = set()
        self._sparing = Sparing()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        super().connection_made(conn)
        self._rules.connected.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rules.connected.discard(self)
        if self._kinds == {asyncssh.SSHKey}:
            self._rules.witness.login_refused(PLAIN_KEY, self.peer)

    @property
    def peer_id(self) -> Hashable:
        """A space's agent, or a person."""
        identity = self.client.identity if self.client else None
        return identity and (identity.role, identity.owner, identity.space_id)

    async def welcomes(self, login: str, shown: Shown) -> bool:
        self._kinds.add(asyncssh.SSHKey if isinstance(shown, asyncssh.SSHKey) else SSHOpenSSHCertificate)
        return self._judged(shown) is not None

    def entered(self, login: str, shown: Shown) -> None:
        self.client = client = self._judged(shown)
        if client:
            self._rules.witness.link_opened(client, self.peer)
            self.leave_in_time(client)

    def session_requested(self) -> Any:
        raise _prohibited("this endpoint forwards ports and has no shell, commands or files")

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Judge a direct-tcpip channel; gives the channel, and what connects it."""
        addresses = destinations(dest_host, dest_port, self._rules.allow)
        refusal = self._refusal() or (None if addresses else "address not allowed")
        if refusal:
            self._sparing.warning(log, "channel refused", reason=refusal, host=dest_host[:255], port=dest_port)
            self._rules.witness.channel_refused(refusal, self.peer, self.client, dest_host, dest_port)
            raise _prohibited("not allowed here")
        channel = Channel(self._rules)
        self._rules.channels.add(channel)
        return channel, Dial(self.connection, addresses, dest_port)

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return False

    def _refusal(self) -> str | None:
        return "not logged in" if self.client is None else self._refusal_of(self.client)

    def _refusal_of(self, client: ClientCertificate) -> str | None:
        own = self._rules.credentials
        if not own.is_current():
            return OUTDATED
        return refuse_client(client, own.principal, own.user_ca_names, own.revoked, time.time())

    def _judged(self, shown: Shown) -> ClientCertificate | None:
        """What the certificate says when it passes every check."""
        credentials = self._rules.credentials
        try:
            if isinstance(shown, asyncssh.SSHKey):
                raise CertificateRefused(PLAIN_KEY)
            if not credentials.is_current():
                raise CertificateRefused(OUTDATED)
            client = check_client(shown, credentials.user_cas, credentials.revoked)
        except CertificateRefused as error:
            self._rules.strangers.warning(log, "login refused", reason=str(error), peer=self.peer)
            if not isinstance(shown, asyncssh.SSHKey):  # stock ssh shows the bare key before each certificate
                self._rules.witness.login_refused(str(error), self.peer, serial_of(shown))
            return None
        refusal = self._refusal_of(client)
        if refusal:
            principals, key_id = client.identity.encode()
            who = {"key_id": key_id, "principals": ",".join(principals)}
            self._rules.strangers.warning(log, "login refused", reason=refusal, peer=self.peer, **who)
            self._rules.witness.login_refused(refusal, self.peer, client.serial)
            return None
        return client


def _prohibited(reason: str) -> asyncssh.ChannelOpenError:
    return asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
