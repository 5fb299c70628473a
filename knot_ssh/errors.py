"""Every error that a user can meet, as one hierarchy.

The class's docstring is the sentence shown when nobody had a better one. `code` names the error for scripts,
`http_status` and `exit_code` are what the HTTP API and the command line answer with. The receiving end of a request
turns a code back into the same class (`error_for`), so that the command line catches what the server raised.
`detail` is for the log alone.
"""

from __future__ import annotations

from typing import ClassVar

from knot_ssh.words import printable

SENTENCE_LIMIT = 1000
"""Characters of a sentence from the other side that are shown."""
EXIT_FAILED = 1
EXIT_USAGE = 2


class KnotError(Exception):
    """The request failed."""

    code: ClassVar[str] = "failed"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str = "", *, detail: str = "") -> None:
        super().__init__(message or _sentence(type(self)))
        self.detail = detail


def _sentence(kind: type[KnotError]) -> str:
    """The class's docstring as the end of a line: `knot: ` or a log's `reason=` stands before it."""
    text = " ".join((kind.__doc__ or "").split()).rstrip(".")
    return text[:1].lower() + text[1:]


class BadInput(KnotError):
    """That input is not valid."""

    code = "bad_input"
    http_status = 400
    exit_code = EXIT_USAGE


class TooLarge(BadInput):
    """That request is larger than this server takes."""

    code = "too_large"
    http_status = 413


class TooSlow(BadInput):
    """That request took too long to arrive."""

    code = "too_slow"
    http_status = 408


class NotJson(BadInput):
    """The body must be JSON, sent with `Content-Type: application/json`."""

    code = "not_json"
    http_status = 415


class NotAuthenticated(KnotError):
    """No API token was given: run `knot login --server URL --token TOKEN`, or set KNOT_TOKEN."""

    code = "not_authenticated"
    http_status = 401


class Forbidden(KnotError):
    """Only an administrator may do that."""

    code = "forbidden"
    http_status = 403


class OutOfScope(Forbidden):
    """This API token is not good for that: it was made for less; `knot token list` shows what each is good for."""

    code = "out_of_scope"


class HostRefused(Forbidden):
    """This server is not known under the host that the request names; its settings `url` and `hosts` say under which it is."""

    code = "host_refused"


class OriginRefused(Forbidden):
    """This server takes no requests from web pages of other origins."""

    code = "origin_refused"


class NotFound(KnotError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class MethodNotAllowed(KnotError):
    """This route does not take that method; /openapi.json lists them all."""

    code = "method_not_allowed"
    http_status = 405


class Conflict(KnotError):
    """That does not fit the present state."""

    code = "conflict"
    http_status = 409


class NotRunning(Conflict):
    """That space is not running."""

    code = "not_running"


class OtherZone(Conflict):
    """Those spaces are in different zones."""

    code = "other_zone"


class PortTaken(Conflict):
    """That local port is taken by another process."""

    code = "port_taken"


class HeldByFile(Conflict):
    """That forward is made by the agent's settings file; change it there."""

    code = "held_by_file"


class StillInUse(Conflict):
    """Somebody still depends on the key that is to be replaced."""

    code = "still_in_use"


class NameTaken(Conflict):
    """That name is taken."""

    code = "name_taken"


class JoinRefused(KnotError):
    """The hub refused the join token; make a new one with `knot space token NAME`."""

    code = "join_refused"
    http_status = 403


class KeyRefused(KnotError):
    """The hub no longer accepts this space's key: the space was deleted or revoked, or has joined again from elsewhere.
    To take its place make a new token with `knot space token NAME`."""

    code = "key_refused"
    http_status = 403


class RateLimited(KnotError):
    """That is too often; wait, then try again."""

    code = "rate_limited"
    http_status = 429

    def __init__(self, message: str = "", *, detail: str = "", retry_after: float = 1) -> None:
        super().__init__(message, detail=detail)
        self.retry_after = retry_after
        """Seconds until it is worth another try."""


class Unavailable(KnotError):
    """The other side did not answer; try again."""

    code = "unavailable"
    http_status = 503


class StoreUnavailable(Unavailable):
    """The store did not answer; try again."""

    code = "store_unavailable"


class KrlUnavailable(Unavailable):
    """The server cannot make a key revocation list: OpenSSH's `ssh-keygen` is not installed there."""

    code = "krl_unavailable"


class LooseFile(KnotError):
    """A secret file can be read by others."""

    code = "loose_file"


def _classes(base: type[KnotError]) -> dict[str, type[KnotError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _classes(child)
    return found


def codes() -> list[str]:
    """The codes of all errors there are."""
    return sorted(_classes(KnotError))


def error_for(code: str, message: str) -> KnotError:
    """The error that the other side raised. An unknown code gives the base class, never a failure of its own."""
    return _classes(KnotError).get(code, KnotError)(printable(message, SENTENCE_LIMIT))
