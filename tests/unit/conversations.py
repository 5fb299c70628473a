"""Two real peers that talk over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping

from knot_ssh.rpc import LINE_LIMIT, Method, Peer

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def streams() -> AsyncIterator[tuple[Stream, Stream]]:
    """Both ends of a connection; closed at the end, whatever became of them."""
    ends = [await asyncio.open_connection(sock=sock, limit=LINE_LIMIT) for sock in socket.socketpair()]
    try:
        yield ends[0], ends[1]
    finally:
        for _, writer in ends:
            writer.close()
        for _, writer in ends:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[asyncio.Task[None]]:
    """Run a peer; it is closed and has ended when this is left."""
    running = asyncio.ensure_future(peer.run())
    try:
        yield running
    finally:
        peer.close()
        await running


@contextlib.asynccontextmanager
async def conversation(left: Mapping[str, Method], right: Mapping[str, Method]) -> AsyncIterator[tuple[Peer, Peer]]:
    """Two running peers that answer these methods."""
    async with streams() as (one, other):
        peers = Peer(*one, left), Peer(*other, right)
        async with serving(peers[0]), serving(peers[1]):
            yield peers
