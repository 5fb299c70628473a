"""The relay: a caller reaches the endpoint of a space that cannot be dialled, through the hub.

Both legs are plain SSH (RFC 4254 section 7). The endpoint's side asks for its own fully qualified name or its id, port 22,
to be forwarded to it; a caller asks for a channel to that name, or to the space's id. What passes is an SSH session between the
two, which the hub can carry and can cut, but neither read nor change unnoticed.

    caller --direct-tcpip--> hub --forwarded-tcpip--> agent

Who may is decided at every channel, before the agent hears of it: the caller's certificate names the space's owner and
zone, has not expired and is not revoked. One owner cannot take up the relay for all others: relayed connections, and the
bytes that the hub holds for those who read slowly, are bounded by owner.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

import asyncssh
import structlog

from knot_keys.certificates import ClientCertificate
from knot_keys.connections import ServerConnection, peer_address
from knot_keys.permission import PERMISSION_REASONS, refuse_client
from knot_keys.revocation import RevocationList
from knot_server.refusals import Refusals
from knot_server.usecases.audit import ONCE_AN_HOUR, Audit, Event
from knot_ssh.buckets import Buckets
from knot_ssh.dataplane.channel import FORWARDED_TCPIP, Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.limits import MIB
from knot_ssh.dataplane.plane import DataPlane, return_free_memory
from knot_ssh.dataplane.transport import joined_pair
from knot_ssh.dataplane.windows import Budget
from knot_ssh.logs import Sparing
from knot_ssh.names import RELAY_PORT, SUFFIX, Owner, Principal, SpaceId, SpaceName, qualified_name

log = structlog.get_logger(__name__)

RELAYED_MAX = 256
"""Relayed connections of one owner at a time; each is a link between two agents, or somebody's `ssh -J`."""
END_SECONDS = 5
"""For which one side of a relayed connection may go on when the other has gone."""
HELD_MAX = 64 * MIB
"""Bytes of one owner that the hub may hold for readers that are slow: the sum of the windows of all their channels."""
NOT_REACHABLE, TOO_MANY, AGENT_REFUSED = "not reachable", "too many", "refused by the agent"
NAME_MAX = 255
"""Characters of a name that somebody asks for, as far as it is remembered or logged."""
REASONS = (NOT_REACHABLE, TOO_MANY, AGENT_REFUSED, *PERMISSION_REASONS)
"""Why a connection was not relayed."""


@dataclass(frozen=True, slots=True)
class RelayBounds:
    """What one owner may use of the relay."""

    connections: int = RELAYED_MAX
    held: int = HELD_MAX


RELAY_BOUNDS = RelayBounds()


@dataclass(slots=True)
class Reachable:
    """An endpoint that has asked to be relayed to. `space` is what it is called now."""

    space_id: SpaceId
    space: SpaceName
    principal: Principal
    connection: ServerConnection
    registered: str
    """The name or id that it asked for, by which its own side knows what we open to it (RFC 4254 section 7.2)."""

    @property
    def name(self) -> str:
        return qualified_name(self.space, self.principal)


@dataclass(slots=True)
class Account:
    """What one owner uses of the relay."""

    budget: Budget
    passages: set[Passage] = field(default_factory=set)


