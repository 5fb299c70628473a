"""The API as it describes itself: the description is whole, and a running server keeps to it whatever is sent."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import urllib3

from knot_ssh.errors import codes
from tests.support.fuzzing import FULL, bearer, fuzz, often, words
from tests.support.ports import free_ports
from tests.support.system import System, running_system

EXAMPLES = 1000 if FULL else 12
LONG = pytest.mark.timeout(3600 if FULL else 300)
METHODS = {
    "make_forward", "list_forwards", "stop_forward", "apply_forwards", "list_spaces", "create_space", "change_space",
    "delete_space", "create_join_token", "list_users", "create_user", "delete_user", "show_ca", "create_certificate",
    "show_krl", "show_health", "show_metrics", "list_revocations", "create_revocation", "list_tokens", "show_current_token",
    "create_token", "revoke_token", "show_space", "show_audit", "list_rotations", "rotate",
    "rotate_host_key",
}  # fmt: skip
DISTURBING = {"change_space", "delete_space", "delete_user", "create_revocation", "revoke_token", "rotate", "rotate_host_key"}
"""What would take its spaces and users from the others."""
OPEN = {"show_health"}
OTHER_KINDS = {"show_metrics": "text/plain", "show_krl": "application/octet-stream"}
KEYS = [f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKPpS1dRVw4rsMfwXFH9ML5HbUaP6vfiUDb7oZDIEp2I{end}" for end in ("", " me@home")]


def described(system: System) -> dict[str, Any]:
    description: dict[str, Any] = urllib3.request("GET", system.url + "/openapi.json").json()
    return description


def operations(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with its name."""
    for methods in description["paths"].values():
        for operation in methods.values():
            yield operation["operationId"], operation


# The description


def test_routes_are_described(system: System) -> None:
    """Every route has a readable name, a summary, a description and a tag that is described, and says who may call it."""
    description = described(system)
    tags = {tag["name"] for tag in description["tags"]}
    found = dict(operations(description))
    assert set(found) >= METHODS
    for name, operation in found.items():
        assert name.isidentifier()
        assert len(name) < 30
        assert operation["summary"]
        assert operation["description"].endswith(".")
        assert set(operation["tags"]) <= tags
        assert operation.get("security", []) == ([] if name in OPEN else [{"token": []}])
    assert description["components"]["securitySchemes"]["token"]["scheme"] == "bearer"


def test_answers_are_described(system: System) -> None:
    """Every route says how it succeeds, with which type and an example, and which problems it may find, all of one form."""
    description = described(system)
    for name, operation in operations(description):
        answers = operation["responses"]
        success = [status for status in answers if status.startswith("2")]
        assert len(success) == 1
        kind = OTHER_KINDS.get(name, "application/json")
        assert list(answers[success[0]]["content"]) == [kind]
        assert {"schema", "example"} <= set(answers[success[0]]["content"][kind])
        problems = set(answers) - set(success)
        assert {"400", "403", "408", "413", "415", "429", "503"} <= problems <= {*map(str, range(400, 430)), "503"}
        assert ("401" in problems) == (name not in OPEN)
        assert "parameters" not in operation or {"400", "404"} <= problems or name in {"rotate", "show_audit"}
        for status in problems:
            content = answers[status]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["example"]["code"] in codes()
            assert answers[status]["description"]


def test_examples_fit_their_schemas(system: System) -> None:
    """Every example of a request or an answer is one."""
    description = described(system)
    checked = 0
    for _, operation in operations(description):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (content for body in bodies for content in body.get("content", {}).values()):
            schema = {**content["schema"], "components": description["components"]}
            jsonschema_rs.validate(schema, content["example"])
            checked += 1
        for parameter in operation.get("parameters", []):
            for example in parameter["examples"].values():
                jsonschema_rs.validate({**parameter["schema"], "components": description["components"]}, example["value"])
    assert checked > 60


# What is sent


