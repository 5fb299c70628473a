"""The hub's subsystems: what an agent that joins, or has joined, may say. An input is a subsystem's name, then its stdin."""

from __future__ import annotations

import json
from typing import Any

from knot_keys.keyfiles import public_line
from knot_keys.possession import for_host_key, prove
from knot_server.hub.doorkeeper import Joiner, Member, Session, Visitor
from knot_ssh.rpc import Method, Peer
from knot_ssh.wire import CONTROL_SUBSYSTEM, JOIN_SUBSYSTEM
from tests.fuzz import values
from tests.fuzz.credentials import signature_seeds
from tests.fuzz.samples import calls, remembering
from tests.fuzz.server import SERVER, Served
from tests.fuzz.talk import Talk
from tests.fuzz.target import Target


class Channel:
    """What a subsystem without JSON-RPC does to its channel at the end."""

    def exit(self, status: int) -> None:
        assert status in (0, 1)

    async def wait_closed(self) -> None: ...


class Stream(Talk):
    """stdin, stdout, stderr and the connection below, in one."""

    channel = Channel()
    lost = False


async def converse(server: Served, data: bytes) -> None:
    """Open the subsystem that the input names, and say the rest."""
    name, _, rest = data.partition(b"\n")
    visitors: dict[type[Visitor], Visitor] = {
        Joiner: Joiner(server.join_token_id),
        Member: Member(values.FRONTEND_ID, values.AGENT.convert_to_public()),
    }
    for kind, subsystems in server.services.hub._lobby.subsystems.items():
        subsystem = subsystems.get(name.decode("utf-8", "replace"))
        if subsystem:
            stream: Any = Stream(rest)
            await subsystem(visitors[kind], Session(stream, stream, stream, stream))
            stream.check()


def hub(data: bytes) -> None:
    SERVER.run(lambda server: converse(server, data))


def hub_seeds() -> list[bytes]:
    """Every method of the table that an agent has, once after a hello; and every subsystem with what it takes."""
    said: list[bytes] = []

    async def collect(server: Served) -> None:
        for subsystems in server.services.hub._lobby.subsystems.values():
            said.extend(name.encode() + b"\n" for name in subsystems)

    SERVER.run(collect)
    hello = call("agent.hello", {"version": "1", "addresses": ["10.0.0.7:2022"], "targets": [str(values.BACKEND_ID)]}, 0)
    host = {"host_key": public_line(values.HOST), "signature": prove(values.HOST, for_host_key(values.FRONTEND_ID))}
    for number, (method, params) in enumerate(calls(methods_of_members()), 1):
        whole = {**params, **host} if method == "agent.certify" else params
        said.append(b"\n".join([CONTROL_SUBSYSTEM.encode(), hello, call(method, whole, number)]))
    join = {"public_key": public_line(values.AGENT), "signature": prove(values.AGENT, b"nonce")}
    said.append(b"\n".join([JOIN_SUBSYSTEM.encode(), call("join.challenge", {}, 1), call("join.enrol", join, 2)]))
    said.extend(b"knot-join-sshd\n" + seed for seed in signature_seeds() if seed.startswith(b"ssh-"))
    return said


def call(method: str, params: object, number: int) -> bytes:
    """A request as it stands on the wire."""
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def methods_of_members() -> dict[str, Method]:
    """What the hub answers an agent."""
    found: dict[str, Method] = {}

    async def collect(server: Served) -> None:
        await tables(server, found)

    SERVER.run(collect)
    return found


async def tables(server: Served, found: dict[str, Method]) -> None:
    """Have a conversation that ends at once, to see which methods its peer was made with."""
    made: list[Peer] = []
    subsystem = server.services.hub._lobby.subsystems[Member][CONTROL_SUBSYSTEM]
    stream: Any = Stream(b"")
    with remembering(made):
        await subsystem(Member(values.FRONTEND_ID, values.AGENT.convert_to_public()), Session(stream, stream, stream, stream))
    found.update(made[0]._methods)


WORDS = (
    *(f'"{word}": '.encode() for word in ("jsonrpc", "id", "method", "params", "result", "error", "code", "message")),
    *(f'"{word}"'.encode() for word in ("2.0", "frontend", "backend-api", "\\ud800", "\\u0000", "127.0.0.1:2022")),
    b"null", b"true", b"NaN", b"1e999", b"-1", b"18446744073709551616", b"[[", b"{}", b"\n",
)  # fmt: skip
TARGETS = (Target("hub", hub, hub_seeds, WORDS),)
