"""A web page in the browser of somebody who can reach the HTTP API: DNS rebinding, requests across sites."""

from __future__ import annotations

import json

import pytest
import urllib3

from tests.conftest import Pair
from tests.support.figures import Figure

EVIL = "evil.example"
ROUTES = ("/api/spaces", "/healthz", "/openapi.json", "/metrics", "/nothing")
UNASKED = ("text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x")
"""What a page may post anywhere."""


def new_space(name: str) -> bytes:
    return json.dumps({"name": name, "zone": "eu"}).encode()


def asked(pair: Pair, path: str = "/api/spaces", body: bytes | None = None, token: bool = True, **headers: str) -> int:
    """Status of the answer to a request with these headers besides a good token."""
    known = {"Authorization": f"Bearer {pair.system.user('alice')}"} if token else {}
    method = "POST" if body is not None else "GET"
    headers = known | {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request(method, pair.system.url + path, body=body, headers=headers, retries=False, timeout=20).status


@pytest.mark.threat(13, "DNS rebinding: a foreign Host", "403, whatever else is right")
@pytest.mark.parametrize("host", [EVIL, f"{EVIL}:3000", f"127.0.0.1.{EVIL}", "0.0.0.0", "[::]"])
def test_foreign_host(pair: Pair, figure: Figure, host: str) -> None:
    """A page whose name leads to our address is refused by that name, on every route."""
    statuses = [asked(pair, path, Host=host) for path in ("/api/spaces", "/healthz", "/openapi.json", "/metrics", "/nothing")]
    figure(f"{statuses.count(403)} of {len(statuses)} refused")
    assert statuses == [403] * len(statuses)


@pytest.mark.threat(13, "CSRF: a foreign Origin", "403, whatever else is right")
@pytest.mark.parametrize("origin", [f"http://{EVIL}", f"https://{EVIL}", "null", "http://127.0.0.1:1"])
def test_foreign_origin(pair: Pair, figure: Figure, origin: str) -> None:
    """A request that a page of another site makes is refused, also one that only reads."""
    post = asked(pair, body=new_space("read-alone"), Content_Type="application/json", Origin=origin)
    statuses = [asked(pair, Origin=origin), post]
    figure(f"{statuses.count(403)} of {len(statuses)} refused")
    assert statuses == [403, 403]


@pytest.mark.threat(13, "CSRF: a body that a page may send unasked", "415")
@pytest.mark.parametrize("kind", UNASKED)
def test_bodies_of_forms(pair: Pair, figure: Figure, kind: str) -> None:
    """What needs no leave of the server by CORS is not taken for JSON."""
    status = asked(pair, body=new_space("from-a-page"), Content_Type=kind)
    figure(status)
    assert status == 415
    assert "from-a-page" not in {space["name"] for space in pair.system.spaces("alice")}


@pytest.mark.threat(13, "CSRF: leave by CORS, and no token", "none given; 401 without a bearer, 400 for one in a URL")
def test_no_leave(pair: Pair, figure: Figure) -> None:
    """No answer lets a page of another site read it, and nothing but the header counts as a token."""
    token = pair.system.user("alice")
    headers = {"Origin": pair.system.url, "Access-Control-Request-Method": "POST"}
    preflight = urllib3.request("OPTIONS", pair.system.url + "/api/spaces", headers=headers, retries=False)
    without = [
        asked(pair, token=False),
        asked(pair, token=False, Cookie=f"token={token}"),
        asked(pair, f"/api/spaces?token={token}&access_token={token}", token=False),
    ]
    allowing = [name for name in preflight.headers if name.lower().startswith("access-control-")]
    refused = sum(status >= 400 for status in without)
    figure(f"preflight {preflight.status} with {len(allowing)} leaves; {refused} of {len(without)} refused")
    assert (allowing, without) == ([], [401, 401, 400])
    assert preflight.status >= 400
