"""How the API describes itself: what each route may answer, and examples of it. Clients are generated from this."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from knot_server.http.bodies import Problem

Answers = dict[int | str, dict[str, Any]]

_PROBLEMS: dict[int, tuple[str, str, str]] = {
    400: ("Bad input.", "bad_input", "local_port: must be less than or equal to 65535"),
    401: ("No API token, or one that is not accepted.", "not_authenticated", "no API token was given"),
    403: (
        "Not by this caller: only an administrator may, or the token is not good for it; or not by this Host or Origin.",
        "out_of_scope",
        "this API token is not good for that: it was made for less",
    ),
    404: (
        "No such thing of yours.",
        "not_found",
        "there is no space 'backend' of yours",
    ),
    408: ("The request took too long to arrive.", "too_slow", "that request took too long to arrive"),
    409: (
        "It does not fit the present state; `code` says why.",
        "not_running",
        "the space 'backend-api' is not running",
    ),
    413: ("The body is too large.", "too_large", "the body is larger than 524288 bytes"),
    415: ("The body is not sent as application/json.", "not_json", "the body must be JSON, sent with that content type"),
    429: ("Too often; `Retry-After` says for how many seconds to wait.", "rate_limited", "that token asks too often"),
    503: ("The store, or the agent of the space, did not answer.", "unavailable", "the agent of that space did not answer"),
}
"""What each status means, and a code and a sentence that may come with it."""
_PROBLEM_SCHEMA = {"$ref": f"#/components/schemas/{Problem.__name__}"}
_ALWAYS = (400, 403, 408, 413, 415, 429, 503)

COUNTERS = {
    "sent": 5120, "received": 1048576, "open": 1, "total": 12, "refused": 0, "last_error": None,
    "since": "2026-11-20T09:30:00Z",
}  # fmt: skip
FORWARD = {
    "local_port": 8080, "bind": "127.0.0.1", "origin": "command", "space": "backend-api",
    "space_id": "3f0c2a9e-5b1d-4c7e-8a66-0d9b7e1f2c34", "remote_port": 3000, "persistent": False, "mode": "direct",
    "state": "listening", "reason": None, "address": "10.0.0.7:2022", "counters": COUNTERS,
    "link": {**COUNTERS, "up_since": "2026-11-20T09:30:00Z", "round_trip": 0.0004},
}  # fmt: skip
FORWARD_REQUEST = {"local_port": 8080, "space": "backend-api", "remote_port": 3000, "persistent": False, "force": False}
APPLY_REQUEST = {
    "forwards": [FORWARD_REQUEST, {"local_port": 5432, "space": "database", "remote_port": 5432}],
    "dry_run": False,
}
APPLIED = {
    "applied": [{"local_port": 8080, "space": "backend-api", "remote_port": 3000, "persistent": False}],
    "stopped": [{"local_port": 9090, "space": "old-service", "remote_port": 8080, "persistent": False}],
    "errors": [{"local_port": 5432, "error": "port 5432 is taken by another process on this space", "code": "port_taken"}],
}
SPACE = {
    "id": "3f0c2a9e-5b1d-4c7e-8a66-0d9b7e1f2c34", "name": "backend-api", "owner": "alice", "zone": "eu", "running": True,
    "agentless": False, "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE",
    "host_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE"], "created_at": "2026-11-20T09:00:00Z",
    "last_seen": "2026-11-20T09:30:00Z",
}  # fmt: skip
JOIN_TOKEN = {"join_token": "knotjoin_…", "hub": "knot.example.com:2222"}
API_TOKEN = {
    "id": "0123456789ab", "name": "ci", "user": "alice", "scope": "forwards", "space": "frontend",
    "space_id": "3f0c2a9e-5b1d-4c7e-8a66-0d9b7e1f2c34", "created_at": "2026-11-20T09:00:00Z",
    "expires_at": "2027-02-18T09:00:00Z", "last_used": None,
}  # fmt: skip
USER = {"name": "alice", "admin": False, "created_at": "2026-11-20T09:00:00Z"}
CA = {
    "user_ca": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE1",
    "host_ca": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE2",
    "hub": "knot.example.com:2222",
    "hub_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE3",
    "user_cas": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE1"],
    "host_cas": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE2"],
    "hub_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLE3"],
    "endorsement": None,
}
ROTATION = {
    "what": "host-ca",
    "phase": "prepared",
    "since": "2026-11-20T09:30:00Z",
    "active": "SHA256:1ExAmPlE0fAFiNgErPrInTaaaaaaaaaaaaaaaaaaaaaa",
    "next": "SHA256:2ExAmPlE0fAFiNgErPrInTaaaaaaaaaaaaaaaaaaaaaa",
    "old": None,
    "due": "activate",
    "dependents": [
        {"kind": "spaces", "text": "spaces that do not know the new key yet", "count": 1, "names": ["alice/backend-api"]}
    ],
}
CERTIFICATE = {
    "certificate": "ssh-ed25519-cert-v01@openssh.com AAAAIHNzaC1lZDI1NTE5LWNlcnQtdjAxQG9wZW5zc2guY29tEXAMPLE",
    "principals": ["alice@eu"],
    "expires_at": "2026-11-20T10:30:00Z",
}
AUDIT = {
    "id": 17, "at": "2026-11-20T09:30:00.250000Z", "event": "forward made", "actor": "alice", "owner": "alice",
    "space": "frontend", "space_id": "3f0c2a9e-5b1d-4c7e-8a66-0d9b7e1f2c34", "by": "api", "by_token": "5f0e6b1c2d3a",
    "address": "203.0.113.9",
    "local_port": 8080, "remote_port": 3000, "target": "backend-api", "target_id": "8c5d9d0e-36b1-4b3e-9d43-5c0c3a1b2f6e",
    "persistent": True,
}  # fmt: skip
VOIDED = {"certificates": 2, "keys": 1, "join_tokens": 0, "api_tokens": 0, "agents_told": 12}
REVOCATION = {
    "kind": "certificate", "what": "8143579713041237043", "owner": "alice",
    "key_id": "agent/alice/eu/backend-api/3f0c2a9e-5b1d-4c7e-8a66-0d9b7e1f2c34", "reason": "laptop lost",
    "until": "2026-11-20T10:30:00Z",
}  # fmt: skip
KRL = "SSHKRL\n\u0000…"
DONE = {"success": True}
EXAMPLE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKPpS1dRVw4rsMfwXFH9ML5HbUaP6vfiUDb7oZDIEp2I"
METRICS = """\
# HELP knot_agents_connected Agents that are connected to the hub.
# TYPE knot_agents_connected gauge
knot_agents_connected 2.0
"""

TAGS = [
    {"name": "forwards", "description": "Ports of one space that lead to ports of another."},
    {"name": "spaces", "description": "Named environments, each with an agent."},
    {"name": "users", "description": "Who owns spaces; administrators make and delete them."},
    {"name": "tokens", "description": "API tokens: what each is good for, and until when."},
    {"name": "certificates", "description": "The certificate authorities, and certificates for people."},
    {"name": "rotations", "description": "Changing the CAs and the hub's host key for others; for administrators."},
    {"name": "revocations", "description": "What is void before its time."},
    {"name": "server", "description": "How the server itself is."},
]


def answers(example: object, *problems: int, status: int = 200) -> Answers:
    """What a route may answer: an example of its success, and the problems it may find besides those of every route."""
    return {
        status: {"description": "Success.", "content": {"application/json": {"example": _whole(example)}}},
        **{number: _problem(number) for number in sorted({*problems, *_ALWAYS})},
    }


def plain(example: str, *problems: int) -> Answers:
    """The same for a route whose success is plain text."""
    return _other("text/plain", {"type": "string"}, example, *problems)


def binary(example: str, *problems: int) -> Answers:
    """The same for a route whose success is bytes."""
    return _other("application/octet-stream", {"type": "string", "format": "binary"}, example, *problems)


def _other(kind: str, schema: dict[str, str], example: str, *problems: int) -> Answers:
    """A route whose success is no JSON."""
    content = {kind: {"schema": schema, "example": example}}
    return answers(example, *problems) | {200: {"description": "Success.", "content": content}}


def _problem(status: int) -> dict[str, Any]:
    description, code, error = _PROBLEMS[status]
    example = {"success": False, "error": error, "code": code}
    return {"description": description, "content": {"application/json": {"schema": _PROBLEM_SCHEMA, "example": example}}}


def operation_id(route: APIRoute) -> str:
    """The function's name: what a generated client calls its method."""
    return route.name