@LONG
def test_generated_requests(tmp_path: Path) -> None:
    """Requests that fit the description are taken, those that do not are refused, and every answer is as described. Two
    spaces run and one does not, so that forwards are made, refused, listed and stopped."""
    with running_system(tmp_path) as system:
        system.space("frontend")
        system.space("database")
        system.space("backend-api", run=False)
        forwards = ("list_forwards", "stop_forward", "create_join_token")
        made = often(0.7, path__space_id="sources", body__space="targets", body__local_port="ports")
        settings = [
            bearer(system, "alice"),
            *words("sources", ["frontend"]),
            *words("targets", ["backend-api", "database"]),
            *words("ports", free_ports(8)),
            *words("keys", KEYS),
            "[[operations]]",
            f"include-operation-id = {json.dumps(forwards)}",
            made,
            "[[operations]]",
            'include-operation-id = "make_forward"',
            made,
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 404, 409]',  # nor that it is another space
            "[[operations]]",
            'include-operation-id = ["list_users", "create_user"]',
            bearer(system, "admin"),
            "[[operations]]",
            'include-operation-id = "create_certificate"',
            often(0.7, body__public_key="keys"),
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401]',  # no pattern can tell a good key
            "[[operations]]",
            'include-operation-id = "create_token"',
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]',  # nor what goes with what
            "[[operations]]",
            'include-path = "/space-io/{space_id}/port/apply"',
            often(
                0.8,
                path__space_id="sources",
                **{"body__forwards[*]__space": "targets", "body__forwards[*]__local_port": "ports"},
            ),
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 404, 409]',  # nor that ports differ
        ]
        names = sorted({name for name, _ in operations(described(system))} - DISTURBING)
        fuzz(system, tmp_path, ["examples", "coverage", "fuzzing"], EXAMPLES, names, settings)
        assert all(space["running"] == (space["name"] in {"frontend", "database"}) for space in system.spaces("alice")[:3])


@LONG
def test_generated_sequences(tmp_path: Path) -> None:
    """What was made can be used, and what was deleted is gone: requests that follow from answers, in any order."""
    with running_system(tmp_path) as system:
        for name in ("bob", "carol", "dave"):
            system.user(name)
        system.space("frontend", "admin", run=False)
        settings = [
            bearer(system, "admin"),
            "[[operations]]",
            'include-operation-id = "create_revocation"',
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 404, 409]',  # no pattern can tell a good key
            "[[operations]]",
            'include-operation-id = "create_token"',
            'checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404, 409]',  # nor what goes with what
        ]
        names = sorted({name for name, _ in operations(described(system))})
        fuzz(system, tmp_path, ["stateful"], EXAMPLES, names, settings)
        fuzz(system, tmp_path, ["examples", "coverage", "fuzzing"], EXAMPLES, sorted(DISTURBING), settings)


