"""Errors as they leave: always in the same form."""

from __future__ import annotations

from starlette.responses import JSONResponse

from knot_server.http.bodies import Problem
from knot_ssh.errors import KnotError, NotAuthenticated

_HEADERS = {NotAuthenticated.http_status: {"WWW-Authenticate": "Bearer"}}
"""What a status must come with (RFC 9110 section 11.6.1)."""


def problem(error: KnotError) -> JSONResponse:
    """The answer to a request that failed with this error."""
    body = Problem(error=str(error), code=error.code)
    return JSONResponse(body.model_dump(), status_code=error.http_status, headers=_HEADERS.get(error.http_status))
