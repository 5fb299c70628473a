"""The control link: the agent's lasting connection to the hub, over which it is certified and told what to do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import asyncssh
import structlog
from pydantic import BaseModel

from knot_agent.clock import Clock
from knot_agent.credentials import Credentials
from knot_agent.home import Home
from knot_agent.revoked import revocation_list
from knot_keys.certificates import UNKNOWN_CA, check_client, check_endpoint, check_hub, read_certificate
from knot_keys.connections import ClientConnection, ForwardedFrom, WrongHost, close, connect
from knot_keys.keyfiles import fingerprint, parse_public_key, public_line
from knot_keys.possession import for_host_key, prove
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import KeyRefused, KnotError, Unavailable
from knot_ssh.names import RELAY_PORT
from knot_ssh.retrying import backoff, until_done
from knot_ssh.rpc import CALL_TIMEOUT, Answer, Method, Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import CONTROL_SUBSYSTEM, CertificateRequest, Certificates, Hello, Membership, Nothing, Revoked, Welcome

log = structlog.get_logger(__name__)

RENEW_RETRY = 10.0
"""Seconds until the next try when a renewal failed."""

LONGEST_WAIT = 1.0
"""Seconds between attempts to reach the hub at most; a hub with a large fleet tells for how long to spread them."""
STEADY = 5.0
"""Seconds a connection must have lived for the next one to be made without much waiting."""
SHORT_LIVES_WAIT = 3.0
"""Seconds between connections at most that do not last."""

MISSED = (
    ". Where this is our hub, its CA was changed while this agent was away: "
    "join again with a token from `knot space token NAME`"
)
"""What to do about a hub whose certificate is by a CA that we do not know."""

Introduce = Callable[[str], Hello]
"""What the hub is to know of us, given the local address of the control connection."""


class ControlLink:
    """Keeps one conversation with the hub going; `ask` speaks in it."""

    def __init__(
        self,
        plane: DataPlane,
        hub: Address,
        home: Home,
        credentials: Credentials,
        methods: Mapping[str, Method],
        introduce: Introduce,
        on_welcome: Callable[[Welcome], Any],
        take_relayed: ForwardedFrom,
    ) -> None:
        self.spread = 0.0
        """Seconds over which the fleet spreads when the hub comes back."""
        self._plane = plane
        self._hub = hub
        self._home = home
        self._credentials = credentials
        self._methods = methods
        self._introduce = introduce
        self._on_welcome = on_welcome
        self._take_relayed = take_relayed
        self._peer: Peer | None = None
        self._farewell = ""
        self._renewal_due = asyncio.Event()
        self._renewed = asyncio.Event()
        self._clock = Clock()
        self.on_revoked: Callable[[Revoked], None] = lambda revoked: credentials.revoke(revocation_list(revoked))
        """Takes what the welcome says is void."""
        self.on_alive: Callable[[bool, float], None] = lambda is_alive, quiet: None
        """Called when the hub has welcomed us, can be heard no more, or again: whether, and seconds since it was heard."""
        credentials.on_revocations.append(self._replace_void)

    @property
    def connected(self) -> bool:
        return self._peer is not None

    async def ask(self, method: str, params: BaseModel, answer: type[Answer]) -> Answer:
        """Call the hub; raises what it raised, or Unavailable when it is away."""
        if self._peer is None:
            raise Unavailable("the server is not reachable from this space at the moment; try again")
        return await self._peer.ask(method, params, answer)

    async def tell(self, method: str, message: BaseModel) -> bool:
        """Notify the hub, which does not answer; gives whether there was one to tell."""
        if self._peer is None:
            return False
        await self._peer.notify(method, message)
        return True

    def end(self, reason: str) -> None:
        """The hub has said that this key is void."""
        self._farewell = reason

    async def change(self, membership: Membership) -> None:
        """Our space has another name, or zone, or other CAs are trusted. All that is open within the zone goes on.

        Under a new name wait until we are certified under it. (The hub relays to us under it by itself.) By another CA we are
        certified soon, but not all the fleet at once.
        """
        self._take(membership)
        await self._confirm()
        if not self._credentials.is_signed:
            asyncio.get_running_loop().call_later(random.uniform(0, self.spread), self._renewal_due.set)
        while not self._credentials.is_named:
            self._renewed.clear()
            self._renewal_due.set()
            await self._renewed.wait()

    async def change_host_key(self, line: str) -> None:
        """Show the host key that was prepared: wait until it is certified. Live connections keep the key they began with."""
        self._home.activate_host_key(line)
        while public_line(self._credentials.host.key) != line:
            self._renewed.clear()
            self._renewal_due.set()
            await self._renewed.wait()

    async def run(self) -> None:
        """Stay connected until cancelled; raises KeyRefused when the hub no longer accepts our key."""
        loop = asyncio.get_running_loop()
        short_lives = 0
        while True:
            longest = max(LONGEST_WAIT, self.spread)
            connection = await until_done(self._connect, self._trouble, final=(KeyRefused,), longest=longest)
            connected_at = loop.time()
            try:
                await self._converse(connection)
                log.warning("hub lost", hub=str(self._hub))
            except KeyRefused:
                raise
            except (KnotError, asyncssh.Error, OSError) as error:
                log.warning("hub lost", hub=str(self._hub), reason=str(error))
            except Exception as error:  # whatever goes wrong here is no reason to cut what is open between agents
                log.error("unforeseen error, trying again", exc_info=error)
            finally:
                self._peer = None
                await close(connection)
            if self._farewell:
                raise KeyRefused(f"the hub has cut this agent off: {self._farewell}")
            short_lives = 0 if loop.time() - connected_at > STEADY else short_lives + 1
            await asyncio.sleep(
                max(random.uniform(0, self.spread), backoff(max(1, short_lives), random.random(), SHORT_LIVES_WAIT))
            )

    async def _connect(self) -> ClientConnection:
        host_cas = self._credentials.host_cas
        try:
            return await connect(
                self._plane,
                self._hub,
                str(self._credentials.membership.space_id),
                lambda shown: check_hub(shown, host_cas),
                credential=type(self._credentials.identity)(self._credentials.identity.key),
            )
        except asyncssh.PermissionDenied:
            raise KeyRefused from None
        except WrongHost as error:
            raise Unavailable(f"{error}{MISSED if str(error).endswith(UNKNOWN_CA) else ''}") from None

    async def _converse(self, connection: ClientConnection) -> None:
        """Say hello, be certified in time, and serve until the connection ends."""
        local = connection.get_extra_info("sockname")  # None where the connection is lost already
        if local is None:
            raise Unavailable("the connection was lost")
        stdin, stdout, _ = await connection.open_session(subsystem=CONTROL_SUBSYSTEM, encoding=None)
        peer = Peer(stdout, stdin, self._methods)
        tasks = Tasks()
        talking = tasks.start(peer.run())
        try:
            relayed = await self._register(connection)
            hello = self._introduce(local[0])
            welcome = await peer.ask("agent.hello", hello, Welcome)
            self._take(welcome.membership)
            self.spread = welcome.spread
            if not relayed and not await self._register(connection):  # our name may have changed
                log.warning("not reachable by relay", reason="the hub refused")
            self.on_revoked(welcome.revoked)
            self.on_alive(True, 0)
            connection.watch_silence(lambda silent: self.on_alive(not silent, connection.quiet))
            self._peer = peer
            log.info("hub connected", hub=str(self._hub), space=welcome.membership.space)
            if not self._credentials.certified:
                await self._renew(peer)  # before anything is dialled
            tasks.start(self._renew_in_time(peer))
            await self._confirm()
            await self._on_welcome(welcome)
            await talking
        finally:
            self.on_alive(False, connection.quiet)
            await tasks.cancel()

    def _replace_void(self) -> None:
        """Have other certificates made when ours are revoked, if the key is still believed."""
        if self._credentials.is_void:
            self._renewal_due.set()

    async def _register(self, connection: ClientConnection) -> bool:
        """Ask the hub to pass connections for our endpoint on to us; before hello, since others hear of us then."""
        connection.on_forwarded = self._take_relayed
        async with asyncio.timeout(CALL_TIMEOUT):
            return await connection.register(self._credentials.name, RELAY_PORT)

    async def _confirm(self) -> None:
        """Tell the hub whom we trust: it activates no CA that we do not know."""
        with contextlib.suppress(KnotError):  # a hub of before does not ask for it
            await self.ask("agent.trust", self._credentials.trust, Nothing)

    def _take(self, membership: Membership) -> None:
        """This is what we are now."""
        before = self._credentials.membership
        self._home.update(membership)
        self._credentials.enter(membership)
        if membership.user_cas != before.user_cas or membership.host_cas != before.host_cas:
            log.info("trust changed", user_cas=_shown(membership.user_cas), host_cas=_shown(membership.host_cas))
        if membership.zone != before.zone:
            log.info("space moved", before=before.zone, zone=membership.zone)
        if membership.space != before.space:
            log.info("space renamed", before=before.space, space=membership.space)

    async def _renew_in_time(self, peer: Peer) -> None:
        wait = self._credentials.renewal_wait(time.time())
        if not self._credentials.is_named or self._credentials.is_void:  # the space was renamed or revoked while we were away
            wait = 0.0
        elif not self._credentials.is_signed:
            wait = min(wait, random.uniform(0, self.spread))
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._renewal_due.wait()
            self._renewal_due.clear()
            try:
                await self._renew(peer)
            except (KnotError, asyncssh.Error, OSError) as error:
                log.warning("certificates not renewed", reason=str(error))
                wait = RENEW_RETRY
            else:
                self._renewed.set()
                await self._confirm()  # again, for the store may have been away
                wait = self._credentials.renewal_wait()

    async def _renew(self, peer: Peer) -> None:
        """Have both keys certified, check what came, keep it and use it."""
        host = self._home.host()
        credentials, membership = self._credentials, self._credentials.membership
        signature = prove(host.key, for_host_key(membership.space_id))
        request = CertificateRequest(host_key=public_line(host.key), signature=signature)
        issued = await peer.ask("agent.certify", request, Certificates)
        space_id, principal, revoked = membership.space_id, credentials.principal, credentials.revoked
        client = read_certificate(issued.client)
        self._clock.compare(client, time.time())  # first: a clock that is far off has the certificate refused
        check_client(client, credentials.user_cas, revoked)
        check_endpoint(read_certificate(issued.host), credentials.host_cas, space_id, principal, revoked)
        self._home.keep(issued)
        credentials.replace(self._home.identity(), self._home.host())
        log.info("certified", seconds=round(credentials.seconds_left(time.time())))

    def _trouble(self, reason: str) -> None:
        log.warning("hub not reachable, trying again", reason=reason)


def _shown(cas: Sequence[str]) -> str:
    """Fingerprints, the one that signs first."""
    return ",".join(fingerprint(parse_public_key(ca)) for ca in cas)
