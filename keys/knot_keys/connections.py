"""SSH connections that trust certificates and nothing else. Hub, endpoint and links are all made of these.

asyncssh's own callbacks never see the certificate, look for principals only where there are some, and read files and
agents of the environment unless told not to. So the one method that judges a client's key, and the one that judges a
host's, are overridden here, and every option that would look outside is set.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import asyncssh
import structlog
from asyncssh.connection import SSHClientConnectionOptions, SSHServerConnectionOptions
from asyncssh.constants import MSG_KEXINIT
from asyncssh.kex import get_kex_algs
from asyncssh.packet import PacketDecodeError, SSHPacket, String
from asyncssh.public_key import SSHOpenSSHCertificate, decode_ssh_certificate, decode_ssh_public_key

from knot_keys.bounds import LOGIN_TIMEOUT, Bounds
from knot_keys.certificates import OUT_OF_TIME, CertificateRefused, ClientCertificate
from knot_keys.identity import Role
from knot_keys.keyfiles import UNREADABLE
from knot_keys.turns import Turnstile
from knot_keys.waitingroom import WaitingRoom
from knot_ssh.addresses import Address
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.connection import CarryingConnection
from knot_ssh.dataplane.plane import DataPlane, dial
from knot_ssh.dataplane.shares import Shares
from knot_ssh.errors import KnotError, Unavailable
from knot_ssh.tasks import Tasks
from knot_ssh.words import printable

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT = 3
"""Seconds for TCP to connect. Whoever dials tries again: soon after a network is back, and not at the kernel's next try."""
KEEPALIVE_INTERVAL = 4
KEEPALIVE_COUNT = 3
"""A silent peer is given up after interval x (count + 1) = 16 s."""
CLOCK_SECONDS = 60.0
"""How often the clock is looked at for a certificate's end, for it may be set meanwhile."""

POST_QUANTUM = [name for name in ("mlkem768x25519-sha256",) if name.encode() in get_kex_algs()]
"""Key exchange whose recording a quantum computer will not open (draft-ietf-sshm-mlkem-hybrid-kex), as OpenSSH 10 prefers it,
where the OpenSSL below `cryptography` has it. It costs the two ends 0.3 ms together, on top of 1.5 ms for a handshake."""
ALGORITHMS: dict[str, Any] = {
    "kex_algs": [*POST_QUANTUM, "curve25519-sha256", "curve25519-sha256@libssh.org"],
    "encryption_algs": [
        "aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr",
    ],
    "mac_algs": ["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"],
    "compression_algs": ["none"],
    "signature_algs": [
        "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "rsa-sha2-256", "rsa-sha2-512",
    ],
}  # fmt: skip
"""No SHA-1, no CBC, no encrypt-and-MAC, no NIST curves in key exchange; authenticated encryption first. All but the first
key exchange are in OpenSSH 8 and paramiko 3; strict key exchange, against Terrapin (CVE-2023-48795), is asyncssh's own."""
SIGNATURES = frozenset(name.encode() for name in ALGORITHMS["signature_algs"])
"""asyncssh advertises these to the client but would accept others: they are enforced at login."""
RELAY_PEER = "relay"
"""Where a connection comes from that has no address."""
HOST_KEY_ALGORITHMS = ["ssh-ed25519-cert-v01@openssh.com"]

KexHandler = Callable[[int, int, SSHPacket], bool | Awaitable[None]]
Shown = asyncssh.SSHKey | SSHOpenSSHCertificate
"""What a client offers at login: a plain public key, or a certificate."""


def key_exchange(*, post_quantum_only: bool) -> dict[str, Any]:
    """The option that leaves out every key exchange but the post-quantum ones; raises KnotError where there are none."""
    if not post_quantum_only:
        return {}
    if not POST_QUANTUM:
        raise KnotError("post_quantum_only: the OpenSSL below this installation's `cryptography` has no ML-KEM; update it")
    return {"kex_algs": POST_QUANTUM}


