"""What an agent has, once it has joined."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import asyncssh
import pytest

from knot_keys.authority import Authority
from knot_keys.certificates import issue_client, issue_host, read_certificate
from knot_keys.connections import Credential
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import new_key
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from knot_ssh.wire import Certificates, Membership

PRINCIPAL = Principal(Owner("alice"), Zone("eu"))
SPACE = SpaceName("backend")
SPACE_ID = SpaceId("0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c")


@dataclass(frozen=True)
class Office:
    """Certifies agents as the hub does."""

    authority: Authority
    user_ca: asyncssh.SSHKey
    host_ca: asyncssh.SSHKey

    def membership(self, space: str = SPACE) -> Membership:
        return Membership(
            space_id=SPACE_ID,
            space=SpaceName(space),
            owner=PRINCIPAL.owner,
            zone=PRINCIPAL.zone,
            user_cas=[self.authority.user_ca],
            host_cas=[self.authority.host_ca],
        )

    def certified(self, key: asyncssh.SSHKey, lifetime: int, now: float) -> Credential:
        """The agent's key with its client certificate."""
        issued = issue_client(self.user_ca, key, Identity.agent(PRINCIPAL, SPACE, SPACE_ID), lifetime=lifetime, now=now)
        return Credential(key, read_certificate(issued.line))

    def host(self, key: asyncssh.SSHKey, lifetime: int, now: float, space: str = SPACE) -> Credential:
        """The endpoint's key with its host certificate."""
        identity = HostIdentity(PRINCIPAL, SpaceName(space), SPACE_ID)
        issued = issue_host(self.host_ca, key, identity, lifetime=lifetime, now=now)
        return Credential(key, read_certificate(issued.line))

    def certificates(self, key: asyncssh.SSHKey, host: asyncssh.SSHKey, space: str = SPACE) -> Certificates:
        """Both, as the hub sends them."""
        name = SpaceName(space)
        return Certificates(
            client=self.authority.certify_client(key, Identity.agent(PRINCIPAL, name, SPACE_ID), 3600).line,
            host=self.authority.certify_host(host, HostIdentity(PRINCIPAL, name, SPACE_ID), 3600).line,
        )


@pytest.fixture(scope="session")
def office(tmp_path_factory: pytest.TempPathFactory) -> Office:
    folder: Path = tmp_path_factory.mktemp("authority")
    user_ca, host_ca = new_key("user CA"), new_key("host CA")
    for name, key in (("user_ca", user_ca), ("host_ca", host_ca)):
        (folder / name).write_bytes(key.export_private_key("openssh"))
        (folder / name).chmod(0o600)
    return Office(Authority.load(folder), user_ca, host_ca)
