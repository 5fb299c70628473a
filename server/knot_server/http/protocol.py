"""A connection of the HTTP API: uvicorn's on h11, with bounds on what somebody can hold open who says little or reads nothing.

A connection with nothing to answer waits in a room of bounded size, where the oldest of the busiest source makes way. What
is to arrive has a deadline that no byte extends.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from knot_keys.waitingroom import WaitingRoom
from knot_server.http.bodies import Problem
from knot_server.http.tls import Tls
from knot_server.settings import ServerSettings
from knot_ssh.errors import BadInput, KnotError, TooSlow

GRACE = 2.0
"""Seconds after the time for a body, in which the application says that it was too slow, before the connection is cut."""
HSTS = "max-age=31536000"
"""A browser that has been here once does not come without TLS for a year (RFC 6797 section 6.1.1)."""
HEADERS = [
    ("x-content-type-options", "nosniff"),
    ("cache-control", "no-store"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ("referrer-policy", "no-referrer"),
]
"""On every answer: it is what it says, nobody keeps it, and no page makes anything of it."""


class HttpConfig(uvicorn.Config):
    """uvicorn's, and what connections share."""

    def __init__(self, app: Any, settings: ServerSettings, tls: Tls | None, **options: Any) -> None:
        headers = [*HEADERS, ("strict-transport-security", HSTS)] if tls else HEADERS
        super().__init__(
            app,
            http=Entrance,
            ws="none",
            headers=headers,
            h11_max_incomplete_event_size=settings.max_http_head,
            proxy_headers=False,  # whoever connects could write them
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            **options,
        )
        self.settings = settings
        self.tls = tls
        self.room = WaitingRoom(settings.max_http_connections, "too many that ask nothing")


class Entrance(asyncio.Protocol):
    """A connection that has just come in: it is to become one of TLS first, where that is spoken, in so much time."""

    def __init__(self, config: HttpConfig, server_state: ServerState, app_state: dict[str, Any], **_loop: Any) -> None:
        self._config = config
        self._state = server_state
        self._protocol = Protocol(config, server_state, app_state)
        self._early = bytearray()
        self._is_lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self._config.tls is None:
            _hand_over(transport, self._protocol)
            return
        transport.pause_reading()
        self._state.connections.add(self)  # type: ignore[arg-type]
        self._config.room.enter(self, _peer(transport))
        task = asyncio.get_running_loop().create_task(self._secure(self._config.tls))
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def data_received(self, data: bytes) -> None:
        """What came along with the end of the handshake."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True

    def shutdown(self) -> None:
        """The server ends."""
        self.abort()

    def abort(self) -> None:
        self._transport.abort()

    async def _secure(self, tls: Tls) -> None:
        loop = asyncio.get_running_loop()
        seconds = self._config.settings.http_head_time
        try:
            secured = await loop.start_tls(
                self._transport,
                self,
                tls.context,
                server_side=True,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
        except OSError:  # also what TLS has to complain about: the peer's fault, and no news
            self.abort()
            return
        finally:
            self._config.room.leave(self)
            self._state.connections.discard(self)
        if secured is not None and not self._is_lost:
            _hand_over(secured, self._protocol, bytes(self._early))


class Protocol(H11Protocol):
    """A connection that speaks HTTP."""

    def __init__(self, config: HttpConfig, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self._settings = config.settings
        self._room = config.room
        self._stage = ""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._enter("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("gone")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """In pieces no larger than a head may be, so that one that comes at once is bounded, too."""
        size = self._settings.max_http_head
        for start in range(0, len(data), size):
            if not self.transport.is_closing():
                super().data_received(data[start : start + size])
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._enter("unread")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._look()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked; who has not even read the last answer does not keep us waiting."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def abort(self) -> None:
        """Make way for others."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, and hang up. What is no HTTP never comes to the application, and hears the same as everybody."""
        self._hang_up(BadInput(msg))

    def _look(self) -> None:
        """See what there is to wait for now."""
        if not self.flow.write_paused:
            self._enter(self._found())

    def _found(self) -> str:
        """`head` or `body`: it is still to arrive whole. `busy`: there is a request to answer. `idle`: there is none."""
        if self.transport.is_closing():
            return self._stage
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.cycle is not None and not self.cycle.response_complete:
            return "busy"
        is_new = self.cycle is None
        return "head" if is_new or self.conn.trailing_data[0] else "idle"

    def _enter(self, stage: str) -> None:
        """Be at another stage: with another deadline, and in the room or out of it."""
        if self._stage in {stage, "gone"}:
            return
        if stage in {"busy", "gone"}:
            self._room.leave(self)
        elif self._stage in {"", "busy"}:
            self._room.enter(self, _peer(self.transport))
        self._stage = stage
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self._timer(stage)

    def _timer(self, stage: str) -> asyncio.TimerHandle | None:
        head, body = self._settings.http_head_time, self._settings.http_body_time + GRACE
        match stage:
            case "head":
                return self.loop.call_later(head, self._too_slow)
            case "body" | "unread":
                return self.loop.call_later(body, self.abort)
            case _:
                return None

    def _too_slow(self) -> None:
        """A head that is not whole hears so; who has said nothing hears nothing."""
        if self.conn.trailing_data[0]:
            self._hang_up(TooSlow())
        else:
            self.transport.close()

    def _hang_up(self, error: KnotError) -> None:
        body = Problem(error=str(error), code=error.code).model_dump_json().encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (h11.Response(status_code=error.http_status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _hand_over(transport: asyncio.Transport, protocol: Protocol, early: bytes = b"") -> None:
    transport.set_protocol(protocol)
    protocol.connection_made(transport)
    if early:
        protocol.data_received(early)


def _peer(transport: asyncio.Transport) -> str:
    name = transport.get_extra_info("peername")
    return str(name[0]) if name else ""
