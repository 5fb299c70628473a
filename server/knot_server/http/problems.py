"""Errors as they leave: always in the same form, counted in one place."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse
from starlette.types import Scope

from knot_server.http.auditing import note_refusal
from knot_server.http.bodies import Problem
from knot_server.refusals import Refusals
from knot_server.usecases.audit import Audit
from knot_ssh.errors import KnotError, NotAuthenticated, RateLimited


def problem(error: KnotError) -> JSONResponse:
    """The answer to a request that failed with this error."""
    body = Problem(error=str(error), code=error.code)
    return JSONResponse(body.model_dump(), status_code=error.http_status, headers=_headers(error))


class Refuse:
    """Answers with a problem, counts it, and notes who was turned away; every error of every layer comes by here."""

    def __init__(self, refusals: Refusals, audit: Audit) -> None:
        self._refusals = refusals
        self._audit = audit

    def __call__(self, scope: Scope, error: KnotError) -> JSONResponse:
        self._refusals.count(error.code)
        note_refusal(self._audit, scope, error)
        return problem(error)


def _headers(error: KnotError) -> dict[str, str] | None:
    """What an answer must come with (RFC 9110 sections 11.6.1 and 10.2.3)."""
    if isinstance(error, NotAuthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return {"Retry-After": str(math.ceil(error.retry_after))}
    return None