class Api(FastAPI):
    """Describes itself as it behaves: what FastAPI would answer with 422 is 400 here."""

    def setup(self) -> None:
        """Add the route of the description. It wants no token: so it is written out once, and not for each who asks."""

        async def describe(_request: Request) -> Response:
            return Response(self._written, media_type="application/json")

        self.add_route("/openapi.json", describe, include_in_schema=False)

    @cached_property
    def _written(self) -> bytes:
        return bytes(JSONResponse(self.openapi()).body)

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            description = super().openapi()
            for methods in description["paths"].values():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    for answer in operation["responses"].values():
                        _unpack(answer["content"])
            schemas = description["components"]["schemas"]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            schemas[Problem.__name__] = Problem.model_json_schema()
            self.openapi_schema = description
        return self.openapi_schema


def _whole(example: object) -> str:
    """An example as text: FastAPI would leave out what is null."""
    return json.dumps(example)


def _unpack(content: dict[str, dict[str, Any]]) -> None:
    """The same back again."""
    media = content.get("application/json", {})
    if isinstance(media.get("example"), str):
        media["example"] = json.loads(media["example"])


def body(example: dict[str, Any]) -> dict[str, Any]:
    """What is said of a route's body besides its form."""
    return {"requestBody": {"content": {"application/json": {"example": example}}}}
