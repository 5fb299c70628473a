"""The agent, put together: endpoint, links, forwards, control link and local socket around one set of credentials."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine
from typing import Any

import structlog

from knot_agent.control import ControlLink
from knot_agent.credentials import Credentials
from knot_agent.endpoint import Endpoint
from knot_agent.filed import FiledForwards
from knot_agent.forwards import Forwards
from knot_agent.home import Home
from knot_agent.joining import join
from knot_agent.links import Links
from knot_agent.local import Guests, LocalSocket
from knot_agent.memory import Memory
from knot_agent.relaying import Relay
from knot_agent.reporting import Reporter
from knot_agent.revoked import RevokedView
from knot_agent.settings import DEFAULT_LISTEN, AgentSettings
from knot_agent.settingsfile import SettingsFile
from knot_agent.witness import Witness
from knot_keys.connections import WrongHost
from knot_keys.jointoken import JoinToken
from knot_ssh import __version__
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import BadInput, JoinRefused, LooseFile, NotFound, OtherZone, PortTaken
from knot_ssh.listening import bound_address, listen_on
from knot_ssh.local import SOCKET_FILE
from knot_ssh.names import SpaceId
from knot_ssh.retrying import until_done
from knot_ssh.rpc import Method
from knot_ssh.tasks import Tasks
from knot_ssh.wire import (
    Applied,
    ApplyAnswer,
    ApplyCall,
    ApplyOrder,
    AuditReport,
    Farewell,
    ForwardCall,
    ForwardList,
    ForwardOrder,
    ForwardSeen,
    ForwardStarted,
    ForwardStatus,
    Hello,
    HostKey,
    Membership,
    Nothing,
    OnSpace,
    Revoked,
    Spread,
    StopCall,
    StoppedForward,
    StopRequest,
    Target,
    TargetQuestion,
    Welcome,
)

log = structlog.get_logger(__name__)

DRAIN_SECONDS = 5
"""How long open connections may go on after SIGTERM."""


async def run_agent(
    plane: DataPlane,
    home: Home,
    hub: Address,
    token: JoinToken | None,
    settings: AgentSettings,
    file: SettingsFile | None = None,
) -> None:
    """Join if need be, then serve until SIGTERM or SIGINT. `settings` are those of the file and of flags, which win.

    Raises JoinRefused or KeyRefused when the hub does not want us, BadInput without a token where one is needed.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sock = _listen(settings)
    log.info("agent starting", hub=str(hub), folder=str(home.folder))
    try:
        membership = await _first_of(_membership(plane, home, hub, token), stop.wait())
        if isinstance(membership, Membership):
            await Agent(plane, home, hub, membership, settings, sock, file).run(stop)
    finally:
        if sock:
            sock.close()