class Doorkeeper(asyncssh.SSHServer):
    """Decides who enters. One for each connection that comes in."""

    connection: ServerConnection

    def __init__(self, bounds: Bounds, room: WaitingRoom, turnstile: Turnstile, shares: Shares, tasks: Tasks) -> None:
        self.bounds = bounds
        self._room = room
        self._tasks = tasks
        self.turnstile = turnstile
        self._shares = shares
        self._joined: Hashable = None
        self._leaving: asyncio.Task[None] | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, ServerConnection)
        self.connection = conn
        self._room.enter(conn, self.peer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.leave(self.connection)
        if self._joined is not None:
            self._shares.leave(self._joined)
            self._joined = None
        if self._leaving:
            self._leaving.cancel()

    def auth_completed(self) -> None:
        self._room.leave(self.connection)
        peer = self.peer_id
        share = None if peer is None else self._shares.join(peer, self.connection.plane.reactor.now)
        if share is None:
            log.warning("connection refused", reason="too many of this peer", peer=self.peer)
            raise asyncssh.DisconnectError(asyncssh.DISC_TOO_MANY_CONNECTIONS, "Too many connections at once")
        self._joined = peer
        self.connection.share = share

    @property
    def peer_id(self) -> Hashable:
        """Who has logged in: whose connections and channels are counted together."""
        raise NotImplementedError

    @property
    def peer(self) -> str:
        """The address that the connection came from; `relay` for one that came through the hub."""
        return peer_address(self.connection)

    def begin_auth(self, username: str) -> bool:
        return True  # False would let anybody in

    def password_auth_supported(self) -> bool:
        return False

    def public_key_auth_supported(self) -> bool:
        return True

    def kbdint_auth_supported(self) -> bool:
        return False

    # TCP is all that is forwarded here, on either kind of server

    def unix_connection_requested(self, dest_path: str) -> bool:
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        return False

    def tun_requested(self, unit: int | None) -> bool:
        return False

    def tap_requested(self, unit: int | None) -> bool:
        return False

    async def welcomes(self, login: str, shown: Shown) -> bool:
        """Whether the holder of this key or certificate may enter under this login name.

        Asked before the holder has proved anything: nothing may be remembered. Nothing is read from the connection
        meanwhile, so that it may take its time.
        """
        raise NotImplementedError

    def entered(self, login: str, shown: Shown) -> None:
        """The holder has proved to have the key: now remember who it is."""
        raise NotImplementedError

    def leave_in_time(self, client: ClientCertificate) -> None:
        """End a person's connection once its certificate has run out and nothing is open on it.

        Stock ssh would hold on to it, though every channel is refused; ended, it can come again with a new certificate. An
        agent changes over to a new link by itself.
        """
        if client.identity.role is Role.PERSON and self._leaving is None:
            self._leaving = self._tasks.start(self._leave_at(client.expires_at))

    async def _leave_at(self, moment: float) -> None:
        while (left := moment - time.time()) > 0:  # noqa: ASYNC110 - nobody tells when the clock is set
            await asyncio.sleep(min(left, CLOCK_SECONDS))
        await self.connection.wait_idle()
        self.connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the certificate has expired; connect again with a new one")


class ServerConnection(CarryingConnection, asyncssh.SSHServerConnection):
    """A connection that came in; its Doorkeeper sees keys and certificates whole."""

    def __init__(self, plane: DataPlane, options: SSHServerConnectionOptions) -> None:
        super().__init__(plane, asyncio.get_running_loop(), options)
        self._tries = 0

    def _cleanup(self, exc: Exception | None) -> None:
        if not self._auth_complete:
            self.plane.stranger_gone()
        super()._cleanup(exc)

    async def _process_kexinit(self, pkttype: int, pktid: int, packet: SSHPacket) -> None:
        """What costs most of a key exchange is done when it is the stranger's turn; until then nothing more is read."""
        await super()._process_kexinit(pkttype, pktid, packet)
        if self._kex and not self._auth_complete:
            self._kex.process_packet = partial(self._exchange_in_turn, self._kex.process_packet)  # type: ignore[method-assign]

    async def _exchange_in_turn(self, process: KexHandler, kind: int, number: int, packet: SSHPacket) -> None:
        keeper = self.get_owner()
        assert isinstance(keeper, Doorkeeper)
        await keeper.turnstile.turn(keeper.peer)
        try:
            if not process(kind, number, packet):
                raise asyncssh.ProtocolError("no such step of a key exchange")
        except PacketDecodeError as error:
            raise asyncssh.ProtocolError(str(error)) from None

    _packet_handlers = CarryingConnection._packet_handlers | {MSG_KEXINIT: _process_kexinit}

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        self.count_try()
        shown = _decoded(key_data)
        keeper = self.get_owner()
        if shown is None or not isinstance(keeper, Doorkeeper):
            return False
        self.stop_reading("login")
        try:
            if not await keeper.welcomes(username, shown):
                return False
        finally:
            self.go_on_reading("login")
        if not msg:
            return True
        key = shown if isinstance(shown, asyncssh.SSHKey) else shown.key
        if not self._signed(key, msg, signature):
            return False
        keeper.entered(username, shown)
        return True

    def count_try(self) -> None:
        """Count one attempt to log in; the connection ends when there were too many."""
        self._tries += 1
        keeper = self.get_owner()
        if not isinstance(keeper, Doorkeeper) or self._tries > keeper.bounds.login_tries:
            raise asyncssh.DisconnectError(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "Too many attempts to log in")

    def _signed(self, key: asyncssh.SSHKey, msg: bytes, signature: bytes) -> bool:
        """Whether this is the key's signature, of an algorithm we accept (RFC 4252 section 7)."""
        try:
            algorithm = SSHPacket(signature).get_string()
        except asyncssh.Error:
            return False
        return algorithm in SIGNATURES and key.verify(String(self._session_id) + msg, signature)


def peer_address(connection: asyncssh.SSHServerConnection) -> str:
    """The address that a connection came from; `relay` for one that came through the hub."""
    return str((connection.get_extra_info("peername") or (RELAY_PEER,))[0])


HostCheck = Callable[[SSHOpenSSHCertificate], None]
"""Raises CertificateRefused unless the certificate is good for the host we want."""
ForwardedFrom = Callable[["ClientConnection"], tuple[Channel, Any]]
"""Gives the channel that the server wants to open to us, and its Opening; asyncssh.ChannelOpenError refuses it."""


class WrongHost(KnotError):
    """The machine that answered is not the one we want."""

    code = "wrong_host"


class ClientConnection(CarryingConnection, asyncssh.SSHClientConnection):
    """A connection that we made. The host's certificate is judged once; later key exchanges must show the same key.

    (A host certificate is short-lived: judging it again at each rekey would cut long connections for nothing.)
    """

    def __init__(self, plane: DataPlane, options: SSHClientConnectionOptions, check: HostCheck) -> None:
        super().__init__(plane, asyncio.get_running_loop(), options, wait="auth")
        self._check = check
        self.on_forwarded: ForwardedFrom | None = None
        self.host_certificate: SSHOpenSSHCertificate | None = None
        self.refusal = ""

    def channel_requested(self, host: str, port: int, origin: str, origin_port: int) -> Any:
        if self.on_forwarded is None:
            return super().channel_requested(host, port, origin, origin_port)
        return self.on_forwarded(self)

    def _process_forwarded_tcpip_open(self, packet: SSHPacket) -> Any:
        """asyncssh looks for a listener of its own."""
        for _ in range(2):  # both ends' addresses: there is one thing only that we register
            packet.get_string()
            packet.get_uint32()
        packet.check_end()
        return self.channel_requested("", 0, "", 0)

    def _validate_host_key(self, host: str, addr: str, port: int, key_data: bytes) -> asyncssh.SSHKey:
        shown = _decoded(key_data)
        try:
            if shown is None or isinstance(shown, asyncssh.SSHKey):
                raise CertificateRefused("a plain host key where a certificate was expected")
            if self.host_certificate is None:
                self._check(shown)
                self.host_certificate = shown
            elif shown.key != self.host_certificate.key:
                raise CertificateRefused("the host key changed within the connection")
        except CertificateRefused as error:
            self.refusal = str(error)
            raise
        return self.host_certificate.key


@dataclass(frozen=True, slots=True)
class Credential:
    """What we log in with: a key, and a certificate for it where there is one."""

    key: asyncssh.SSHKey
    certificate: SSHOpenSSHCertificate | None = None


async def connect(
    plane: DataPlane,
    address: Address,
    login: str,
    check: HostCheck,
    *,
    credential: Credential | None = None,
    password: str | None = None,
) -> ClientConnection:
    """Dial, check the host, log in.

    Raises Unavailable (nobody answers), WrongHost (somebody else answers) or asyncssh.PermissionDenied (not let in).
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            sock = await dial(address.host, address.port)
    except OSError as error:  # TimeoutError among them
        raise _unavailable(error, str(address)) from None
    return await log_in(plane, sock, str(address), login, check, credential=credential, password=password)


async def log_in(
    plane: DataPlane,
    sock: socket.socket,
    where: str,
    login: str,
    check: HostCheck,
    *,
    credential: Credential | None = None,
    password: str | None = None,
) -> ClientConnection:
    """As `connect`, over a socket that leads to the host; `where` names it in errors."""
    try:
        options = await _client_options(plane, where, login, credential, password)
    except BaseException:
        sock.close()
        raise
    options.waiter = asyncio.get_running_loop().create_future()
    connection = ClientConnection(plane, options, check)
    try:
        await plane.carry(sock, connection)
        await options.waiter
    except BaseException as error:
        await close(connection)
        raise _translated(error, where, connection) from None
    finally:
        options.waiter.cancel()  # else asyncssh may set an error that nobody reads
    return connection


async def _client_options(
    plane: DataPlane, where: str, login: str, credential: Credential | None, password: str | None
) -> SSHClientConnectionOptions:
    """What every client connection of ours is made with: nothing is read from the environment."""
    keys: list[Any] = []
    if credential:
        keys = [(credential.key, credential.certificate) if credential.certificate else credential.key]
    options: SSHClientConnectionOptions = await SSHClientConnectionOptions.construct(
        config=None, host=where, port=0, username=login, password=password,
        client_keys=keys or None, agent_path=None, known_hosts=([], [], []), x509_trusted_certs=None,
        x509_trusted_cert_paths=[], gss_host=None, host_based_auth=False, kbdint_auth=False,
        public_key_auth=bool(keys), password_auth=password is not None, disable_trivial_auth=True,
        pkcs11_provider=None, send_env=None, server_host_key_algs=HOST_KEY_ALGORITHMS, proxy_command=None,
        login_timeout=LOGIN_TIMEOUT, keepalive_interval=KEEPALIVE_INTERVAL, keepalive_count_max=KEEPALIVE_COUNT,
        encoding=None, **(ALGORITHMS | plane.ssh_options),
    )  # fmt: skip
    return options


async def server_options(
    plane: DataPlane, doorkeeper: Callable[[], Doorkeeper], host: Credential, login_timeout: float = LOGIN_TIMEOUT
) -> SSHServerConnectionOptions:
    """What every server connection of ours is made with; `password` is the doorkeeper's to support."""
    options: SSHServerConnectionOptions = await SSHServerConnectionOptions.construct(
        config=None, server_factory=doorkeeper, server_host_keys=[(host.key, host.certificate)], gss_host=None,
        x509_trusted_certs=None, x509_trusted_cert_paths=[], host_based_auth=False, kbdint_auth=False, allow_pty=False,
        x11_forwarding=False, agent_forwarding=False, allow_scp=False, line_editor=False, rdns_lookup=False,
        login_timeout=login_timeout, keepalive_interval=KEEPALIVE_INTERVAL, keepalive_count_max=KEEPALIVE_COUNT,
        encoding=None, **(ALGORITHMS | plane.ssh_options),
    )  # fmt: skip
    return options


async def close(connection: CarryingConnection) -> None:
    """End a connection now and wait until it is gone; one that was never made is gone already."""
    connection.abort()
    await connection.wait_gone()


def _translated(error: BaseException, where: str, connection: ClientConnection) -> BaseException:
    """What went wrong, in our words; what is not about the connection stays as it is."""
    if isinstance(error, asyncssh.PermissionDenied):
        return error
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        hint = " (or this machine's clock is wrong)" if connection.refusal in OUT_OF_TIME else ""
        return WrongHost(f"{where} is not the host we want: {connection.refusal}{hint}")
    if isinstance(error, asyncssh.Error):
        greeted = connection.get_extra_info("server_version")
        return Unavailable(f"{where}: {printable(error.reason) if greeted else 'no SSH server answers there'}")
    if isinstance(error, OSError):  # TimeoutError among them
        return _unavailable(error, where)
    return error


def _unavailable(error: OSError, where: str) -> Unavailable:
    text = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    return Unavailable(f"{where}: {text or 'no answer'}")


def _decoded(key_data: bytes) -> Shown | None:
    """The certificate or key in this blob; None for what is neither."""
    for decode in (decode_ssh_certificate, decode_ssh_public_key):
        try:
            shown = decode(key_data)
        except UNREADABLE:
            continue
        return shown if isinstance(shown, Shown) else None
    return None