ODD_REQUESTS = {
    "no http": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "no version": (b"GET /healthz\r\n\r\n", 400),
    "space in the path": (b"GET /a b HTTP/1.1\r\nHost: [::1]\r\n\r\n", 400),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "header without name": (b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\n: y\r\n\r\n", 400),
    "NUL in a header": (b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\nA: \x00\r\n\r\n", 400),
    "endless header": (b"GET /healthz HTTP/1.1\r\nHost: [::1]\r\nA: " + b"a" * 200_000 + b"\r\n\r\n", 400),
    "no number as length": (b"POST /api/spaces HTTP/1.1\r\nHost: [::1]\r\nContent-Length: -1\r\n\r\n", 400),
    "two lengths": (b"POST /api/spaces HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "unknown coding": (b"POST /api/spaces HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
    "odd method": (b"KNOT /api/spaces HTTP/1.1\r\nHost: [::1]\r\n\r\n", 405),
    "HEAD": (b"HEAD /api/spaces HTTP/1.1\r\nHost: [::1]\r\n\r\n", 405),
    "CONNECT": (b"CONNECT example.com:443 HTTP/1.1\r\nHost: [::1]\r\n\r\n", 403),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: [::1]\r\n\r\n", 404),
    "other site": (b"GET http://example.com/healthz HTTP/1.1\r\nHost: [::1]\r\n\r\n", 403),
    "trailing slash": (b"GET /api/spaces/ HTTP/1.1\r\nHost: [::1]\r\n\r\n", 404),
    "slash in a name": (b"GET /space-io/a%2Fb/port/list HTTP/1.1\r\nHost: [::1]\r\nAuthorization: TOKEN\r\n\r\n", 404),
    "NUL in a name": (b"GET /space-io/%00/port/list HTTP/1.1\r\nHost: [::1]\r\nAuthorization: TOKEN\r\n\r\n", 400),
    "no UTF-8 in a name": (b"GET /space-io/%ff%fe/port/list HTTP/1.1\r\nHost: [::1]\r\nAuthorization: TOKEN\r\n\r\n", 400),
    "up a folder": (b"GET /space-io/../port/list HTTP/1.1\r\nHost: [::1]\r\nAuthorization: TOKEN\r\n\r\n", 400),
    "long name": (
        b"GET /space-io/" + b"a" * 10_000 + b"/port/list HTTP/1.1\r\nHost: [::1]\r\nAuthorization: TOKEN\r\n\r\n",
        400,
    ),
    "other scheme": (b"GET /api/spaces HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Basic eDp5\r\n\r\n", 401),
    "no ASCII in a token": (
        b"GET /api/spaces HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer knot_\xe9\xff_00\r\n\r\n",
        401,
    ),
    "upgrade": (b"GET /nothing HTTP/1.1\r\nHost: [::1]\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", ODD_REQUESTS)
def test_odd_requests(system: System, name: str) -> None:
    """What no client of ours would send is refused in the same form as everything else, and the server goes on."""
    request, status = ODD_REQUESTS[name]
    answered, headers, problem = speak(system, request.replace(b"TOKEN", b"Bearer " + system.user("alice").encode()))
    assert answered == status
    assert headers["content-type"] == "application/json"
    if name != "HEAD":
        body = json.loads(problem)
        assert (set(body), body["success"]) == ({"success", "error", "code"}, False)
        assert body["code"] in codes()
        assert body["error"].isprintable()
    if status == 405:
        assert headers["allow"] == "GET, POST"
    assert urllib3.request("GET", system.url + "/healthz").status == 200


ODD_BODIES = {
    "NUL": b'{"name": "a\\u0000b", "zone": "eu"}',
    "raw NUL": b'{"name": "a\x00b", "zone": "eu"}',
    "half a surrogate": b'{"name": "\\ud800", "zone": "eu"}',
    "half a surrogate as a key": b'{"\\ud800": 1, "name": "a", "zone": "eu"}',
    "terminal's codes": b'{"name": "\\u001b[31m", "zone": "eu"}',
    "huge number": b'{"name": ' + b"9" * 10_000 + b', "zone": "eu"}',
    "huge exponent": b'{"name": 1e999999, "zone": "eu"}',
    "no number": b'{"name": NaN, "zone": "eu"}',
    "deep": b'{"name": ' + b"[" * 30_000 + b"]" * 30_000 + b', "zone": "eu"}',
    "deep objects": b'{"name": ' + b'{"a":' * 9_000 + b"1" + b"}" * 9_000 + b"}",
    "two values": b'{"name": "a", "zone": "eu"} {}',
    "mark": b"\xef\xbb\xbf" + b'{"name": "A", "zone": "eu"}',
    "no UTF-8": b'{"name": "\xff", "zone": "eu"}',
    "only white space": b" \n ",
}


@pytest.mark.parametrize("name", ODD_BODIES)
def test_odd_bodies(system: System, name: str) -> None:
    """A body that is no JSON, or JSON that nobody would write, is bad input and is repeated to nobody."""
    headers = {"Authorization": f"Bearer {system.user('alice')}", "Content-Type": "application/json"}
    response = urllib3.request(
        "POST", system.url + "/api/spaces", body=ODD_BODIES[name], headers=headers, retries=False, timeout=20
    )
    assert (response.status, response.json()["code"]) == (400, "bad_input")
    assert response.json()["error"].isprintable()
    assert len(response.json()["error"]) < 300


def speak(system: System, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send these bytes; gives status, headers and body of the answer."""
    host, _, port = system.http_address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += receive(sock, answer)
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        while len(body) < int(headers["content-length"]) and not request.startswith(b"HEAD"):
            body += receive(sock, answer)
    return int(lines[0].split()[1]), headers, body


def receive(sock: socket.socket, before: bytes) -> bytes:
    data = sock.recv(65536)
    assert data, before
    return data
