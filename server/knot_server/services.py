"""All parts of a running server, put together in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from knot_keys.authority import Authority
from knot_keys.keyfiles import HUB_KEY_FILE
from knot_keys.keyring import KeyRing
from knot_keys.passphrase import Passphrase
from knot_server.hub.control import Control
from knot_server.hub.listener import Hub
from knot_server.hub.relay import RelayBounds
from knot_server.roster import Roster
from knot_server.settings import ServerSettings
from knot_server.store.database import Database
from knot_server.usecases.audit import Audit
from knot_server.usecases.auditkeeping import Keeping
from knot_server.usecases.enrolment import Enrolment
from knot_server.usecases.forwarding import Forwarding
from knot_server.usecases.hostkeys import HostKeys
from knot_server.usecases.lastseen import LastSeen
from knot_server.usecases.registration import Registrations
from knot_server.usecases.renaming import Renaming
from knot_server.usecases.revocation import Revocations
from knot_server.usecases.revoking import Revoking
from knot_server.usecases.rotation import Rotations
from knot_server.usecases.spaces import Spaces, drop_old_tokens
from knot_server.usecases.tokens import Tokens
from knot_server.usecases.users import Users
from knot_ssh.dataplane.plane import DataPlane


@dataclass(slots=True)
class Services:
    """What the doors, HTTP API and hub, are built on."""

    database: Database
    audit: Audit
    keeping: Keeping
    authority: Authority
    roster: Roster
    spaces: Spaces
    users: Users
    tokens: Tokens
    enrolment: Enrolment
    revocations: Revocations
    revoking: Revoking
    forwarding: Forwarding
    last_seen: LastSeen
    renaming: Renaming
    control: Control
    rotations: Rotations
    host_keys: HostKeys
    hub: Hub
    hub_address: str = ""
    """host:port as others see the hub; known once it listens."""

    @classmethod
    async def open(
        cls, plane: DataPlane, folder: Path, settings: ServerSettings, passphrase: Passphrase | None = None
    ) -> Services:
        """Read CAs, keys and store from the server's data folder; raises KnotError for what is missing or loose."""
        lifetime = settings.certificate_lifetime
        authority = Authority.load(folder, passphrase)
        hub_key = KeyRing.load(folder, HUB_KEY_FILE)
        database = await Database.open(folder)
        await drop_old_tokens(database)
        roster = Roster()
        audit = Audit(database)
        revocations = Revocations(database, authority, roster, audit, lifetime)
        await revocations.load()
        spaces = Spaces(database, authority, revocations, roster, audit)
        enrolment = Enrolment(database, authority, revocations, audit, lifetime)
        forwarding = Forwarding(database, roster, audit)
        rotations = Rotations(database, authority, hub_key, roster, enrolment, audit)
        renaming = Renaming(database, roster, enrolment, forwarding, revocations, audit)
        last_seen = LastSeen(database)
        relaying = RelayBounds(settings.max_relayed, settings.max_held_per_owner)
        registrations = Registrations(roster, forwarding, last_seen)
        control = Control(database, last_seen, roster, enrolment, forwarding, revocations, audit)
        hub = Hub(
            plane,
            authority,
            hub_key,
            enrolment,
            control,
            revocations,
            renaming,
            registrations,
            audit,
            settings.bounds,
            relaying,
        )
        rotations.on_change.append(hub.rotated)
        return cls(
            database=database,
            audit=audit,
            keeping=Keeping(database, settings.audit_days, settings.audit_max),
            authority=authority,
            roster=roster,
            spaces=spaces,
            users=Users(database, spaces, audit),
            tokens=Tokens(database, audit),
            enrolment=enrolment,
            revocations=revocations,
            revoking=Revoking(database, revocations, audit),
            forwarding=forwarding,
            last_seen=last_seen,
            renaming=renaming,
            control=control,
            rotations=rotations,
            host_keys=HostKeys(database, roster, audit),
            hub=hub,
        )

    async def close(self) -> None:
        await self.hub.close()
        await self.revocations.close()
        await self.last_seen.close()
        await self.tokens.close()
        await self.audit.close()
        await self.database.close()
