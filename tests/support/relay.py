"""A network that fails: a TCP relay to a port of this machine, whose connections can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

from tests.support.services import TIMEOUT

SOON = 0.01
LINGER_RESET = struct.pack("ii", 1, 0)


class Half(asyncio.Protocol):
    """One side of a relayed connection: what it reads, the other writes. Unless both end, both are reset."""

    def __init__(self, relay: Relay, other: Half | None = None) -> None:
        self._relay = relay
        self._is_cut = False
        self.other = other
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._relay.halves.add(self)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        if self.other is None:
            transport.pause_reading()
            self._relay.dial(self)
        elif self.other in self._relay.halves:
            self.other.other = self
            self.other.transport.resume_reading()
        else:  # it was lost meanwhile
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.other and not self._is_cut:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.halves.discard(self)
        if self.other:
            self.other.transport.abort()

    def end(self) -> None:
        """End this side with FIN, and drop what is read from now on: the other side ends by itself."""
        self._is_cut = True
        if not self.transport.is_closing():
            self.transport.write_eof()


class Relay:
    """Carries each connection to `port` on to another port."""

    def __init__(self, to_port: int) -> None:
        self.halves: set[Half] = set()
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._dials: set[asyncio.Task[None]] = set()

    def cut(self, how: str) -> None:
        """End every connection: by `reset`; or by `fin`, as if both peers had ended in the middle of what they say."""
        asyncio.run_coroutine_threadsafe(self._cut(how), self._loop).result(TIMEOUT)

    def lead_to(self, port: int) -> None:
        """Carry new connections to another port."""
        self._to_port = port

    def dial(self, near: Half) -> None:
        """Find the other half for this one."""
        task = self._loop.create_task(self._dial(near))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    def run(self) -> None:
        """Relay until `stop`."""
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        server = await self._loop.create_server(lambda: Half(self), sock=self._listener)
        await self._stop.wait()
        server.close()
        await asyncio.sleep(SOON)  # what has been accepted just now becomes a half
        while self.halves or self._dials:
            await asyncio.gather(*self._dials)
            await self._cut("reset")
            await asyncio.sleep(SOON)

    async def _dial(self, near: Half) -> None:
        try:
            await self._loop.create_connection(lambda: Half(self, near), "127.0.0.1", self._to_port)
        except OSError:
            near.transport.abort()

    async def _cut(self, how: str) -> None:
        for half in list(self.halves):
            if how == "fin":
                half.end()
            else:
                half.transport.abort()


@contextlib.contextmanager
def relaying(to_port: int) -> Iterator[Relay]:
    """A relay in a thread of its own."""
    relay = Relay(to_port)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join()
