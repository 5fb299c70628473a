"""The HTTP API, from the bytes of a connection on. `TOKEN` in an input stands for alice's, `LENGTH` for the body's length."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from uvicorn.server import ServerState

from knot_server.http.protocol import HttpConfig, Protocol
from knot_ssh.errors import KnotError
from tests.fuzz import values
from tests.fuzz.server import SERVER, SETTINGS, Served
from tests.fuzz.stage import PATIENCE
from tests.fuzz.target import Target
from tests.fuzz.watching import Finding
from tests.support.waiting import becomes

STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
FAULT = b"500"
"""What the API answers where it has met what it did not foresee."""
PEER, HERE = ("192.0.2.1", 50000), ("127.0.0.1", 3000)


class Wire(asyncio.Transport):
    """A connection of which everything that is sent is kept."""

    def __init__(self) -> None:
        super().__init__(extra={"peername": PEER, "sockname": HERE})
        self.sent = bytearray()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def exchange(server: Served, data: bytes) -> None:
    """Send this, have it answered as far as it is whole, and hang up."""
    state, wire = ServerState(), Wire()
    config = HttpConfig(server.app, SETTINGS, None)
    config.load()
    protocol: Any = Protocol(config, state, {})
    protocol.connection_made(wire)
    protocol.data_received(data)
    await becomes(lambda: not state.tasks or is_waiting(protocol), PATIENCE)
    protocol.connection_lost(None)
    await becomes(lambda: not state.tasks, PATIENCE, "the request does not end with its connection")
    if FAULT in STATUS.findall(wire.sent):
        raise Finding(f"a fault: {bytes(wire.sent)!a}")


def is_waiting(protocol: Any) -> bool:
    """Whether the request is not whole: the rest of its body is to come."""
    return protocol.cycle is not None and protocol.cycle.more_body and not protocol.cycle.response_complete


def http(data: bytes) -> None:
    def act(server: Served) -> Any:
        head, blank, body = data.partition(b"\r\n\r\n")
        head = head.replace(b"TOKEN", server.token.encode()).replace(b"LENGTH", str(len(body)).encode())
        return exchange(server, head + blank + body)

    if data:
        SERVER.run(act)
        SERVER.run(look)


async def look(server: Served) -> None:
    """Whether alice and her spaces are still there, for the next input."""
    try:
        actor = await server.services.tokens.authenticate(server.token)
        names = {space.name for space in await server.services.spaces.listing(actor)}
    except KnotError:
        names = set()
    if not names >= {values.FRONTEND, values.BACKEND}:
        SERVER.spoil()


def http_seeds() -> list[bytes]:
    """A request for every route and method, with the body that the API's own description has for an example."""
    made: list[bytes] = []

    async def collect(server: Served) -> None:
        described = server.app.openapi()
        for path, operations in described["paths"].items():
            for method, operation in operations.items():
                made.append(request(method.upper(), path, example(operation)))

    SERVER.run(collect)
    return made


def example(operation: dict[str, Any]) -> object:
    """The body that is shown for it; None where it takes none."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    examples = content.get("examples") or {"": {"value": content.get("example")}}
    return next(iter(examples.values()))["value"]


def request(method: str, path: str, body: object) -> bytes:
    """As a client writes it; what stands in braces in a path is a space of alice's."""
    target = re.sub(r"\{\w+\}", "frontend", path)
    content = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:3000\r\nAuthorization: Bearer TOKEN\r\n"
    kind = "Content-Type: application/json\r\nContent-Length: LENGTH\r\n" if content else ""
    return f"{head}{kind}\r\n".encode() + content


HEADERS = ("Transfer-Encoding: chunked", "Expect: 100-continue", "Connection: Upgrade", "Upgrade: websocket", "Origin: null")
WORDS = (
    *(header.encode() + b"\r\n" for header in HEADERS),
    *(method + b" " for method in b"GET POST PATCH DELETE OPTIONS HEAD PUT".split()),
    *b'TOKEN LENGTH %00 %2e%2e%2f %ff % ? * true null 1e999 NaN 99999999999999999999 "\\ud800" "\\u0000" [[[['.split(),
    *(b"0\r\n\r\n", b"\r\n", b'"persistent": true', b'"force": true', b'"dry_run": true', b'"zone": "eu"', b'"lifetime": '),
)
TARGETS = (Target("http", http, http_seeds, WORDS),)
