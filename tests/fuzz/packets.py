"""SSH from the bytes of a connection on. An input begins with who sends it, on a line:

    stranger    bytes, before any login
    caller      packets to the hub of who has logged in with a person's certificate
    member      packets to the hub of who has logged in with frontend's enrolled key
    endpoint    packets to an agent's endpoint of who has logged in with a person's certificate

A packet is its length in two bytes, its type, and its payload (RFC 4253 section 6, without what encryption adds). `PORT` in
it stands for the port of a service that sends back what it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import asyncssh
from asyncssh.constants import (
    MSG_CHANNEL_CLOSE,
    MSG_CHANNEL_DATA,
    MSG_CHANNEL_EOF,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_REQUEST,
    MSG_CHANNEL_WINDOW_ADJUST,
    MSG_DISCONNECT,
    MSG_GLOBAL_REQUEST,
    MSG_IGNORE,
    MSG_KEXINIT,
    MSG_USERAUTH_REQUEST,
)
from asyncssh.packet import Boolean, Byte, String, UInt32

from knot_keys.certificates import read_certificate
from knot_keys.connections import Credential, ServerConnection, close, log_in, server_options
from knot_server.hub.doorkeeper import HubDoorkeeper
from knot_ssh.dataplane.limits import Limits
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import AsyncioReactor
from knot_ssh.dataplane.transport import joined_pair
from knot_ssh.wire import CONTROL_SUBSYSTEM
from tests.fuzz import values
from tests.fuzz.agents import agent_of
from tests.fuzz.server import ALICE, served
from tests.fuzz.stage import PATIENCE, Stage
from tests.fuzz.target import Target
from tests.fuzz.watching import Finding
from tests.support.rawssh import kexinit

SERVICE = "127.66.66.66"
"""An address of loopback where nobody else listens, the only one that channels may go to."""
TURNS = 8
"""Of the loop, for each packet to be dealt with before the next."""
FOUND = (asyncssh.Error, OSError)
"""What a connection may end with."""


class Observed(ServerConnection):
    """Remembers what it ended with."""

    error: BaseException | None = None

    def _cleanup(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        super()._cleanup(exc)


@dataclass(frozen=True, slots=True)
class Doors:
    """Where one can log in, with what, and the port of the service."""

    plane: DataPlane
    hub: Any
    endpoint: Any
    credentials: dict[str, tuple[str, Credential]]
    port: int

    def connection(self, who: str) -> Observed:
        """The server's side of a new connection."""
        return Observed(self.plane, self.endpoint if who == "endpoint" else self.hub)


@asynccontextmanager
async def doors() -> AsyncIterator[Doors]:
    """A hub and an endpoint on the fast data path."""
    plane = DataPlane(AsyncioReactor(), Limits(), fast=True)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(plane))
        agent = await stack.enter_async_context(agent_of(plane, allow=[SERVICE]))
        service = await stack.enter_async_context(await asyncio.start_server(_echo, SERVICE, 0))
        hub = server.services.hub
        options = await server_options(plane, lambda: HubDoorkeeper(hub._lobby), hub._credential())
        public = values.PERSON.convert_to_public()
        certified, _ = await server.services.enrolment.certify_person(ALICE, public.export_public_key().decode(), None)
        known = values.persons_certificate(values.LONG, int(time.time()))
        yield Doors(
            plane,
            options,
            agent._endpoint._options,
            {
                "caller": ("alice", Credential(values.PERSON, read_certificate(certified.line))),
                "member": (str(values.FRONTEND_ID), Credential(values.AGENT)),
                "endpoint": ("alice", Credential(values.PERSON, read_certificate(known.line))),
            },
            service.sockets[0].getsockname()[1],
        )


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer), contextlib.suppress(OSError):  # a broken stream is reset
        while data := await reader.read(65536):
            writer.write(data)


async def send(there: Doors, data: bytes) -> None:
    """Log in, send the packets one after the other, and hang up."""
    name, _, rest = data.partition(b"\n")
    who = name.decode("ascii", "replace")
    rest = rest.replace(b"PORT", UInt32(there.port))
    if who == "stranger":
        await _as_stranger(there, rest)
    elif who in there.credentials:
        await _as_known(there, who, rest)


async def _as_stranger(there: Doors, data: bytes) -> None:
    ours, theirs = joined_pair()
    with closing(ours):
        connection = there.connection("stranger")
        there.plane.accept(theirs, connection)
        ours.send(data)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        ours.shutdown(socket.SHUT_RDWR)
        await _ended(connection)


async def _as_known(there: Doors, who: str, data: bytes) -> None:
    ours, theirs = joined_pair()
    connection = there.connection(who)
    there.plane.accept(theirs, connection)
    login, credential = there.credentials[who]
    client = await log_in(there.plane, ours, who, login, lambda shown: None, credential=credential)
    client.received = _unheard  # type: ignore[method-assign]
    for packet in packets(data):
        if client.lost or connection.lost:
            break
        client.send_packet(packet[0], packet[1:])
        for _ in range(TURNS):
            await asyncio.sleep(0)
    await close(client)
    await _ended(connection)


def _unheard(buffer: memoryview, start: int, end: int) -> tuple[int, bool]:
    """Whatever comes is dropped: an answer that asyncssh finds wrong would be the end of what is still to be sent."""
    return end, True


def packets(data: bytes) -> Iterator[bytes]:
    """The packets of an input; the last may be short, and an empty one is none."""
    while len(data) > 2:
        size = int.from_bytes(data[:2], "big") or 1
        yield data[2 : 2 + size]
        data = data[2 + size :]