class Relay:
    """The endpoints that can be relayed to, and what is being relayed."""

    def __init__(self, plane: DataPlane, audit: Audit | None = None, bounds: RelayBounds = RelayBounds()) -> None:
        self.plane = plane
        self._audit = audit
        self._bounds = bounds
        self.tally = Tally()
        self.channels = Channels()
        self.renames = 0
        """How many there were; a name that was looked up before the last one may be out of date."""
        self.refusals = Refusals(REASONS)
        self.passed = 0
        """Connections that were relayed, from the start."""
        self._by_id: dict[SpaceId, list[Reachable]] = {}
        self._by_name: dict[tuple[Owner, str], SpaceId] = {}
        self._accounts: dict[Owner, Account] = {}
        self._accepting = True
        self._sparing = Sparing()
        self._unreachable = Buckets(ONCE_AN_HOUR)

    def register(self, endpoint: Reachable, on_end: Callable[[], None] = lambda: None) -> asyncssh.SSHListener:
        """Relay to this endpoint until the listener is closed. Of several connections of one space the last one serves."""
        self._by_id.setdefault(endpoint.space_id, []).append(endpoint)
        self._give_name(endpoint)
        return _Registration(self, endpoint, on_end)

    def forget(self, endpoint: Reachable) -> None:
        """Relay to it no more, but to an earlier connection of the same space, if there is one."""
        registered = self._by_id[endpoint.space_id]
        registered.remove(endpoint)
        if not registered:
            del self._by_id[endpoint.space_id]
            self._take_name(endpoint)

    def change(self, space_id: SpaceId, name: SpaceName, principal: Principal) -> None:
        """Relay to this space under another name, or in another zone, from now on. Its registrations stand, and so does what is
        open, but for callers who may not enter that zone."""
        self.renames += 1
        for endpoint in self._by_id.get(space_id, ()):
            self._take_name(endpoint)
            endpoint.space, endpoint.principal = name, principal
            self._give_name(endpoint)
        for account in list(self._accounts.values()):
            for passage in list(account.passages):
                passage.end_unless_allowed()

    def request(
        self,
        caller: ServerConnection,
        client: ClientCertificate,
        cas: Collection[str],
        revoked: RevocationList,
        host: str,
        port: int,
    ) -> tuple[Channel, Passage]:
        """Judge a caller's channel; gives it, and what opens it. `cas` as in `refuse_client`. Raises asyncssh.ChannelOpenError.

        The caller hears the same of a space that does not exist, is not theirs, or is not connected.
        """
        endpoint = self._find(client.identity.owner, host) if port == RELAY_PORT else None
        refusal = NOT_REACHABLE if endpoint is None else refuse_client(client, endpoint.principal, cas, revoked, time.time())
        if endpoint is None or refusal:
            key_id = client.identity.encode()[1]
            self._sparing.warning(log, "relay refused", reason=refusal, host=host[:NAME_MAX], port=port, key_id=key_id)
            self.tally.refuse(str(refusal))
            self.refusals.count(str(refusal))
            self._note_refusal(client, str(refusal), host, port)
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_CONNECT_FAILED, "no space of yours that can be reached has that name or id"
            )
        owner = client.identity.owner
        account = self._accounts.setdefault(owner, Account(self._budget()))
        if len(account.passages) >= self._bounds.connections or not self._accepting:
            self.refusals.count(TOO_MANY)
            self._note_refusal(client, TOO_MANY, host, port)
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many relayed connections at once")
        passage = Passage(self, account, caller, client, endpoint, partial(self._note_opened, caller, client, endpoint))
        return passage.near, passage

    @property
    def open(self) -> int:
        """Connections that are being relayed."""
        return sum(len(account.passages) for account in self._accounts.values())

    def _note_refusal(self, client: ClientCertificate, reason: str, host: str, port: int) -> None:
        owner, key_id = client.identity.owner, client.identity.encode()[1]
        # an agent whose target does not run asks every second or two
        if reason == NOT_REACHABLE and not self._unreachable.spend((key_id, host[:NAME_MAX]), time.monotonic()):
            return
        if self._audit:
            serial = str(client.serial)
            self._audit.refuse(
                "relay",
                reason,
                str(owner),
                str(client.identity),
                owner=owner,
                host=host,
                port=port,
                serial=serial,
                key_id=key_id,
            )

    def _note_opened(self, caller: ServerConnection, client: ClientCertificate, endpoint: Reachable) -> None:
        """It is on its way to the endpoint, which judges the caller's certificate for itself."""
        if self._audit:
            self._audit.observe(
                Event.RELAYED,
                str(client.identity),
                owner=endpoint.principal.owner,
                space_id=endpoint.space_id,
                space=str(endpoint.space),
                source_id=client.identity.space_id,
                serial=str(client.serial),
                key_id=client.identity.encode()[1],
                address=peer_address(caller),
            )

    def stop_accepting(self) -> None:
        """Open no more; what is open goes on."""
        self._accepting = False

    async def wait_idle(self) -> None:
        """Wait until nothing is being relayed."""
        await self.channels.wait_idle()

    def left(self, owner: Owner) -> None:
        """Keep no account of an owner who uses nothing."""
        account = self._accounts.get(owner)
        if account and not account.passages:
            del self._accounts[owner]

    def _budget(self) -> Budget:
        return Budget(self._bounds.held, return_free_memory, within=self.plane.budget)

    def _give_name(self, endpoint: Reachable) -> None:
        self._by_name[endpoint.principal.owner, str(endpoint.space)] = endpoint.space_id

    def _take_name(self, endpoint: Reachable) -> None:
        """Unless another space has taken it over."""
        name = (endpoint.principal.owner, str(endpoint.space))
        if self._by_name.get(name) == endpoint.space_id:
            del self._by_name[name]

    def _find(self, owner: Owner, reference: str) -> Reachable | None:
        """By the names that a caller may use: `<space>`, `<space>.knot`, the fully qualified name, or the id."""
        name = reference.partition(".")[0]
        registered = self._by_id.get(self._by_name.get((owner, name)) or reference)  # type: ignore[call-overload]
        if not registered:
            return None
        endpoint: Reachable = registered[-1]
        names = (endpoint.space_id, endpoint.space, f"{endpoint.space}.{SUFFIX}", endpoint.name)
        return endpoint if reference in names and endpoint.principal.owner == owner else None


