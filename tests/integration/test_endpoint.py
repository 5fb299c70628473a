"""The endpoint asks again at every channel: who was let in may have lost the right since."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from knot_agent.credentials import Credentials
from knot_agent.endpoint import Endpoint
from knot_keys.authority import Authority
from knot_keys.certificates import check_host, read_certificate
from knot_keys.connections import ClientConnection, Credential, close, connect
from knot_keys.identity import HostIdentity, Identity
from knot_keys.keyfiles import fingerprint, new_key
from knot_keys.revocation import NOTHING_REVOKED, RevocationList
from knot_ssh.addresses import Address
from knot_ssh.listening import bind, bound_address
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone
from knot_ssh.wire import Membership
from tests.support.figures import Figure
from tests.support.planes import stock_plane
from tests.support.services import answering, serving

ALICE = Principal(Owner("alice"), Zone("eu"))


class Bench:
    """One endpoint and one client of the same owner and zone, in this process."""

    def __init__(self, folder: Path, lifetime: int) -> None:
        self.authority = Authority.create(folder)
        space, space_id = SpaceName("backend-api"), SpaceId.new()
        identity, host, client = new_key("identity"), new_key("host"), new_key("client")
        certified = self.authority.certify_host(host, HostIdentity(ALICE, space, space_id), 3600)
        membership = Membership(
            space_id=space_id,
            space=space,
            owner=ALICE.owner,
            zone=ALICE.zone,
            user_cas=[self.authority.user_ca],
            host_cas=[self.authority.host_ca],
        )
        host_credential = Credential(host, read_certificate(certified.line))
        self.credentials = Credentials(membership, Credential(identity), host_credential)
        self.client_key = client
        issued = self.authority.certify_client(client, Identity.person(ALICE.owner, [ALICE.zone]), lifetime)
        self.client = Credential(client, read_certificate(issued.line))
        self.names = [str(space_id), "backend-api.alice.eu.knot"]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[ClientConnection]:
        plane = stock_plane()
        endpoint = Endpoint(plane, self.credentials, ["127.0.0.1", "::1"])
        sock = bind(Address("127.0.0.1", 0))
        await endpoint.serve(sock)
        ca = self.authority.host_ca_key
        connection = await connect(
            plane,
            bound_address(sock),
            "knot",
            lambda shown: check_host(shown, [ca], self.names, NOTHING_REVOKED),
            credential=self.client,
        )
        try:
            yield connection
        finally:
            await close(connection)
            await endpoint.close()


async def opens(connection: ClientConnection, port: int) -> bool:
    """Whether a channel to this port opens; anything but an administrative refusal fails the test."""
    try:
        _, stream = await connection.open_connection("127.0.0.1", port)
    except asyncssh.ChannelOpenError as error:
        if error.code != asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            raise
        return False
    stream.close()
    return True


async def test_expired_certificate_opens_no_channel(tmp_path: Path) -> None:
    """A connection made with a good certificate opens channels until it expires, and none after."""
    with serving(answering(b"x")) as port:
        async with Bench(tmp_path, lifetime=2).connected() as connection:
            assert await opens(connection, port)
            async with asyncio.timeout(10):
                while await opens(connection, port):
                    pass
            assert not connection.lost


@pytest.mark.threat(2, "owner or zone changes while a connection is open", "no channel opens any more")
@pytest.mark.parametrize("principal", [Principal(Owner("bob"), Zone("eu")), Principal(Owner("alice"), Zone("us"))])
async def test_other_owner_or_zone_opens_no_channel(tmp_path: Path, principal: Principal, figure: Figure) -> None:
    """When the endpoint's own owner or zone is no longer the client's, the open connection opens nothing more."""
    bench = Bench(tmp_path, lifetime=3600)
    with serving(answering(b"x")) as port:
        async with bench.connected() as connection:
            assert await opens(connection, port)
            moved = {"owner": principal.owner, "zone": principal.zone}
            bench.credentials.membership = bench.credentials.membership.model_copy(update=moved)
            assert not await opens(connection, port)
    figure("one channel before, none after")


async def test_revoked_key_is_cut(tmp_path: Path) -> None:
    """Revoking a client's key ends its connection at once."""
    bench = Bench(tmp_path, lifetime=3600)
    async with bench.connected() as connection, asyncio.timeout(10):
        bench.credentials.revoke(RevocationList.of([], [fingerprint(bench.client_key)]))
        await connection.wait_closed()
