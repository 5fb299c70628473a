"""The HTTP API's client, synchronous, for the command line and for scripts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

import urllib3

from knot_ssh.addresses import is_server_url
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, Unavailable, error_for
from knot_ssh.trust import BY_SYSTEM, Trust

ANSWER_LIMIT = 1 << 26
"""Bytes of an answer: a list of 100,000 spaces, or of a million revoked serials, is shorter."""
GATEWAY_STATUSES = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
"""How a proxy says, in words of its own, that the server is away."""

Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds to wait for a connection, and for each part of an answer."""

    connect: float = 5
    read: float = 30


USUAL = Patience()


class Api:
    """One server, as one user. Every method raises the error that the server answered with, or Unavailable."""

    def __init__(self, server: str, token: str, patience: Patience = USUAL, trust: Trust = BY_SYSTEM) -> None:
        """`server` is the URL; raises BadInput for anything else. The token is sent in a header alone, and over TLS unless
        to this machine."""
        if "@" in server:
            raise BadInput("the server's URL must hold no name and no password: the API token says who you are")
        if not is_server_url(server):
            raise BadInput(
                f"the server {server[:80]!r} is not a URL like https://knot.example.com; did you mean http://{server[:80]}?"
                if "://" not in server
                else f"the server {server[:80]!r} is not a URL like https://knot.example.com"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAuthenticated("the API token is not one: it must be copied whole, without spaces")
        trust.check(server)
        self._server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        timeout = urllib3.Timeout(connect=patience.connect, read=patience.read)
        context = trust.context() if server.startswith("https:") else None
        self._pool = urllib3.PoolManager(retries=False, timeout=timeout, ssl_context=context)

    def close(self) -> None:
        """Close the connections that are kept for further requests; the client may still be used."""
        self._pool.clear()

    def get(self, *path: str, query: Query = ()) -> Any:
        """`query`: pairs of a parameter and its value. No secret goes there."""
        return self._call("GET", path, query=query)

    def get_bytes(self, *path: str) -> bytes:
        """What stands there, as it is."""
        status, data = self._request("GET", path)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _error(self._parsed(data, status), status)
        return data

    def post(self, *path: str, body: Any) -> Any:
        return self._call("POST", path, body)

    def patch(self, *path: str, body: Any) -> Any:
        return self._call("PATCH", path, body)

    def delete(self, *path: str) -> Any:
        return self._call("DELETE", path)

    def _call(self, method: str, path: tuple[str, ...], body: Any = None, query: Query = ()) -> Any:
        status, data = self._request(method, path, None if body is None else json.dumps(body).encode(), query)
        answer = self._parsed(data, status)
        if status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _error(answer, status)
        return answer

    def _request(self, method: str, path: tuple[str, ...], data: bytes | None = None, query: Query = ()) -> tuple[int, bytes]:
        """The answer's status and body."""
        url = "/".join([self._server, *(quote(step, safe="") for step in path)]) + ("?" + urlencode(query) if query else "")
        try:
            response = self._pool.request(
                method, url, body=data, headers=self._headers, redirect=False, preload_content=False, decode_content=False
            )
            body = bytes(response.read(ANSWER_LIMIT + 1))
        except urllib3.exceptions.SSLError as error:
            raise KnotError(f"the server at {self._server} cannot be trusted: {_distrust(error)}") from None
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the server at {self._server} did not answer: {_cause(error)}") from None
        if len(body) > ANSWER_LIMIT:
            response.close()
            raise KnotError(f"{self._server} answered more than {ANSWER_LIMIT} bytes")
        return response.status, body

    def _parsed(self, data: bytes, status: int) -> Any:
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            if status in GATEWAY_STATUSES:
                raise Unavailable(f"the server behind {self._server} did not answer: its gateway says {status}") from None
            raise KnotError(f"{self._server} is not a knot server: it answered {status} without JSON") from None


def _error(answer: Any, status: int) -> KnotError:
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return error_for(str(answer.get("code")), answer["error"])
    return KnotError(f"the server answered {status}")


def _distrust(error: urllib3.exceptions.SSLError) -> str:
    """What is wrong with the server's certificate, and what to do."""
    reason = str(getattr(error.args[0] if error.args else None, "verify_message", "") or "")
    if not reason:
        return "it does not speak TLS as we do; is that an https server?"
    return f"{reason.rstrip('.')}. Where it has a CA of its own, name that: `knot login --ca FILE`, or KNOT_CA_FILE"


def _cause(error: urllib3.exceptions.HTTPError) -> str:
    """The shortest true sentence in urllib3's message."""
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused" if "refused" in str(error) else "no connection"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "what listens there does not speak HTTP, or hung up"
    return str(error).rsplit(": ", 1)[-1]
