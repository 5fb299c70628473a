"""What is refused before a body is parsed."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from knot_server.http.bodies import Problem
from knot_ssh.errors import TooLarge

BODY_LIMIT = 64 * 1024
"""Bytes: a thousand forwards fit, nothing that could hurt does."""


class BodyLimit:
    """ASGI middleware: reads at most BODY_LIMIT bytes of a body, whatever its headers claim."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > BODY_LIMIT:
                problem = Problem(error=f"the body is larger than {BODY_LIMIT} bytes", code=TooLarge.code)
                await JSONResponse(problem.model_dump(), status_code=TooLarge.http_status)(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        await self._app(scope, _replay(bytes(body), receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand out the body that was read, then whatever follows."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay
