"""A thief of a join token: redeems it first, twice, at the same moment as others, around a crash, after a restore."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import asyncssh
import pytest

from knot_agent.joining import join
from knot_keys.certificates import check_hub
from knot_keys.connections import close, connect
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import new_key, public_line
from knot_keys.possession import for_joining, prove
from knot_server.store.database import STORE_FILE
from knot_ssh.addresses import Address
from knot_ssh.errors import JoinRefused, KnotError
from knot_ssh.rpc import Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import JOIN_LOGIN, JOIN_SUBSYSTEM, JoinChallenge, JoinRequest, Membership, Nothing
from tests.support.dying_server import MOMENTS
from tests.support.figures import Figure
from tests.support.planes import stock_plane
from tests.support.system import System

CROWD = 100


@dataclass(frozen=True, slots=True)
class Redeemer:
    """Somebody who has shown the token to the hub, and has a key ready."""

    peer: Peer
    request: JoinRequest

    async def redeem(self) -> Membership | JoinRefused:
        """What comes of it."""
        try:
            return Membership.model_validate(await self.peer.call("join.enrol", self.request))
        except JoinRefused as error:
            return error


@contextlib.asynccontextmanager
async def redeemer(hub: Address, token: JoinToken) -> AsyncIterator[Redeemer]:
    key, tasks = new_key("thief"), Tasks()
    connection = await connect(
        stock_plane(), hub, JOIN_LOGIN, lambda shown: check_hub(shown, token.host_cas), password=str(token)
    )
    try:
        stdin, stdout, _ = await connection.open_session(subsystem=JOIN_SUBSYSTEM, encoding=None)
        peer = Peer(stdout, stdin, {})
        tasks.start(peer.run())
        challenge = JoinChallenge.model_validate(await peer.call("join.challenge", Nothing()))
        signature = prove(key, for_joining(challenge.nonce, token.id))
        yield Redeemer(peer, JoinRequest(public_key=public_line(key), signature=signature))
    finally:
        await tasks.cancel()
        await close(connection)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose server may be killed."""
    system = System(tmp_path_factory.mktemp("joins"))
    system.program = [sys.executable, "-m", "tests.support.dying_server", str(system.folder / "order")]
    try:
        system.start()
        yield system
    finally:
        system.close()


def invitation(system: System) -> JoinToken:
    """A token for a space of its own."""
    made = system.api("alice").post("api", "spaces", body={"name": f"target-{len(system.spaces('alice'))}", "zone": "eu"})
    return JoinToken.parse(str(made["join_token"]))


async def redeemed(system: System, token: JoinToken, key: asyncssh.SSHKey) -> Membership:
    return await join(stock_plane(), Address.parse(system.hub), token, key)


@pytest.mark.threat(6, f"{CROWD} keys redeem one join token at the same moment", "one wins, the others are told why")
async def test_one_of_many(own: System, figure: Figure) -> None:
    """All have logged in and proved to hold their keys before the first of them asks to be enrolled."""
    token, hub = invitation(own), Address.parse(own.hub)
    async with contextlib.AsyncExitStack() as stack:
        coming = (stack.enter_async_context(redeemer(hub, token)) for _ in range(CROWD))
        crowd = await asyncio.gather(*coming)
        answers = await asyncio.gather(*(one.redeem() for one in crowd))
    refused = [answer for answer in answers if isinstance(answer, JoinRefused)]
    figure(f"{len(answers) - len(refused)} won, {len(refused)} refused")
    assert len(refused) == CROWD - 1
    assert all("used already" in str(answer) for answer in refused)


@pytest.mark.threat(
    6, "the server is killed (-9) while a token is redeemed", "the same key gets its answer, another is refused"
)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_killed_between_consuming_and_answering(own: System, figure: Figure, moment: str) -> None:
    """Whoever asks first afterwards, the token is the key's that was about to be told so."""
    assert own.server
    token, key = invitation(own), new_key("agent")
    (own.folder / "order").write_text(moment)
    with pytest.raises((KnotError, asyncssh.Error, OSError)):
        await redeemed(own, token, key)
    assert await asyncio.to_thread(own.server.wait) == -9
    await asyncio.to_thread(own.start)
    with pytest.raises(JoinRefused, match="used already"):
        await redeemed(own, token, new_key("thief"))
    answer = await redeemed(own, token, key)
    figure("killed, restarted: thief refused, the same key joins")
    assert await redeemed(own, token, key) == answer


@pytest.mark.threat(
    6, "an old store is put back after a token was redeemed", "the same key gets its answer, another is refused"
)
async def test_after_a_restore(own: System, figure: Figure) -> None:
    """A copy of the store that was made before does not bring the token back."""
    assert own.server
    token, key = invitation(own), new_key("agent")
    store, copy = own.folder / "server" / STORE_FILE, own.folder / "copy.db"
    with contextlib.closing(sqlite3.connect(store)) as live, contextlib.closing(sqlite3.connect(copy)) as backup:
        live.backup(backup)
    answer = await redeemed(own, token, key)
    assert own.server.stop() == 0
    for beside in ("", "-wal", "-shm"):
        store.with_name(f"{STORE_FILE}{beside}").unlink(missing_ok=True)
    shutil.copy(copy, store)
    store.chmod(0o600)
    await asyncio.to_thread(own.start)
    with pytest.raises(JoinRefused, match="used already"):
        await redeemed(own, token, new_key("thief"))
    assert await redeemed(own, token, key) == answer
    figure("restored: thief refused, the same key joins")
