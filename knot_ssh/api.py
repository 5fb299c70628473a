"""The HTTP API's client, synchronous, for the command line and for scripts."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import urllib3

from knot_ssh.addresses import is_server_url
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, Unavailable, error_for

CONNECT_SECONDS = 5
READ_SECONDS = 30


class Api:
    """One server, as one user. Every method raises the error that the server answered with, or Unavailable."""

    def __init__(self, server: str, token: str) -> None:
        """`server` is the URL; raises BadInput for anything else. The token is sent in a header alone."""
        if not is_server_url(server):
            raise BadInput(
                f"the server {server[:80]!r} is not a URL like https://knot.example.com; did you mean http://{server[:80]}?"
                if "://" not in server
                else f"the server {server[:80]!r} is not a URL like https://knot.example.com"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise NotAuthenticated("the API token is not one: it must be copied whole, without spaces")
        self._server = server.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self._pool = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS))

    def close(self) -> None:
        """Close the connections that are kept for further requests; the client may still be used."""
        self._pool.clear()

    def get(self, *path: str) -> Any:
        return self._call("GET", path)

    def post(self, *path: str, body: Any) -> Any:
        return self._call("POST", path, body)

    def patch(self, *path: str, body: Any) -> Any:
        return self._call("PATCH", path, body)

    def delete(self, *path: str) -> Any:
        return self._call("DELETE", path)

    def _call(self, method: str, path: tuple[str, ...], body: Any = None) -> Any:
        url = "/".join([self._server, *(quote(step, safe="") for step in path)])
        data = None if body is None else json.dumps(body).encode()
        try:
            response = self._pool.request(method, url, body=data, headers=self._headers, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"the server at {self._server} did not answer: {_cause(error)}") from None
        try:
            answer = json.loads(response.data)
        except (ValueError, RecursionError):
            raise KnotError(f"{self._server} is not a knot server: it answered {response.status} without JSON") from None
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _error(answer, response.status)
        return answer


def _error(answer: Any, status: int) -> KnotError:
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        return error_for(str(answer.get("code")), answer["error"])
    return KnotError(f"the server answered {status}")


def _cause(error: urllib3.exceptions.HTTPError) -> str:
    """The shortest true sentence in urllib3's message."""
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        return "connection refused" if "refused" in str(error) else "no connection"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "what listens there does not speak HTTP, or hung up"
    return str(error).rsplit(": ", 1)[-1]