async def _ended(connection: Observed) -> None:
    async with asyncio.timeout(PATIENCE):
        await connection.wait_gone()
    if not isinstance(connection.error, (*FOUND, type(None))):
        raise Finding(f"a connection ended with {connection.error!r}") from connection.error


DOORS = Stage(doors)


def ssh(data: bytes) -> None:
    DOORS.run(lambda there: send(there, data))


# Seeds


def framed(*parts: tuple[int, bytes]) -> bytes:
    """Packets as an input has them."""
    whole = [Byte(kind) + payload for kind, payload in parts]
    return b"".join(len(packet).to_bytes(2, "big") + packet for packet in whole)


def opening(kind: str, *rest: bytes) -> tuple[int, bytes]:
    """A request for a channel of a large window (RFC 4254 section 5.1)."""
    return MSG_CHANNEL_OPEN, b"".join([String(kind), UInt32(0), UInt32(1 << 21), UInt32(1 << 15), *rest])


def tcpip(kind: str, host: str, port: bytes) -> tuple[int, bytes]:
    return opening(kind, String(host), port, String("127.0.0.1"), UInt32(50000))


def asking(kind: str, *rest: bytes) -> tuple[int, bytes]:
    """A request about the first channel (RFC 4254 section 5.4)."""
    return MSG_CHANNEL_REQUEST, b"".join([UInt32(0), String(kind), Boolean(True), *rest])


def globally(kind: str, *rest: bytes) -> tuple[int, bytes]:
    """A request about the connection (RFC 4254 section 4)."""
    return MSG_GLOBAL_REQUEST, b"".join([String(kind), Boolean(True), *rest])


def data_for(channel: int, data: bytes) -> tuple[int, bytes]:
    return MSG_CHANNEL_DATA, UInt32(channel) + String(data)


def ssh_seeds() -> list[bytes]:
    """What each of them may say, and some of what they may not."""
    hello = b'{"jsonrpc":"2.0","id":1,"method":"agent.hello","params":{"version":"1","addresses":[]}}\n'
    window = (MSG_CHANNEL_WINDOW_ADJUST, UInt32(0) + UInt32(1 << 20))
    ends = (MSG_CHANNEL_EOF, UInt32(0)), (MSG_CHANNEL_CLOSE, UInt32(0))
    name = String("frontend.alice.eu.knot") + UInt32(22)
    said = {
        "endpoint": [
            [tcpip("direct-tcpip", SERVICE, b"PORT"), data_for(0, b"hello"), window, *ends],
            [tcpip("direct-tcpip", "localhost", UInt32(80)), tcpip("direct-tcpip", "::ffff:127.0.0.1", UInt32(80))],
            [opening("session"), asking("pty-req", String("vt100"), *[UInt32(1)] * 4, String("")), asking("shell")],
            [(MSG_KEXINIT, kexinit()), (MSG_IGNORE, String("x")), globally("keepalive@openssh.com")],
        ],
        "caller": [
            [tcpip("direct-tcpip", "backend-api", UInt32(22)), tcpip("forwarded-tcpip", "backend-api", UInt32(22))],
            [globally("tcpip-forward", String(""), UInt32(0)), globally("cancel-tcpip-forward", String(""), UInt32(0))],
            [opening("direct-streamlocal@openssh.com", String("/x"), String(""), UInt32(0)), opening("auth-agent@openssh.com")],
        ],
        "member": [
            [globally("tcpip-forward", name), opening("session"), asking("subsystem", String(CONTROL_SUBSYSTEM))],
            [opening("session"), asking("subsystem", String(CONTROL_SUBSYSTEM)), data_for(0, hello), *ends],
            [opening("session"), asking("exec", String("id")), asking("env", String("A"), String("b"))],
            [(MSG_USERAUTH_REQUEST, String("x") + String("ssh-connection") + String("none"))],
            [(MSG_DISCONNECT, UInt32(11) + String("") + String(""))],
        ],
    }
    logged_in = [who.encode() + b"\n" + framed(*parts) for who, inputs in said.items() for parts in inputs]
    return [
        *logged_in,
        b"stranger\nSSH-2.0-x comment\r\n" + in_clear(Byte(MSG_KEXINIT) + kexinit()),
        b"stranger\nGET / HTTP/1.1\r\n",
    ]


def in_clear(payload: bytes) -> bytes:
    """A packet as it is before there are keys (RFC 4253 section 6)."""
    padding = -(len(payload) + 5) % 8 + 8
    return UInt32(len(payload) + padding + 1) + Byte(padding) + payload + bytes(padding)


KINDS = b"""
    direct-tcpip forwarded-tcpip session x11 auth-agent@openssh.com direct-streamlocal@openssh.com tun@openssh.com tcpip-forward
    cancel-tcpip-forward streamlocal-forward@openssh.com keepalive@openssh.com hostkeys-prove-00@openssh.com sftp
    no-more-sessions@openssh.com pty-req shell exec subsystem env signal window-change break xon-xoff exit-status exit-signal
    eow@openssh.com x11-req ssh-connection ssh-userauth none publickey password keyboard-interactive hostbased
""".split()
NUMBERS = (*range(1, 8), 20, 21, 30, 31, *range(50, 54), 60, 61, 80, 81, 82, *range(90, 101))
"""Types of packets (RFC 4250 section 4.1)."""
WORDS = (
    *map(String, KINDS),
    *map(Byte, NUMBERS),
    *(f"{who}\n".encode() for who in ("stranger", "caller", "member", "endpoint")),
    *(b"PORT", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"SSH-2.0-", b"SSH-1.99-", String(b"\xed\xa0\x80")),
)
TARGETS = (Target("ssh", ssh, ssh_seeds, WORDS),)
