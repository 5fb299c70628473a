"""Who calls, and whether their token is good for the route.

Identification happens once, before the body is read (`Identify`); what comes of it waits until a route asks. Each route
declares which scopes besides `all` may call it (`Callers`); a route that declares none is for tokens of scope `all` alone.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Asgi

from knot_keys.waitingroom import network
from knot_server.actor import Actor, Scope
from knot_server.http.auditing import CALLER, address_of
from knot_server.settings import ServerSettings
from knot_ssh.buckets import Buckets, Pace
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, OutOfScope, RateLimited

BURST_SECONDS = 10
"""A token may ask for so long at once what it may in a second: a script that starts."""
DECLARED = "knot_scopes"
"""The attribute of a dependency that says which scopes it lets in."""
_bearer = HTTPBearer(
    auto_error=False, scheme_name="token", description="An API token, from `knot token create` or `knot user create`."
)
Authenticate = Callable[[str], Awaitable[Actor]]


class Identify:
    """ASGI middleware: finds out who calls, by the one `Authorization` header; a token anywhere else is none.

    Each token may ask so often; who shows tokens that are refused hears 429 instead of 401 after so many. A good token
    passes whatever others send from the same address: secrets of 256 bits are not guessed, and a flood from behind a NAT
    must not lock out who is there, too.
    """

    def __init__(
        self, app: ASGIApp, authenticate: Authenticate, on_use: Callable[[Actor], None], settings: ServerSettings
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._on_use = on_use
        self._requests = Buckets(Pace(settings.token_rate * BURST_SECONDS, settings.token_rate))
        self._failures = Buckets(Pace(settings.failed_token_rate, settings.failed_token_rate / 60))

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope[CALLER] = await self._caller(scope)
        await self._app(scope, receive, send)

    async def _caller(self, scope: Asgi) -> Actor | KnotError:
        try:
            token = _token(scope["headers"])
            actor = await self._authenticate(token) if token else None
        except NotAuthenticated as error:
            wait = _wait(self._failures, network(address_of(scope)))
            return RateLimited("too many tokens that are refused came from there", retry_after=wait) if wait else error
        except KnotError as error:
            return error
        if actor is None:
            return NotAuthenticated()
        actor = replace(actor, address=address_of(scope))
        self._on_use(actor)
        wait = _wait(self._requests, str(actor.token))
        return RateLimited("that token asks too often", retry_after=wait) if wait else actor


def callers(*scopes: Scope) -> Any:
    """The dependency of a route that tokens of these scopes may call, besides those of scope `all`; gives the Actor.

    It raises NotAuthenticated, or OutOfScope. Which space a token is good for is judged where spaces are looked up.
    """
    allowed = frozenset({Scope.ALL, *scopes})

    async def caller(request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Actor:
        found = request.scope.get(CALLER)
        if not isinstance(found, Actor):
            raise found if isinstance(found, KnotError) else NotAuthenticated
        if found.grant is None or found.grant.scope not in allowed:
            raise OutOfScope
        return found

    setattr(caller, DECLARED, allowed)
    return Depends(caller)


FULL = callers()
"""What a route takes that declares nothing else: tokens of scope `all`."""
READERS = callers(Scope.READ)
FORWARDERS = callers(Scope.FORWARDS)
VIEWERS = callers(Scope.READ, Scope.FORWARDS)


def _wait(buckets: Buckets, key: str) -> float:
    """Count one more, and give 0; or count nothing, and give the seconds until there is room for it."""
    now = time.monotonic()
    bucket = buckets.of(key, now)
    return 0.0 if bucket.spend(now) else bucket.wait(now)


def _token(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The bearer token (RFC 6750 section 2.1), if one was shown; raises NotAuthenticated or BadInput for what is none."""
    shown = [value for name, value in headers if name == b"authorization"]
    if not shown:
        return None
    if len(shown) > 1:
        raise BadInput("a request carries one Authorization header")
    scheme, _, token = shown[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise NotAuthenticated("the Authorization header must be `Bearer` and an API token")
    return token.strip(" ")
