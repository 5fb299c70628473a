"""The HTTP API as clients other than ours see it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
import urllib3

from tests.conftest import Pair
from tests.support.services import answering, ask, free_port, serving

NEGATIVE = "ssh-rsa " + base64.b64encode(b"\0\0\0\x07ssh-rsa\0\0\0\x03\xff\0\1\0\0\1\1\0" + b"\xa7" * 256).decode()
"""An RSA key whose exponent is negative."""


def request(pair: Pair, method: str, path: str, *, user: str = "alice", token: str | None = None, **options: Any) -> Any:
    """One request; gives status and JSON body."""
    headers = {"Authorization": f"Bearer {token or pair.system.user(user)}", "Content-Type": "application/json"}
    headers |= options.pop("headers", {})
    response = urllib3.request(method, pair.system.url + path, headers=headers, retries=False, **options)
    return response.status, json.loads(response.data)


def post(pair: Pair, path: str, body: object, **options: Any) -> Any:
    return request(pair, "POST", path, body=json.dumps(body).encode(), **options)


def test_forward_list_stop(pair: Pair) -> None:
    """A forward is made, listed and stopped over HTTP, by the space's name and by its id."""
    local = free_port()
    with serving(answering(b"http")) as port:
        body = {"local_port": local, "space": "backend-api", "remote_port": port}
        status, made = post(pair, "/space-io/frontend/port/forward", body)
        assert status == 200
        assert made["local_port"] == local
        assert ask(local) == b"http"
        status, listing = request(pair, "GET", f"/space-io/{pair.frontend.id}/port/list")
        entry = next(forward for forward in listing["forwards"] if forward["local_port"] == local)
        assert (status, entry["mode"], entry["state"]) == (200, "direct", "listening")
        ports = [forward["local_port"] for forward in listing["forwards"]]
        assert ports == sorted(ports)
        assert post(pair, f"/space-io/{pair.frontend.id}/port/stop", {"local_port": local})[0] == 200
        assert post(pair, "/space-io/frontend/port/stop", {"local_port": local})[0] == 404


def test_conflicts(pair: Pair) -> None:
    """Not running and other zone are 409, each with its code."""
    pair.system.space("http-asleep", run=False)
    pair.system.space("http-far", zone="us", run=False)
    for target, code in (("http-asleep", "not_running"), ("http-far", "other_zone")):
        body = {"local_port": free_port(), "space": target, "remote_port": 1}
        status, problem = post(pair, "/space-io/frontend/port/forward", body)
        assert (status, problem["success"], problem["code"]) == (409, False, code)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/spaces"),
        ("POST", "/api/spaces"),
        ("PATCH", "/api/spaces/x"),
        ("DELETE", "/api/spaces/x"),
        ("POST", "/api/spaces/x/token"),
        ("GET", "/api/users"),
        ("POST", "/api/users"),
        ("DELETE", "/api/users/x"),
        ("GET", "/api/ca"),
        ("POST", "/api/certificates"),
        ("POST", "/space-io/x/port/forward"),
        ("GET", "/space-io/x/port/list"),
        ("POST", "/space-io/x/port/stop"),
        ("GET", "/metrics"),
    ],
)
def test_every_route_wants_a_token(pair: Pair, method: str, path: str) -> None:
    """Without a token, or with a wrong one, every route answers 401 before it looks at anything else."""
    response = urllib3.request(method, pair.system.url + path, retries=False)
    assert (response.status, response.json()["code"]) == (401, "not_authenticated")
    assert request(pair, method, path, token="knot_000000000000_00")[0] == 401


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nonsense", b"{", b'{"name": 1, "zone": "eu"}', b'{"name": "x"}', b"\xff", b"[" * 60_000]
)
def test_bad_bodies(pair: Pair, body: bytes) -> None:
    """A body that is not what the route wants is 400 with one line, never 500."""
    status, problem = request(pair, "POST", "/api/spaces", body=body)
    assert (status, problem["code"]) == (400, "bad_input")
    assert "\n" not in problem["error"]


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("POST", "/api/spaces", b"[]", "the body must be a JSON object"),
        ("PATCH", "/api/spaces/x", b"{}", "give a name, a zone or both"),
        ("POST", "/api/revocations", b'{"kind": "host"}', "kind: must be one of 'certificate', 'space'"),
        ("POST", "/api/revocations", b"{}", "kind: is missing"),
        ("POST", "/api/revocations", b'{"kind": "certificate", "serial": 1}', "serial: must be text"),
        ("POST", "/api/tokens", b'{"name": "x", "lifetime": 1}', "lifetime: must be greater than or equal to 60"),
        ("GET", "/api/audit?since=2026-11-20T09:30:00", None, "since: must name its time zone"),
        ("GET", "/api/audit?event=joined&event=left", None, "event: must be 'joined'"),
    ],
)
def test_what_is_wrong_is_said(pair: Pair, method: str, path: str, body: bytes | None, error: str) -> None:
    """Bad input is answered with what is wrong, by the name that the request has for it."""
    status, problem = request(pair, method, path, body=body)
    assert status == 400
    assert problem["error"].startswith(error)


def test_unknown_route(pair: Pair) -> None:
    """A path that is none, and a method that is none, are errors of the same form."""
    assert request(pair, "GET", "/nothing")[0] == 404
    status, problem = request(pair, "PUT", "/api/spaces")
    assert (status, problem["success"]) == (405, False)


def test_space_fields(pair: Pair) -> None:
    """A made space has the documented fields, its join token and the hub's address."""
    status, made = post(pair, "/api/spaces", {"name": "http-made", "zone": "eu"})
    assert status == 201
    fields = {"id", "name", "owner", "zone", "running", "agentless", "host_key", "host_keys", "created_at", "last_seen"}
    assert set(made) == fields | {"join_token", "hub"}
    assert post(pair, "/api/spaces", {"name": "http-made", "zone": "us"})[1]["code"] == "name_taken"


def test_certificates_for_people(pair: Pair) -> None:
    """A person's certificate has a principal for each zone they own spaces in; odd keys are bad input."""
    import asyncssh

    pair.system.space("http-us", zone="us", run=False)
    key = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    status, issued = post(pair, "/api/certificates", {"public_key": key, "lifetime": 60})
    assert status == 201
    assert issued["principals"] == ["alice@eu", "alice@us"]
    weak = asyncssh.generate_private_key("ssh-rsa", key_size=1024).export_public_key().decode()
    ca = request(pair, "GET", "/api/ca")[1]["user_ca"]
    for bad in (weak, ca, "nonsense", "ssh-ed25519 AAAA", NEGATIVE):
        assert post(pair, "/api/certificates", {"public_key": bad})[1]["code"] == "bad_input"


def test_health(pair: Pair) -> None:
    """/healthz needs no token."""
    assert urllib3.request("GET", pair.system.url + "/healthz").json() == {"status": "ok"}