class Passage:
    """One relayed connection: the caller's channel and the agent's, joined by a pair of sockets.

    It owns both channels, and is what opens the first: by asking the agent for the second.
    """

    def __init__(
        self,
        relay: Relay,
        account: Account,
        caller: ServerConnection,
        client: ClientCertificate,
        endpoint: Reachable,
        on_open: Callable[[], None],
    ) -> None:
        self.connection = caller
        self._client = client
        self.plane = relay.plane
        self.tally = relay.tally
        self._relay = relay
        self._account = account
        self._endpoint = endpoint
        self._on_open = on_open
        self._ours: socket.socket | None = None
        self._far: Channel | None = None
        self._channels: list[Channel] = []
        self._open: set[Channel] = set()
        self._ending: asyncio.TimerHandle | None = None
        self.near = self._made(None)
        account.passages.add(self)

    @property
    def budget(self) -> Budget:
        return self._account.budget

    def begin(self, channel: Channel) -> None:
        """The caller's channel is to be opened: ask the agent."""
        try:
            self._ours, theirs = joined_pair()
        except OSError as error:
            self.near.refuse(asyncssh.OPEN_RESOURCE_SHORTAGE, os.strerror(error.errno or errno.EIO).lower())
            return
        self._far = self._made(theirs)
        self._far.ask(self._endpoint.connection, self._endpoint.registered, RELAY_PORT, FORWARDED_TCPIP)

    def end_unless_allowed(self) -> None:
        """The endpoint may have moved to where the caller may not go."""
        if self._endpoint.principal not in self._client.identity.principals:
            self._end()

    def give_up(self) -> None:
        """The caller wants it no more; `channel_gone` comes."""

    def channel_opened(self, channel: Channel) -> None:
        if channel is self._far and self._ours:
            ours, self._ours = self._ours, None
            self._relay.passed += 1
            self._on_open()
            self.near.confirm(ours)

    def channel_refused(self, channel: Channel, reason: str) -> None:
        if channel is self._far:
            self.tally.refuse(reason)
            self._relay.refusals.count(AGENT_REFUSED)
            self.near.refuse(asyncssh.OPEN_CONNECT_FAILED, f"{self._endpoint.space}: {reason}")

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        """The agent's connection was lost; the caller may come again."""
        sock.close()
        self.near.refuse(asyncssh.OPEN_CONNECT_FAILED, f"{self._endpoint.space}: its connection was lost")

    def channel_gone(self, channel: Channel) -> None:
        """What the one has said last is still read by the other, which then comes to its own end, or is ended."""
        self._open.discard(channel)
        if channel is self.near and self._ours:  # it was never opened
            self._ours.close()
            self._ours = None
            self._end()
        elif not self._open:
            self._end()
        elif self._ending is None:
            self._ending = asyncio.get_running_loop().call_later(END_SECONDS, self._end)

    def _end(self) -> None:
        """Nothing of it counts any more, whatever the far sides still have to say."""
        if self._ending:
            self._ending.cancel()
        self._account.passages.discard(self)
        self._relay.left(self._endpoint.principal.owner)
        for channel in self._channels:
            channel.abort()
            self._relay.channels.remove(channel)

    def _made(self, sock: socket.socket | None) -> Channel:
        channel = Channel(self, sock)
        self._open.add(channel)
        self._channels.append(channel)
        self._relay.channels.add(channel)
        return channel


class _Registration(asyncssh.SSHListener):
    """What asyncssh holds of an endpoint that asked for relaying, and closes with the connection."""

    def __init__(self, relay: Relay, endpoint: Reachable, on_end: Callable[[], None]) -> None:
        super().__init__()
        self._relay = relay
        self._endpoint = endpoint
        self._on_end = on_end

    def close(self) -> None:
        self._relay.forget(self._endpoint)
        self._on_end()

    async def wait_closed(self) -> None:
        """It is closed at once."""
