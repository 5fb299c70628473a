"""Who may enter the hub, and what for. The login name says what is wanted:

join           a join token as password    the knot-join subsystem, or knot-join-sshd
a space's id   its enrolled key            the knot-control subsystem, or what an ordinary sshd needs (see `plain`);
                                           `tcpip-forward` of its own fully qualified name, or its id
anything else  a client certificate        `direct-tcpip` to endpoints of the same owner and zone (see `relay`)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncssh
import structlog
from asyncssh.stream import SSHServerStreamSession

from knot_keys.authority import Authority
from knot_keys.bounds import Bounds
from knot_keys.certificates import CLIENT_REASONS, CertificateRefused, ClientCertificate, check_client, serial_of
from knot_keys.connections import Doorkeeper, ServerConnection, Shown
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import fingerprint
from knot_keys.permission import outlives_its_ca
from knot_keys.turns import Turnstile
from knot_keys.waitingroom import WaitingRoom
from knot_server.hub.relay import Reachable, Relay
from knot_server.refusals import Refusals
from knot_server.store.schema import Space
from knot_server.usecases.audit import Audit
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.registration import Registrations
from knot_server.usecases.revocation import Revocations
from knot_ssh.dataplane.shares import Shares
from knot_ssh.errors import BadInput, KnotError
from knot_ssh.logs import STRANGERS_AT_ONCE, Sparing
from knot_ssh.names import RELAY_PORT, SpaceId
from knot_ssh.tasks import Tasks
from knot_ssh.wire import JOIN_LOGIN

log = structlog.get_logger(__name__)

UNAUTHENTICATED_MAX = 1024
"""Connections that have not logged in yet; a fleet that comes back at once is among them."""
HUB_BOUNDS = Bounds(UNAUTHENTICATED_MAX)
REGISTRATIONS_MAX = 3
"""Requests to be relayed to that one connection may make; one of them can succeed."""
JOIN_SECONDS = 60.0
"""For all that somebody who joins has to do. A token that was used up still opens the door, but not to stay."""
FAREWELL_SECONDS = 1
"""For an agent whose key is void to take in why, before its connection ends."""
UNKNOWN_TOKEN, TOKEN_REFUSED, OTHER_KEY = "unknown token", "token refused", "not the enrolled key"
LOGIN_REASONS = (UNKNOWN_TOKEN, TOKEN_REFUSED, OTHER_KEY, *CLIENT_REASONS)
"""Why logins fail: of agents that join, of those that have joined, and of who shows a certificate."""

Reader = asyncssh.SSHReader[bytes]
Writer = asyncssh.SSHWriter[bytes]


@dataclass(frozen=True, slots=True)
class Joiner:
    """Has shown a join token."""

    token_id: str
    address: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """Has proved to hold the enrolled key of a space."""

    space_id: SpaceId
    key: asyncssh.SSHKey


@dataclass(frozen=True, slots=True)
class Caller:
    """Has proved to hold the key of a client certificate."""

    client: ClientCertificate


Visitor = Joiner | Member | Caller


@dataclass(frozen=True, slots=True)
class Session:
    """One subsystem's streams, and the connection below."""

    line: ServerConnection
    stdin: Reader
    stdout: Writer
    stderr: Writer
    address: str | None = None
    """Where the visitor comes from."""


Subsystem = Callable[[Any, Session], Awaitable[None]]
"""Serves a visitor, of the kind that it is offered to, until they have done."""


@dataclass(slots=True)
class Lobby:
    """What all doorkeepers of one hub share."""

    authority: Authority
    enrolment: Enrolment
    revocations: Revocations
    relay: Relay
    registrations: Registrations
    subsystems: Mapping[type[Visitor], Mapping[str, Subsystem]]
    """What each kind of visitor is offered, by name."""
    bounds: Bounds = HUB_BOUNDS
    keepers: set[HubDoorkeeper] = field(default_factory=set)
    room: WaitingRoom = field(init=False)
    turnstile: Turnstile = field(init=False)
    shares: Shares = field(init=False)
    tasks: Tasks = field(default_factory=Tasks)
    refusals: Refusals = field(default_factory=lambda: Refusals(LOGIN_REASONS))
    audit: Audit | None = None
    strangers: Sparing = field(default_factory=lambda: Sparing(STRANGERS_AT_ONCE))

    def __post_init__(self) -> None:
        self.room = WaitingRoom(self.bounds.unauthenticated)
        self.turnstile = Turnstile(self.bounds.key_exchanges)
        self.shares = Shares(self.relay.plane.limits)


class HubDoorkeeper(Doorkeeper):
    """One for each connection to the hub."""

    def __init__(self, lobby: Lobby) -> None:
        super().__init__(lobby.bounds, lobby.room, lobby.turnstile, lobby.shares, lobby.tasks)
        self._lobby = lobby
        self._login = ""
        self._served = False
        self._visitor: Visitor | None = None
        self._registrations = 0
        self._registered = False

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        super().connection_made(conn)
        self._lobby.keepers.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lobby.keepers.discard(self)

    @property
    def peer_id(self) -> Hashable:
        """A token, a space by its key, a space by its certificate, or a person with whichever of their keys."""
        match self._visitor:
            case Joiner(token_id=token_id):
                return "token", token_id
            case Member(space_id=space_id):
                return "member", space_id
            case Caller(client=client):
                return client.identity.role, client.identity.owner, client.identity.space_id
            case _:
                return None

    def begin_auth(self, username: str) -> bool:
        self._login = username
        return super().begin_auth(username)

    def password_auth_supported(self) -> bool:
        return self._login == JOIN_LOGIN

    def public_key_auth_supported(self) -> bool:
        return self._login != JOIN_LOGIN

    async def validate_password(self, username: str, password: str) -> bool:
        """The join token as password. A used-up one enters too: the subsystem then says what is wrong with it."""
        self.connection.count_try()
        try:
            token = JoinToken.parse(password)
        except (BadInput, KnotError):
            return False
        self.connection.stop_reading("login")
        try:
            if username != JOIN_LOGIN or not await self._asked(self._lobby.enrolment.knows_token(token.id, token.secret)):
                self._lobby.strangers.warning(log, "join refused", reason=UNKNOWN_TOKEN, peer=self.peer)
                self._refused("join", UNKNOWN_TOKEN, token=token.id)
                return False
        finally:
            self.connection.go_on_reading("login")
        self._visitor = Joiner(token.id, self.peer)
        self._leaving = self._tasks.start(self._leave_after(JOIN_SECONDS))
        return True

    async def welcomes(self, login: str, shown: Shown) -> bool:
        """Whether this is the enrolled key of the space whose id is the login name; for other names, a good certificate."""
        try:
            space_id = SpaceId(login)
        except BadInput:
            return self._judged(shown) is not None
        enrolled: asyncssh.SSHKey | None = await self._asked(self._lobby.enrolment.enrolled_key(space_id))
        revoked = self._lobby.revocations.current  # not before: a key may be revoked while the store is asked
        if enrolled is not None and enrolled == shown and not revoked.has_key(enrolled):
            return True
        self._refused("login", OTHER_KEY, space_id=space_id)
        return False

    def entered(self, login: str, shown: Shown) -> None:
        if isinstance(shown, asyncssh.SSHKey):
            self._visitor = Member(SpaceId(login), shown)
        else:
            client = self._judged(shown)
            self._visitor = Caller(client) if client else None
            if client:
                self.leave_in_time(client)

    def session_requested(self) -> Any:
        """One session, for one of our subsystems; there is no shell, command, pty or sftp behind it."""
        if not isinstance(self._visitor, Joiner | Member):
            raise _prohibited("the hub leads to the endpoints of spaces and has no shell, commands or files")
        if self._served:
            return False
        self._served = True
        return SubsystemSession(self._lobby.subsystems[type(self._visitor)], self._serve)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """Judge a direct-tcpip channel; gives it, and what relays it."""
        if not isinstance(self._visitor, Caller):
            raise _prohibited("relaying takes a client certificate")
        lobby, client = self._lobby, self._visitor.client
        cas, revoked = lobby.authority.users.keys.names, lobby.revocations.current
        return lobby.relay.request(self.connection, client, cas, revoked, dest_host, dest_port)

    def server_requested(self, listen_host: str, listen_port: int) -> Any:
        """A request to be relayed to: a space may ask for its own name or id, and a few times for another by mistake."""
        self._registrations += 1
        if not isinstance(self._visitor, Member) or self._registrations > REGISTRATIONS_MAX:
            return False
        return self._register(self._visitor, listen_host, listen_port)

    def leave_if_revoked(self) -> None:
        """End the connection of an agent or a caller whose key or certificate is void now, and all that is relayed over it.

        An agent first hears why, if it listens.
        """
        revoked = self._lobby.revocations.current
        match self._visitor:
            case Member(key=key) if revoked.has_key(key):
                wait = FAREWELL_SECONDS if self._served else 0
                asyncio.get_running_loop().call_later(wait, self.connection.abort)
            case Caller(client=client) if revoked.covers(client.serial, client.fingerprint):
                self.connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the certificate was revoked")

    def leave_if_distrusted(self) -> None:
        """End the connection of a caller whose certificate is by a CA that was retired."""
        users, visitor = self._lobby.authority.users, self._visitor
        if isinstance(visitor, Caller) and outlives_its_ca(visitor.client, users.keys.names, users.distrusted, time.time()):
            self.connection.disconnect(asyncssh.DISC_BY_APPLICATION, "the certificate's CA is trusted no more")

    async def _leave_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.connection.abort()

    async def _register(self, member: Member, host: str, port: int) -> asyncssh.SSHListener | None:
        try:
            space = await self._space(member.space_id)
        except KnotError as error:
            log.error("relaying not registered", reason=str(error), detail=error.detail)
            return None
        if space is None or self.connection.lost:
            return None
        endpoint = Reachable(member.space_id, space.space_name, space.principal, self.connection, registered=host)
        if host not in (endpoint.name, endpoint.space_id) or port != RELAY_PORT:
            log.warning("relaying not registered", reason="not its own name", space=space.name, host=host[:255], port=port)
            return None
        if self._registered:  # asyncssh would forget the one before
            return None
        self._registered = True
        if not space.agentless:
            return self._lobby.relay.register(endpoint)
        listener = self._lobby.relay.register(endpoint, partial(self._lobby.registrations.left, space))
        self._lobby.registrations.came(space)
        return listener

    async def _space(self, space_id: SpaceId) -> Space | None:
        """The space as it is at this moment, though it is renamed while the store is asked."""
        while True:
            renames = self._lobby.relay.renames
            space = await self._lobby.enrolment.space(space_id)
            if renames == self._lobby.relay.renames:
                return space

    def _judged(self, shown: Shown) -> ClientCertificate | None:
        """What a client certificate says when it passes every check."""
        if isinstance(shown, asyncssh.SSHKey):
            return None
        try:
            return check_client(shown, self._lobby.authority.user_cas, self._lobby.revocations.current)
        except CertificateRefused as error:
            self._lobby.strangers.warning(log, "login refused", reason=str(error), peer=self.peer)
            self._refused("login", str(error), serial=str(serial_of(shown)), key=fingerprint(shown.key))
            return None

    def _refused(self, door: str, reason: str, **fields: Any) -> None:
        """Count it, and note it for the record; what stands after a reason's colon is for people."""
        self._lobby.refusals.count(reason)
        if self._lobby.audit:
            name, _, detail = reason.partition(":")
            more = fields | {"detail": detail.strip() or None, "address": self.peer}
            self._lobby.audit.refuse(door, name, self.peer, **more)

    def _serve(self, subsystem: Subsystem, stdin: Reader, stdout: Writer, stderr: Writer) -> None:
        self._lobby.tasks.start(self._conversation(subsystem, Session(self.connection, stdin, stdout, stderr, self.peer)))

    async def _conversation(self, subsystem: Subsystem, session: Session) -> None:
        try:
            await subsystem(self._visitor, session)
        finally:
            self.connection.close()

    async def _asked(self, question: Awaitable[Any]) -> Any:
        """The store's answer. Without one the visitor is told to come again: that is not the same as being refused."""
        try:
            return await question
        except KnotError as error:
            log.error("login not decided", reason=str(error), detail=error.detail)
            raise asyncssh.DisconnectError(asyncssh.DISC_SERVICE_NOT_AVAILABLE, "The store does not answer") from None


class SubsystemSession(SSHServerStreamSession[bytes]):
    """A session in which one of these subsystems can be started and nothing else."""

    def __init__(self, offered: Mapping[str, Subsystem], serve: Callable[[Subsystem, Reader, Writer, Writer], None]) -> None:
        super().__init__(self._start)
        self._offered = offered
        self._serve = serve
        self._wanted = ""

    def pty_requested(self, term_type: str, term_size: Any, term_modes: Any) -> bool:
        return False

    def shell_requested(self) -> bool:
        return False

    def exec_requested(self, command: str) -> bool:
        return False

    def subsystem_requested(self, subsystem: str) -> bool:
        self._wanted = subsystem
        return subsystem in self._offered

    def _start(self, stdin: Reader, stdout: Writer, stderr: Writer) -> None:
        self._serve(self._offered[self._wanted], stdin, stdout, stderr)


def _prohibited(reason: str) -> asyncssh.ChannelOpenError:
    return asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, reason)
