"""Many agents in one process. Keys, joining, certificates and control links are the product's own; there is no endpoint
and no forward. `python -m benchmarks.fleet.agents` does what it reads, and answers, one JSON object a line each; it ends
with its standard input.

    join      folder, hub, spaces (name: token)    all have joined, are welcomed and certified
    wait      welcomes                             all have been welcomed so often: the moments of the last time, and
                                                   the spread that each has heard of since
    renew                                          all have had new certificates
    forget                                         none has certificates any more
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import asyncssh

from knot_agent.control import ControlLink
from knot_agent.credentials import Credentials
from knot_agent.home import Home
from knot_agent.joining import join
from knot_keys.connections import ClientConnection, Credential
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import public_line
from knot_keys.possession import for_host_key, prove
from knot_ssh import __version__
from knot_ssh.addresses import Address
from knot_ssh.dataplane import plane
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.logs import configure_logs
from knot_ssh.rpc import Method
from knot_ssh.tasks import Tasks
from knot_ssh.wire import (
    CertificateRequest,
    Certificates,
    Farewell,
    ForwardList,
    Hello,
    Nothing,
    Revoked,
    Spread,
    Target,
    Welcome,
)

AT_ONCE = 32
"""Agents that join, or renew, at the same time: nobody spreads those."""
LINE_LIMIT = 1 << 24
"""Bytes of one order."""


class Agent:
    """One space's agent, but for endpoint and forwards."""

    def __init__(self, data_plane: DataPlane, hub: Address, home: Home, number: int) -> None:
        self.welcomes: list[float] = []
        """When it was welcomed and certified, on the monotonic clock."""
        self.came = asyncio.Event()
        """It was welcomed once more."""
        self.notified = 0
        """How often the hub has told of some target."""
        self._plane = data_plane
        self._hub = hub
        self._home = home
        self._address = f"127.0.0.1:{1024 + number % 60_000}"

    async def run(self, token: JoinToken) -> None:
        """Join, and stay connected until cancelled."""
        home = self._home
        membership = await join(self._plane, self._hub, token, home.key_for(token.id))
        home.joined(token.id, membership)
        self._credentials = Credentials(membership, home.identity(), home.host())
        self.link = ControlLink(
            self._plane, self._hub, home, self._credentials, self._methods(), self._hello, self._welcomed, _nothing_relayed
        )

    async def renew(self) -> None:
        """Have new certificates made. They are not kept: what the server takes for it is the question."""
        host, space_id = self._credentials.host.key, self._credentials.membership.space_id
        request = CertificateRequest(host_key=public_line(host), signature=prove(host, for_host_key(space_id)))
        await self.link.ask("agent.certify", request, Certificates)

    def forget(self) -> None:
        """Have no certificates, as after a long absence of the server."""
        credentials = self._credentials
        credentials.replace(Credential(credentials.identity.key), Credential(credentials.host.key))

    def _methods(self) -> dict[str, Method]:
        return {
            "forward.list": (Nothing, self._list),
            "target.changed": (Target, self._target_changed),
            "keys.revoked": (Revoked, _ignore),
            "fleet.spread": (Spread, self._spread),
            "agent.superseded": (Nothing, _ignore),
            "agent.farewell": (Farewell, _ignore),
        }

    def _hello(self, _local: str) -> Hello:
        return Hello(version=__version__, addresses=[self._address])

    async def _welcomed(self, _welcome: Welcome) -> None:
        self.welcomes.append(time.monotonic())
        self.came.set()

    async def _list(self, _request: Nothing) -> ForwardList:
        return ForwardList(forwards=[])

    async def _target_changed(self, _target: Target) -> None:
        self.notified += 1

    async def _spread(self, message: Spread) -> None:
        self.link.spread = message.spread


class Agents:
    """All of them, and what they are told to do together."""

    def __init__(self, data_plane: DataPlane) -> None:
        self._plane = data_plane
        self._agents: list[Agent] = []
        self._tasks = Tasks()

    async def do(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carry out one order; gives the answer."""
        match order.pop("do"):
            case "join":
                return await self.join(**order)
            case "wait":
                return await self.wait(**order)
            case "renew":
                return await self.renew()
            case "forget":
                for agent in self._agents:
                    agent.forget()
                return {}
            case unknown:
                raise ValueError(unknown)

    async def join(self, folder: str, hub: str, spaces: dict[str, str]) -> dict[str, Any]:
        began = time.monotonic()
        address = Address.parse(hub)

        async def one(number: int, name: str, token: str) -> None:
            agent = Agent(self._plane, address, Home(Path(folder, name)), number)
            await agent.run(JoinToken.parse(token))
            self._agents.append(agent)
            self._tasks.start(agent.link.run())

        await _few_at_once(one(number, *space) for number, space in enumerate(spaces.items()))
        answer = await self.wait(1)
        return {"seconds": max(answer["moments"]) - began}

    async def wait(self, welcomes: int) -> dict[str, Any]:
        for agent in self._agents:
            while len(agent.welcomes) < welcomes:
                agent.came.clear()
                await agent.came.wait()
        return {
            "moments": [agent.welcomes[-1] for agent in self._agents],
            "spreads": [agent.link.spread for agent in self._agents],
            "notified": sum(agent.notified for agent in self._agents),
        }

    async def renew(self) -> dict[str, Any]:
        began = time.monotonic()
        await _few_at_once(agent.renew() for agent in self._agents)
        return {"seconds": time.monotonic() - began}


async def _few_at_once(works: Any) -> None:
    """Await all, so many at a time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def with_room(work: Coroutine[Any, Any, None]) -> None:
        async with room:
            await work

    async with asyncio.TaskGroup() as tasks:
        for work in works:
            tasks.create_task(with_room(work))


async def _ignore(_message: Any) -> None:
    """What these agents have no use for."""


def _nothing_relayed(_connection: ClientConnection) -> tuple[Channel, Any]:
    raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "there is no endpoint")


async def serve(data_plane: DataPlane) -> None:
    """Do what is read until there is nothing more."""
    agents = Agents(data_plane)
    reader = asyncio.StreamReader(LINE_LIMIT)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(await agents.do(json.loads(line))), flush=True)


if __name__ == "__main__":
    configure_logs()
    plane.run(serve)
