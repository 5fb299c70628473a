"""What is refused before a body is parsed."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from knot_server.http import strictjson
from knot_server.http.problems import problem
from knot_server.refusals import Refusals
from knot_ssh.errors import BadInput, KnotError, NotJson, TooLarge

BODY_LIMIT = 512 * 1024
"""Bytes: as many forwards as a space may have fit, with the longest names and on lines of their own."""


class BodyRules:
    """ASGI middleware: bodies are JSON, and at most BODY_LIMIT bytes long whatever their headers claim.

    A web page cannot send `application/json` to another site without being asked first (CORS), so that the rule also
    keeps pages from posting here.
    """

    def __init__(self, app: ASGIApp, refusals: Refusals) -> None:
        self._app = app
        self._refusals = refusals

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
                await self._refuse(TooLarge(f"the body is larger than {BODY_LIMIT} bytes"))(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        if body and not _is_json(scope):
            await self._refuse(NotJson())(scope, receive, send)
            return
        try:
            strictjson.check(bytes(body))
        except BadInput as error:
            await self._refuse(error)(scope, receive, send)
            return
        await self._app(scope, _replay(bytes(body), receive), send)

    def _refuse(self, error: KnotError) -> ASGIApp:
        self._refusals.count(error.code)
        return problem(error)


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