class Agent:
    """One space's agent, once it has joined."""

    def __init__(
        self,
        plane: DataPlane,
        home: Home,
        hub: Address,
        membership: Membership,
        settings: AgentSettings,
        sock: socket.socket | None,
        file: SettingsFile | None = None,
    ) -> None:
        self._settings = settings
        self._home = home
        self._sock = sock
        self._credentials = Credentials(membership, home.identity(), home.host())
        self._memory = Memory(home.folder, membership.space_id)
        self._revoked_view = RevokedView(self._credentials, self._memory, settings.revocation_limit)
        self._told: list[StoppedForward] = []
        self._settled = asyncio.Event()
        self._links = Links(plane, self._credentials, self._locate_target, Relay(plane, hub, self._credentials))
        self._links.on_target = self._memory.keep_target
        self._forwards = Forwards(plane, self._links, settings.connect_timeout, self._memory)
        self._witness = Witness()
        self._filed = FiledForwards(
            file, membership.space_id, self._forwards, self._memory, self._locate, self._witness.forward
        )
        self._endpoint = Endpoint(plane, self._credentials, settings.allow, settings.bounds, self._witness)
        self._control = ControlLink(
            plane, hub, home, self._credentials, self._for_hub(), self._hello, self._welcomed, self._endpoint.take_relayed
        )
        self._control.on_revoked = self._revoked_view.welcomed
        self._control.on_alive = self._revoked_view.alive
        self._reporter = Reporter(self._control, self._forwards, self._links)
        self._links.on_change = self._reporter.changed
        guests = Guests(settings.socket_users, settings.socket_group)
        self._local = LocalSocket(home.folder, guests, self._for_command_line())
        self._tasks = Tasks()
        self._socket_path = home.folder / SOCKET_FILE

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set; raises KeyRefused when the hub cuts us off."""
        try:
            await self._local.open()
            log.info("agent ready", space=self._credentials.membership.space, socket=str(self._socket_path))
            self._tasks.start(self._revoked_view.run())
            self._tasks.start(self._serve_endpoint_when_certified())
            await self._filed.start()  # first: on a port that both want the file's forward stands
            await self._forwards.restore(self._memory.forwards)
            self._tasks.start(self._reporter.run())
            self._tasks.start(self._witness.run(self._tell_audit))
            await _first_of(self._control.run(), self._drain_when(stop))
        finally:
            await self._tasks.cancel()
            await self._local.close()
            await self._filed.close()
            await self._forwards.close()
            await self._links.close()
            await self._endpoint.close()
            log.info("agent stopped")

    async def _serve_endpoint_when_certified(self) -> None:
        """Serve at once with certificates from before, else when the first ones come."""
        certified = asyncio.Event()
        self._credentials.on_certificates.append(certified.set)
        while not self._credentials.certified:
            await certified.wait()
            certified.clear()
        await self._endpoint.serve(self._sock)
        log.info("endpoint open", address=str(bound_address(self._sock)) if self._sock else "by relay only")

    async def _drain_when(self, stop: asyncio.Event) -> None:
        """Then accept nothing more, and let open connections end by themselves for a while; the hub may carry some."""
        await stop.wait()
        log.info("agent stopping")
        await self._filed.close()
        self._forwards.stop_accepting()
        self._endpoint.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.gather(self._forwards.wait_idle(), self._endpoint.wait_idle())
        await self._reporter.last_word()

    def _addresses(self, local: str) -> list[str]:
        """Where others may dial our endpoint."""
        if self._sock is None:
            return []
        if self._settings.advertise:
            return self._settings.advertise
        bound = bound_address(self._sock)
        return [str(Address(local, bound.port) if bound.is_wildcard else bound)]

    def _hello(self, local: str) -> Hello:
        """What the hub is to know of us, who reach it from this local address."""
        self._settled.clear()
        self._revoked_view.begin()
        self._told = self._memory.stopped
        return Hello(version=__version__, addresses=self._addresses(local), stopped=self._told, targets=self._links.targets())

    async def _welcomed(self, welcome: Welcome) -> None:
        """Take over what the hub says; what it orders from now on comes after that."""
        self._memory.told(self._told)
        gone = {stopped.local_port for stopped in self._memory.stopped}  # while the welcome was on its way
        await self._forwards.restore([order for order in welcome.forwards if order.local_port not in gone])
        self._links.rename(welcome.names)
        self._settled.set()
        self._filed.ask_again()
        self._links.look_again()
        self._reporter.begin()
        self._witness.begin()

    # What the hub may ask

    def _for_hub(self) -> dict[str, Method]:
        return {
            "forward.start": (ForwardOrder, self._start),
            "forward.stop": (StopRequest, self._stop),
            "forward.apply": (ApplyOrder, self._apply),
            "forward.list": (Nothing, self._list),
            "membership.changed": (Membership, self._membership_changed),
            "host_key.prepare": (Nothing, self._prepare_host_key),
            "host_key.activate": (HostKey, self._activate_host_key),
            "target.changed": (Target, self._target_changed),
            "keys.listed": (Revoked, self._listed),
            "keys.revoked": (Revoked, self._revoked),
            "fleet.spread": (Spread, self._spread),
            "agent.superseded": (Nothing, self._superseded),
            "agent.farewell": (Farewell, self._dismissed),
        }

    async def _start(self, order: ForwardOrder) -> ForwardStarted:
        await self._settled.wait()
        return await self._forwards.start(order)

    async def _stop(self, request: StopRequest) -> ForwardStatus:
        await self._settled.wait()
        return await self._forwards.stop(request)

    async def _apply(self, request: ApplyOrder) -> ApplyAnswer:
        await self._settled.wait()
        return await self._forwards.apply(request)

    async def _list(self, _request: Nothing) -> ForwardList:
        return self._forwards.list()

    async def _membership_changed(self, membership: Membership) -> None:
        await self._settled.wait()
        await self._control.change(membership)

    async def _prepare_host_key(self, _request: Nothing) -> HostKey:
        return HostKey(public_key=self._home.prepare_host_key())

    async def _activate_host_key(self, key: HostKey) -> None:
        await self._settled.wait()
        await self._control.change_host_key(key.public_key)

    async def _target_changed(self, target: Target) -> None:
        await self._settled.wait()
        self._links.update(target)
        self._filed.heard(target)

    async def _listed(self, part: Revoked) -> None:
        self._revoked_view.listed(part)

    async def _revoked(self, revoked: Revoked) -> None:
        self._revoked_view.heard(revoked)

    async def _spread(self, message: Spread) -> None:
        self._control.spread = message.spread

    async def _superseded(self, _message: Nothing) -> None:
        log.warning("another agent has connected with this space's key: stop one of the two")

    async def _dismissed(self, farewell: Farewell) -> None:
        self._control.end(farewell.reason)

    async def _locate_target(self, space_id: SpaceId) -> Target:
        """Where the target of a link is; one that is gone may be another one by now for the settings file."""
        try:
            return await self._locate(space_id)
        except (NotFound, OtherZone):
            self._filed.missed(space_id)
            raise

    async def _locate(self, space: str) -> Target:
        """Where a space is, by its id or its name."""
        return await self._control.ask("target.locate", TargetQuestion(space=space), Target)

    # What the command line may ask

    def _for_command_line(self) -> dict[str, Method]:
        return {
            "port.forward": (ForwardCall, self._ask_forward),
            "port.list": (OnSpace, self._ask_list),
            "port.stop": (StopCall, self._ask_stop),
            "port.apply": (ApplyCall, self._ask_apply),
        }

    async def _ask_forward(self, call: ForwardCall) -> ForwardStatus:
        return await self._control.ask("port.forward", call, ForwardStatus)

    async def _ask_list(self, call: OnSpace) -> ForwardList:
        if self._is_own(call.source):
            return self._forwards.list()
        return await self._control.ask("port.list", call, ForwardList)

    async def _ask_stop(self, call: StopCall) -> ForwardStatus:
        if self._is_own(call.source) and not self._control.connected:
            return await self._stop_alone(StopRequest(local_port=call.local_port, drain=call.drain))
        return await self._control.ask("port.stop", call, ForwardStatus)

    async def _stop_alone(self, request: StopRequest) -> ForwardStatus:
        """While the hub is away: it hears of a persistent forward at the next hello, and of any other for the record."""
        status = await self._forwards.stop_alone(request)
        if not status.persistent:
            self._witness.forward(
                ForwardSeen(
                    what="forward stopped",
                    by="command",
                    local_port=status.local_port,
                    remote_port=status.remote_port,
                    target_id=status.space_id,
                )
            )
        return status

    async def _tell_audit(self, report: AuditReport) -> None:
        await self._control.ask("agent.audit", report, Nothing)

    def _is_own(self, source: str | None) -> bool:
        """Whether this means our own space, of which we know without the server."""
        membership = self._credentials.membership
        return source is None or source in (membership.space_id, membership.space)

    async def _ask_apply(self, call: ApplyCall) -> Applied:
        return await self._control.ask("port.apply", call, Applied)


async def _membership(plane: DataPlane, home: Home, hub: Address, token: JoinToken | None) -> Membership:
    """What this agent is a member of, joining first where it must."""
    if home.membership and (token is None or token.id == home.token_id):
        return home.membership
    if token is None:
        raise BadInput(
            f"{home.folder} has not joined a space: give the token from `knot space create` "
            "with --token, --token-file or KNOT_JOIN_TOKEN"
        )

    async def attempt() -> Membership:
        membership = await join(plane, hub, token, home.key_for(token.id))
        home.joined(token.id, membership)
        log.info("joined", space=membership.space, owner=membership.owner, zone=membership.zone)
        return membership

    return await until_done(
        attempt,
        lambda reason: log.warning("hub not reachable, trying again", reason=reason),
        final=(JoinRefused, WrongHost, LooseFile),
    )


async def _first_of(*works: Coroutine[Any, Any, object]) -> object:
    """The result of the first to end, or its error; the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task.result() for task in tasks if task in done)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _listen(settings: AgentSettings) -> socket.socket | None:
    """The endpoint's socket; none, said aloud, when nobody asked for this port and it is taken."""
    try:
        return listen_on(Address.parse(settings.listen or DEFAULT_LISTEN), what="--listen")
    except PortTaken:
        if settings.listen:
            raise
        log.warning("endpoint not reachable", reason=f"{DEFAULT_LISTEN} is taken; choose another with --listen")
        return None
