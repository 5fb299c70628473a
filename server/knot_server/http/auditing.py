"""What the audit record hears of requests: who was turned away, and from where."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import HTTPConnection

from knot_server.usecases.audit import STRANGER, Audit
from knot_ssh.errors import KnotError

REFUSED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.TOO_MANY_REQUESTS}
"""What is a refusal; that a thing does not exist, or does not fit, is an answer."""
ADDRESS_MAX = 64
"""Characters of an address, which a proxy may have put into a header."""


def address_of(request: HTTPConnection) -> str:
    """Where a request came from."""
    return request.client.host[:ADDRESS_MAX] if request.client else "-"


def note_refusal(audit: Audit, request: HTTPConnection, error: KnotError) -> None:
    """Note that a request was refused, if it was: by its path, never by its query or a header."""
    if error.http_status not in REFUSED:
        return
    actor, address = getattr(request.state, "actor", None), address_of(request)
    method, path = str(request.scope["method"]), str(request.scope["path"])
    who = {"owner": actor.owner, "actor": actor} if actor else {"actor": STRANGER}
    audit.refuse("http", error.code, address, **who, method=method, path=path, address=address)
