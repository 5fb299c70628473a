"""What the audit record hears of requests: who was turned away, and from where."""

from __future__ import annotations

import re
from http import HTTPStatus

from starlette.types import Scope

from knot_server.actor import Actor
from knot_server.usecases.audit import STRANGER, Audit
from knot_ssh.errors import KnotError

CALLER = "knot.caller"
"""Where in an ASGI scope it stands who calls: an Actor, or the error that a route which wants to know raises."""
REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
"""What is a refusal; that a thing does not exist, or does not fit, is an answer."""

_SECRET = re.compile(r"(knot(?:join)?_)[^/]*")
"""A token that somebody has put into the path, where none is ever taken."""


def caller_of(scope: Scope) -> Actor | None:
    """Who calls, if a good token was shown."""
    caller = scope.get(CALLER)
    return caller if isinstance(caller, Actor) else None


def address_of(scope: Scope) -> str:
    """Where the connection is from; nothing that a header says."""
    return str((scope.get("client") or ("-",))[0])


def note_refusal(audit: Audit, scope: Scope, error: KnotError) -> None:
    """Note that a request was refused, if it was: by its path without tokens, never by its query or a header."""
    if error.http_status not in REFUSED:
        return
    actor, address = caller_of(scope), address_of(scope)
    method, path = str(scope.get("method", "")), _SECRET.sub(r"\1…", str(scope.get("path", "")))
    who = {"owner": actor.owner, "actor": actor} if actor else {"actor": STRANGER}
    audit.refuse("http", error.code, address, **who, method=method, path=path, address=address)
