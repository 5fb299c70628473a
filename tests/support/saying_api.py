"""A real HTTP server that says what it is told to, as a hostile or broken server would."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import asyncssh

from knot_keys.authority import Authority
from knot_keys.identity import Identity
from knot_ssh.names import Owner, Zone

EMPTY_KRL = bytes.fromhex("5353484b524c0a00 00000001 0000000000000000 0000000000000000 0000000000000000 00000000 00000000")
"""Magic, version of the format, and a header that revokes nothing (PROTOCOL.krl)."""
Answer = Callable[[dict[str, Any]], Any]


class SayingApi(ThreadingHTTPServer):
    """Answers as a good server of one CA would; a test puts something else into `answers`, by path."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.authority = authority
        self.asked: list[str] = []
        self.spaces: list[dict[str, Any]] = []
        self.lifetime = 3600
        self.answers: dict[str, Answer] = {
            "/api/ca": lambda _: {"user_ca": authority.user_ca, "host_ca": authority.host_ca, "hub": "127.0.0.1:2222"},
            "/api/spaces": lambda _: {"spaces": self.spaces},
            "/api/certificates": self.certify,
            "/api/krl": lambda _: EMPTY_KRL,
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def certify(self, order: dict[str, Any], owner: str = "alice", zones: tuple[str, ...] = ("eu",)) -> dict[str, Any]:
        """What a good server answers to this order."""
        key = asyncssh.import_public_key(order["public_key"])
        identity = Identity.person(Owner(owner), [Zone(zone) for zone in zones])
        lifetime = min(order.get("lifetime", self.lifetime), self.lifetime)
        return {"certificate": self.authority.certify_client(key, identity, lifetime).line}


class Status:
    """An answer with another status than 200."""

    def __init__(self, status: int, body: Any) -> None:
        self.status = status
        self.body = body


class _Handler(BaseHTTPRequestHandler):
    server: SayingApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        answer = self.server.answers[self.path](json.loads(sent) if sent else {})
        status, body = (answer.status, answer.body) if isinstance(answer, Status) else (200, answer)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have nothing to say."""


@contextlib.contextmanager
def saying_api(authority: Authority) -> Iterator[SayingApi]:
    """The server on a free port, in threads that are joined at the end."""
    with SayingApi(authority) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
