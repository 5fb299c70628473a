"""The hub's listening socket and its connections."""

from __future__ import annotations

import asyncio
from functools import partial

from asyncssh.connection import SSHServerConnectionOptions

from knot_keys.authority import Authority
from knot_keys.bounds import Bounds
from knot_keys.certificates import read_certificate
from knot_keys.connections import Credential, ServerConnection, close, server_options
from knot_keys.entrance import Entrance
from knot_keys.keyring import KeyRing
from knot_server.hub.control import Control
from knot_server.hub.doorkeeper import (
    HUB_BOUNDS,
    LOGIN_REASONS,
    HubDoorkeeper,
    Joiner,
    Lobby,
    Member,
    Subsystem,
    Visitor,
)
from knot_server.hub.joining import serve_joiner
from knot_server.hub.plain import Plain, plain
from knot_server.hub.relay import RELAY_BOUNDS, Relay, RelayBounds
from knot_server.refusals import Refusals
from knot_server.usecases.audit import Audit
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.registration import Registrations
from knot_server.usecases.renaming import Renaming
from knot_server.usecases.revocation import Revocations
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import Closeable, DataPlane
from knot_ssh.listening import bound_address, listen_on
from knot_ssh.wire import (
    CONTROL_SUBSYSTEM,
    HOST_CERTIFICATE_SUBSYSTEM,
    JOIN_SSHD_SUBSYSTEM,
    JOIN_SUBSYSTEM,
    KRL_SUBSYSTEM,
    TRUST_SUBSYSTEM,
)

HUB_CERTIFICATE_LIFETIME = 24 * 3600
"""Seconds; the hub certifies itself anew in time while it runs."""


class Hub:
    """Accepts agents until closed."""

    def __init__(
        self,
        plane: DataPlane,
        authority: Authority,
        host_key: KeyRing,
        enrolment: Enrolment,
        control: Control,
        revocations: Revocations,
        renaming: Renaming,
        registrations: Registrations,
        audit: Audit,
        bounds: Bounds = HUB_BOUNDS,
        relaying: RelayBounds = RELAY_BOUNDS,
    ) -> None:
        self.relay = Relay(plane, audit, relaying)
        self._bounds = bounds
        self._plane = plane
        self._authority = authority
        self._host_key = host_key
        self.refusals = Refusals(LOGIN_REASONS)
        self._registrations = registrations
        questions = Plain(enrolment, revocations, self.refusals)
        subsystems: dict[type[Visitor], dict[str, Subsystem]] = {
            Joiner: {
                JOIN_SUBSYSTEM: partial(serve_joiner, enrolment, self.refusals),
                JOIN_SSHD_SUBSYSTEM: plain(questions.join),
            },
            Member: {
                CONTROL_SUBSYSTEM: control.serve_member,
                HOST_CERTIFICATE_SUBSYSTEM: plain(questions.certify),
                KRL_SUBSYSTEM: plain(questions.krl),
                TRUST_SUBSYSTEM: plain(questions.trust),
            },
        }
        self._lobby = Lobby(
            authority,
            enrolment,
            revocations,
            self.relay,
            registrations,
            subsystems,
            bounds,
            refusals=self.refusals,
            audit=audit,
        )
        self._listener: Closeable | None = None
        self._options: SSHServerConnectionOptions | None = None
        self._entrance: Entrance | None = None
        revocations.on_change.append(self._drop_revoked)
        renaming.on_change.append(self.relay.change)

    @property
    def host_key(self) -> str:
        """The hub's public host key line."""
        return self.host_keys[0]

    @property
    def host_keys(self) -> list[str]:
        """The same, and those that it has been or will be while it is changed for another."""
        return self._host_key.keys.lines

    async def listen(self, address: Address) -> Address:
        """Bind and start accepting; gives the address with the port that was bound. Raises BadInput when it is taken."""
        sock = listen_on(address, what="--ssh")
        plane = self._plane
        bounds = self._bounds
        keeper = partial(HubDoorkeeper, self._lobby)
        options = await server_options(plane, keeper, self._credential(), bounds.login_timeout)
        self._entrance = Entrance(
            lambda accepted: plane.accept(accepted, ServerConnection(plane, options)),
            bounds.unauthenticated,
            bounds.login_timeout,
            bounds.connections,
        )
        self._listener = plane.listen(sock, self._entrance.come)
        self._options = options
        self._lobby.tasks.start(self._renew())
        return bound_address(sock)

    def stop_accepting(self) -> None:
        """Take no new connections, and relay no new ones; what is open goes on."""
        self.relay.stop_accepting()
        if self._listener:
            self._listener.close()
        if self._entrance:
            self._entrance.close()

    async def wait_idle(self) -> None:
        """Wait until nothing is being relayed."""
        await self.relay.wait_idle()

    async def close(self) -> None:
        """Stop accepting and end every connection."""
        self.stop_accepting()
        await asyncio.gather(*(close(keeper.connection) for keeper in list(self._lobby.keepers)))
        await self._lobby.tasks.cancel()
        await self._registrations.close()

    def _drop_revoked(self) -> None:
        for keeper in list(self._lobby.keepers):
            keeper.leave_if_revoked()

    def rotated(self) -> None:
        """A CA or our key was changed for another."""
        self._show_anew()
        for keeper in list(self._lobby.keepers):
            keeper.leave_if_distrusted()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(HUB_CERTIFICATE_LIFETIME / 2)
            self._show_anew()

    def _show_anew(self) -> None:
        """Show a new certificate to those who come later; who is connected has pinned the key."""
        if self._options:
            fresh = self._credential()
            self._options.update(server_host_keys=[(fresh.key, fresh.certificate)])

    def _credential(self) -> Credential:
        key = self._host_key.keys.active
        return Credential(key, read_certificate(self._authority.certify_hub(key, HUB_CERTIFICATE_LIFETIME).line))
