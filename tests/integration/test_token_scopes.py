"""What each API token may do on a running server: every route of the description, with every scope."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.support.system import System, running_system

READ, FORWARDS = "read", "forwards"
DECLARED = {
    "make_forward": {FORWARDS},
    "list_forwards": {READ, FORWARDS},
    "stop_forward": {FORWARDS},
    "apply_forwards": {FORWARDS},
    "list_spaces": {READ},
    "show_space": {READ, FORWARDS},
    "list_users": {READ},
    "list_tokens": {READ},
    "show_current_token": {READ, FORWARDS},
    "show_ca": {READ},
    "show_krl": {READ},
    "show_metrics": {READ},
    "show_audit": {READ},
    "list_rotations": {READ},
    "list_revocations": {READ},
}
"""The routes that others than tokens of scope `all` may call. One that is not named here is for those alone."""
OPEN = {"show_health"}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server with two spaces of alice, and her tokens of each scope."""
    with running_system(tmp_path_factory.mktemp("scopes")) as system:
        for name in ("frontend", "backend-api"):
            system.space(name, run=False)
        for scope in ("read", "forwards:frontend"):
            token = system.knot("token", "create", scope.partition(":")[0], "--scope", scope, "--expires", "1h", user="alice")
            system.tokens[scope] = token
        yield system


def status(system: System, token: str, method: str, path: str, body: object = None) -> tuple[int, str]:
    """What is answered to this token: the status, and the code of an error."""
    headers = {"Authorization": f"Bearer {system.tokens[token]}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    response = urllib3.request(method, system.url + path, headers=headers, body=data, retries=False)
    is_json = response.headers["content-type"] == "application/json"
    answer = response.json() if is_json and response.status >= 400 else {}
    return response.status, answer.get("code", "")


def operations(system: System) -> dict[str, tuple[str, str, Any]]:
    """Every route: its method, a path of the space frontend that changes nothing, and a body that is none."""
    description = urllib3.request("GET", system.url + "/openapi.json").json()
    found = {}
    for path, methods in description["paths"].items():
        concrete = path.replace("{space_id}", "frontend").replace("{name}", "nobody").replace("{token_id}", "nothing")
        for method, operation in methods.items():
            body = {"nonsense": 1} if "requestBody" in operation else None
            found[operation["operationId"]] = (method.upper(), concrete, body)
    return found


def test_every_route_by_every_scope(system: System) -> None:
    """A route lets in the scopes that it declares, and says 403 `out_of_scope` to every other; without a token it says 401."""
    routes = operations(system)
    assert set(DECLARED) <= set(routes)
    for name, (method, path, body) in routes.items():
        if name in OPEN:
            continue
        for scope, token in ((READ, "read"), (FORWARDS, "forwards:frontend")):
            if scope in DECLARED.get(name, set()):
                answered, code = status(system, token, method, path, body)
                assert answered != 401, (name, scope)
                assert code != "out_of_scope", (name, scope)
            else:
                assert status(system, token, method, path, body) == (403, "out_of_scope"), (name, scope)
        unknown = urllib3.request(method, system.url + path.replace("{", "").replace("}", ""), retries=False)
        assert unknown.status == 401, name


def test_reading_is_getting(system: System) -> None:
    """No scope but `all` and `forwards` can send anything but a GET."""
    routes = operations(system)
    assert {routes[name][0] for name, scopes in DECLARED.items() if READ in scopes} == {"GET"}


def test_forwards_of_one_space(system: System) -> None:
    """A token for the forwards of a space makes, lists and stops them there; another space is as good as none."""
    forward = {"local_port": 8080, "space": "backend-api", "remote_port": 3000, "persistent": True, "force": True}
    token = "forwards:frontend"
    assert status(system, token, "POST", "/space-io/frontend/port/forward", forward) == (200, "")
    assert status(system, token, "GET", "/space-io/frontend/port/list") == (200, "")
    assert status(system, token, "POST", "/space-io/frontend/port/stop", {"local_port": 8080}) == (200, "")
    assert status(system, token, "POST", "/space-io/frontend/port/apply", {"forwards": []}) == (200, "")
    for other in ("backend-api", "none"):
        assert status(system, token, "GET", f"/space-io/{other}/port/list") == (404, "not_found")
        assert status(system, token, "POST", f"/space-io/{other}/port/forward", forward) == (404, "not_found")


@pytest.mark.parametrize("token", ["alice", "read", "forwards:frontend"])
def test_login_takes_every_scope(system: System, token: str, tmp_path: Path) -> None:
    """`knot login` keeps any token that is accepted, and the commands that it is good for work with it."""
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    system.knot("login", "--server", system.url, "--token", "-", stdin=system.tokens[token], env=env)
    assert "No active port forwards" in system.knot("port", "list", "frontend", env=env)
    if token != "alice":
        assert "not good for that" in system.knot("space", "create", "more", "--zone", "eu", env=env, code=1)


def test_tokens_from_the_command_line(system: System) -> None:
    """Made, listed without a secret, revoked by name; then it is refused with the sentence of one that never was."""
    token = system.knot("token", "create", "laptop", user="alice")
    system.tokens["laptop"] = token
    assert status(system, "laptop", "GET", "/api/spaces") == (200, "")
    [listed] = [entry for entry in json.loads(system.knot("token", "list", "--json", user="alice"))["tokens"]
                if entry["name"] == "laptop"]  # fmt: skip
    fields = {"id", "name", "user", "scope", "space", "space_id", "created_at", "expires_at", "last_used"}
    assert set(listed) == fields
    table = system.knot("token", "list", user="alice")
    assert token.rpartition("_")[2] not in table
    assert "forwards:frontend" in table
    system.knot("token", "revoke", "laptop", user="alice")
    revoked = system.knot("space", "list", env={"KNOT_SERVER": system.url, "KNOT_TOKEN": token}, code=1)
    never = system.knot("space", "list", env={"KNOT_SERVER": system.url, "KNOT_TOKEN": token[:-1] + "x"}, code=1)
    assert revoked == never


def test_a_token_as_an_argument_is_not_repeated(system: System) -> None:
    """Who pastes a token where its name belongs is told so, without the token."""
    token = system.tokens["read"]
    said = system.knot("token", "revoke", token, user="alice", code=2)
    assert token not in said
    assert status(system, "alice", "DELETE", f"/api/tokens/{token}") == (400, "bad_input")
    assert status(system, "read", "GET", "/api/spaces") == (200, "")


@pytest.mark.parametrize(
    "words",
    [("--scope", "admin"), ("--scope", "forwards"), ("--scope", "forwards:A"), ("--expires", "90"), ("--expires", "1y")],
)
def test_mistakes(system: System, words: tuple[str, str]) -> None:
    """What cannot be is refused before anything is sent."""
    system.knot("token", "create", "wrong", *words, user="alice", code=2)


def test_an_administrator_helps_out(system: System) -> None:
    """Who has lost their token gets another from an administrator; nobody else can have one made for them."""
    system.tokens["new"] = system.knot("token", "create", "again", "--user", "alice", user="admin")
    assert status(system, "new", "GET", "/api/spaces/frontend") == (200, "")
    assert "administrator" in system.knot("token", "create", "mine", "--user", "admin", user="alice", code=1)
