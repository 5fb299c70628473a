"""What an agent is told: by the hub over its control link, and over its socket. An input is `hub` or `local` on a line, then
what is said."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import asyncssh

from knot_agent.agent import Agent
from knot_agent.home import HOST_KEY_FILE, Home
from knot_agent.settings import AgentSettings
from knot_keys.certificates import issue_client, issue_host
from knot_keys.identity import HostIdentity, Identity
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import KnotError
from knot_ssh.files import make_private_folder
from knot_ssh.names import Principal, SpaceName
from knot_ssh.rpc import Method, Peer
from knot_ssh.wire import Certificates, Membership, Revoked, Welcome
from tests.fuzz import values
from tests.fuzz.files import membership, scratch, write
from tests.fuzz.hub import WORDS, call
from tests.fuzz.samples import calls, sample
from tests.fuzz.stage import Stage
from tests.fuzz.talk import Talk
from tests.fuzz.target import Target
from tests.support.planes import stock_plane

TOKEN_ID = "0123456789abcdef"
HUB = Address("127.0.0.1", 2222)
SLOW = frozenset({"membership.changed"})
"""Answered once the agent is certified under its new name, which a hub may refuse for ever."""
PROMISED = (KnotError, asyncssh.Error, OSError)
"""What ends a conversation with the hub, as the control link takes it."""


def certificates(told: Membership) -> Certificates:
    """As the hub would issue them to an agent that is this."""
    principal, now = Principal(told.owner, told.zone), int(time.time())
    client = Identity.agent(principal, told.space, told.space_id)
    host = HostIdentity(principal, told.space, told.space_id)
    return Certificates(
        client=issue_client(values.USER_CA, values.AGENT, client, lifetime=values.LONG, now=now).line,
        host=issue_host(values.HOST_CA, values.HOST, host, lifetime=values.LONG, now=now).line,
    )


@cache
def master() -> Path:
    """The folder of an agent that has joined and is certified; others are copies."""
    folder = scratch() / "joined"
    make_private_folder(folder)
    write(folder / f"identity-{TOKEN_ID}", values.AGENT.export_private_key())
    write(folder / HOST_KEY_FILE, values.HOST.export_private_key())
    with contextlib.closing(Home(folder)) as home:
        home.joined(TOKEN_ID, membership())
        home.keep(certificates(membership()))
    return folder


@asynccontextmanager
async def agent_of(plane: DataPlane, **settings: Any) -> AsyncIterator[Agent]:
    """An agent as it is after its start; it has not heard of its hub yet."""
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place) / "agent"
        shutil.copytree(master(), folder)
        with contextlib.closing(Home(folder)) as home:
            agent = Agent(plane, home, HUB, membership(), AgentSettings(**settings), None)
            await agent._endpoint.serve(None)
            try:
                yield agent
            finally:
                await agent._tasks.cancel()
                await agent._forwards.close()
                await agent._links.close()
                await agent._endpoint.close()


@dataclass
class Connection:
    """To the hub."""

    talk: Talk
    on_forwarded: Any = None
    quiet: float = 0.0

    def watch_silence(self, _listener: Any) -> None: ...

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return "127.0.0.1", 50000

    async def open_session(self, **_options: Any) -> tuple[Talk, Talk, None]:
        return self.talk, self.talk, None

    async def register(self, _name: str, _port: int) -> bool:
        return True


def welcome(told: Membership) -> dict[str, Any]:
    return Welcome(membership=told, forwards=[], revoked=Revoked(serials=[], keys=[])).model_dump(mode="json")


async def hear(plane: DataPlane, data: bytes) -> None:
    """Tell an agent this, and answer what it asks meanwhile as a hub would."""
    door, _, rest = data.partition(b"\n")
    async with agent_of(plane) as agent:
        if door == b"hub":
            now = agent._credentials
            known = {
                "agent.hello": lambda: welcome(now.membership),
                "agent.certify": lambda: certificates(now.membership).model_dump(),
            }
            talk = Talk(rest, known, SLOW)
            connection: Any = Connection(talk)
            with contextlib.suppress(*PROMISED):
                await agent._control._converse(connection)
            talk.check()
        elif door == b"local":
            talk = Talk(rest)
            await Peer(talk, talk, agent._for_command_line()).run()
            talk.check()


@asynccontextmanager
async def data_plane() -> AsyncIterator[DataPlane]:
    yield stock_plane()


AGENTS = Stage(data_plane)


def agent(data: bytes) -> None:
    AGENTS.run(lambda plane: hear(plane, data))


def methods() -> tuple[dict[str, Method], dict[str, Method]]:
    """What an agent answers the hub, and the command line."""
    found: list[dict[str, Method]] = []

    async def collect(plane: DataPlane) -> None:
        async with agent_of(plane) as agent:
            found.extend((agent._for_hub(), agent._for_command_line()))

    AGENTS.run(collect)
    return found[0], found[1]


def agent_seeds() -> list[bytes]:
    """Every method of both doors, and the answers to what the agent asks itself."""
    said = []
    for door, table in zip((b"hub", b"local"), methods(), strict=True):
        said += [door + b"\n" + call(method, params, 1) for method, params in calls(table)]
    renamed = membership().model_copy(update={"space": SpaceName("api")})
    answers = [answer(1, sample(Welcome)), call("membership.changed", renamed.model_dump(mode="json"), 7)]
    return [*said, b"\n".join([b"hub", *answers, answer(2, certificates(renamed).model_dump())])]


def answer(number: int, result: object) -> bytes:
    """A result as it stands on the wire."""
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()


TARGETS = (Target("agent", agent, agent_seeds, WORDS),)
