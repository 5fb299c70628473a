"""What is refused of a body before a route sees it, and how it is read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from knot_server.http.auditing import caller_of
from knot_server.http.jsonrules import check_json
from knot_server.http.problems import Refuse
from knot_server.settings import ServerSettings
from knot_ssh.errors import KnotError, NotJson, TooLarge, TooSlow, Unavailable


@dataclass(slots=True)
class _Body:
    """What has come of a body; of who is not known the size alone."""

    is_kept: bool
    data: bytearray
    size: int = 0

    def add(self, chunk: bytes) -> int:
        """Take a part; gives how many bytes more are held."""
        self.size += len(chunk)
        if not self.is_kept:
            return 0
        self.data += chunk
        return len(chunk)


class BodyRules:
    """ASGI middleware: bodies are JSON, at most so long whatever their headers claim, and here in time.

    A web page cannot send `application/json` to another site without being asked first (CORS), so that the rule also
    keeps pages from posting here. The body of who has shown no good token is thrown away as it comes: strangers have us hold
    nothing. All that is held together is bounded, too.
    """

    def __init__(self, app: ASGIApp, refuse: Refuse, settings: ServerSettings) -> None:
        self._app = app
        self._refuse = refuse
        self._settings = settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(caller_of(scope) is not None, bytearray())
        try:
            await self._serve(body, scope, receive, send)
        finally:
            self._held -= len(body.data)

    async def _serve(self, body: _Body, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._settings.http_body_time):
                is_whole = await self._read(body, receive)
            self._check(body, scope)
        except TimeoutError:
            await self._refuse(scope, TooSlow())(scope, receive, send)
        except KnotError as error:
            await self._refuse(scope, error)(scope, receive, send)
        else:
            if is_whole:
                await self._app(scope, _replay(bytes(body.data), receive), send)

    async def _read(self, body: _Body, receive: Receive) -> bool:
        """Read to the end; gives whether it came. Raises TooLarge, or Unavailable where others hold too much already."""
        settings = self._settings
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return False
            self._held += body.add(message.get("body", b""))
            if body.size > settings.max_body:
                raise TooLarge(f"the body is larger than {settings.max_body} bytes")
            if self._held > settings.max_bodies:
                raise Unavailable("the server holds as many requests as it can; try again")
            if not message.get("more_body", False):
                return True

    def _check(self, body: _Body, scope: Scope) -> None:
        if body.size and not _is_json(scope):
            raise NotJson
        if body.data:
            check_json(bytes(body.data), self._settings.max_nesting)


def _is_json(scope: Scope) -> bool:
    """Whether the request says that its body is JSON."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return [kind.partition(b";")[0].strip().lower() for kind in kinds] == [b"application/json"]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out the body that was read, then whatever follows."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
