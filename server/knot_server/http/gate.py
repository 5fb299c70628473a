"""What is refused of a request by its head alone, before anybody asks who sends it.

A web page that somebody looks at can have their browser send requests to us. It cannot choose the `Host` under which we are
known, which stops DNS rebinding (its own name, made to lead to our address), nor hide that it is from elsewhere: browsers
say so in `Origin` (RFC 6454 section 7) and `Sec-Fetch-Site` (W3C Fetch Metadata section 2.4).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from knot_server.http.problems import Refuse
from knot_ssh.errors import BadInput, HostRefused, KnotError, OriginRefused

Headers = Sequence[tuple[bytes, bytes]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
OWN_SITES = {b"same-origin", b"none"}
"""What `Sec-Fetch-Site` says of a page of ours, and of what somebody typed."""
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{1,254}))(?::[0-9]{1,5})?")


def host_in(text: str) -> str | None:
    """The host of `host` or `host:port` (RFC 9112 section 3.2) in the one form that is compared; None for what is none."""
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    try:
        return str(ipaddress.IPv6Address(match["v6"]) if match["v6"] else ipaddress.IPv4Address(match["name"]))
    except ValueError:
        return None if match["v6"] else match["name"].lower().removesuffix(".")


def origin_of(url: str) -> str:
    """The origin of a URL (RFC 6454 section 4), as a browser writes it."""
    parts = urlsplit(url)
    port = "" if parts.port in {None, DEFAULT_PORTS.get(parts.scheme)} else f":{parts.port}"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


@dataclass(frozen=True, slots=True)
class Known:
    """Under which hosts and as which origin this server is known."""

    hosts: frozenset[str]
    origin: str

    @classmethod
    def of(cls, url: str, hosts: Sequence[str]) -> Known:
        """Those of its URL, these, and loopback."""
        named = (*LOOPBACK, urlsplit(url).hostname or "", *hosts)
        return cls(frozenset(host for name in named if (host := host_in(_bracketed(name)))), origin_of(url))


def refusal(scope: Scope, known: Known) -> KnotError | None:
    """Why a request is refused for its target, Host or origin; None where it may pass."""
    if not _is_origin_form(scope):
        return HostRefused("the target of a request must be a path: this server is no proxy")
    if not _is_known(_values(scope, b"host"), scope, known):
        return HostRefused()
    if any(value != known.origin.encode() for value in _values(scope, b"origin")):
        return OriginRefused()
    if any(value not in OWN_SITES for value in _values(scope, b"sec-fetch-site")):
        return OriginRefused()
    return None


def unknown_parameter(query: bytes, parameters: set[str]) -> KnotError | None:
    """Why a request is refused for its URL's query; None where its route knows every name in it."""
    names = {pair.partition(b"=")[0].decode("latin-1") for pair in query.split(b"&")} if query else set()
    if names <= parameters:
        return None
    return BadInput("this route takes no such parameter in its URL; a token goes into the Authorization header alone")


def _is_origin_form(scope: Scope) -> bool:
    """RFC 9112 section 3.2.1; `*`, of `OPTIONS *`, is no route either and is answered as one that is not there."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path.startswith(b"/") or path == b"*"


def _is_known(hosts: Sequence[bytes], scope: Scope, known: Known) -> bool:
    """Whether there is one Host, which is ours: a known one, or the very address that the connection was made to.

    No page can be served under an address of ours without being ours: rebinding needs a name.
    """
    host = host_in(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
    local = (scope.get("server") or ("",))[0]
    return host is not None and host in {*known.hosts, host_in(_bracketed(str(local)))}


def _values(scope: Scope, name: bytes) -> list[bytes]:
    headers: Headers = scope["headers"]
    return [value for key, value in headers if key == name]


def _bracketed(host: str) -> str:
    """An IPv6 address as it stands in a URL."""
    return f"[{host}]" if ":" in host else host


class Gate:
    """ASGI middleware: lets in what is meant for this server, from no page of another origin."""

    def __init__(self, app: ASGIApp, refuse: Refuse, known: Known, described: FastAPI) -> None:
        self._app = app
        self._refuse = refuse
        self._known = known
        self._described = described

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" else None
        app = self._refuse(scope, error) if error else self._app
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> KnotError | None:
        query: bytes = scope["query_string"]
        parameters = _parameters(self._described.openapi(), scope["path"]) if query else set()
        return refusal(scope, self._known) or unknown_parameter(query, parameters)


def _parameters(description: dict[str, Any], path: str) -> set[str]:
    """The names that this path's routes take in the query of its URL, by the API's description; with whatever method, for a
    method that it does not take is refused as such."""
    paths = (methods for template, methods in description["paths"].items() if compile_path(template)[0].fullmatch(path))
    taken = (parameter for methods in paths for route in methods.values() for parameter in route.get("parameters", ()))
    return {parameter["name"] for parameter in taken if parameter["in"] == "query"}
