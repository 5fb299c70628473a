"""/metrics of a running server with running agents, as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import urllib3
from prometheus_client.parser import text_string_to_metric_families

from tests.support.services import connect, free_port, noise, outcome, read_all, send_all, sending, serving
from tests.support.system import System, running_system
from tests.support.waiting import until


def scrape(system: System, user: str = "alice") -> dict[str, float]:
    """The samples, each under its name with its labels' values."""
    headers = {"Authorization": f"Bearer {system.user(user)}"}
    response = urllib3.request("GET", system.url + "/metrics", headers=headers, retries=False)
    assert (response.status, response.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = list(text_string_to_metric_families(response.data.decode()))
    assert all(family.documentation and family.type in {"gauge", "counter"} for family in families)
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in families
        for sample in family.samples
    }


def becomes(system: System, **wanted: float) -> None:
    """Wait until these are the values."""
    names = {name.replace("__", " "): value for name, value in wanted.items()}
    until(lambda: names.items() <= scrape(system).items(), what=str(names))


def test_token_is_needed(system: System) -> None:
    """Who has no token reads nothing, and a token of any user will do."""
    response = urllib3.request("GET", system.url + "/metrics", retries=False)
    assert (response.status, response.json()["code"]) == (401, "not_authenticated")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert scrape(system, "bob")["knot_agents_connected"] >= 0


def test_refused_requests_are_counted(system: System) -> None:
    """Whatever refuses a request, it is counted once under its code: what is done before the routes, the routes themselves,
    and the framework."""
    token = {"Authorization": f"Bearer {system.user('alice')}"}
    refused: dict[str, tuple[str, str, dict[str, Any]]] = {
        "not_json": ("POST", "/api/spaces", {"headers": token, "body": b"{}"}),
        "too_large": ("POST", "/api/spaces", {"headers": token, "body": b" " * 600_000}),
        "bad_input": ("POST", "/api/spaces", {"headers": token, "json": {"name": "-", "zone": "eu"}}),
        "method_not_allowed": ("PUT", "/api/spaces", {"headers": token}),
        "not_found": ("GET", "/nothing", {}),
        "not_authenticated": ("GET", "/api/spaces", {}),
        "forbidden": ("POST", "/api/users", {"headers": token, "json": {"name": "eve"}}),
    }
    before = scrape(system)
    for code, (method, path, options) in refused.items():
        assert urllib3.request(method, system.url + path, retries=False, **options).json()["code"] == code
    after = scrape(system)
    changed = {name: after[name] - before[name] for name in after if name.startswith("knot_refusals_total http")}
    assert changed == {name: float(name.split()[-1] in refused) for name in changed}


def test_life_of_forwards(tmp_path: Path) -> None:
    """Agents, links, forwards, bytes and certificates are counted as they come and go; what was carried stays counted when a
    forward is stopped, its agent is restarted, and the server meets it anew."""
    request, answer = noise(50_000), noise(300_000)
    with running_system(tmp_path) as system, serving(sending(answer)) as port:
        frontend, backend = system.space("frontend"), system.space("backend-api")
        becomes(system, knot_agents_connected=2, knot_spaces=2, knot_users=2)
        assert scrape(system)["knot_certificates_issued_total agent"] == 2
        local = free_port()
        frontend.knot("port", "forward", str(local), "backend-api", str(port), "--persistent")
        becomes(system, knot_forwards__listening=1, knot_links__direct=1, knot_forwards_persistent=1)
        with connect(local) as sock:
            send_all(sock, request)
            assert len(read_all(sock)[1]) == 32 + len(answer)
        refusing = free_port()
        frontend.knot("port", "forward", str(refusing), "backend-api", str(free_port()))
        assert outcome(refusing) == ("reset", b"")
        frontend.knot("port", "stop", str(refusing))
        carried = {
            "knot_forward_bytes_total__sent": len(request),
            "knot_forward_bytes_total__received": 32 + len(answer),
            "knot_forward_connections_total": 1,
            "knot_forward_connections_refused_total": 1,
        }
        becomes(system, knot_forwards__listening=1, knot_forward_connections_open=0, **carried)
        backend.kill()
        becomes(system, knot_agents_connected=1, knot_links__down=1, knot_links__direct=0, knot_forwards__waiting=1)
        backend.start()
        becomes(system, knot_links__direct=1, knot_links__down=0, knot_forwards__listening=1)
        frontend.stop()
        becomes(system, knot_agents_connected=1, knot_forwards__listening=0, knot_links__direct=0, **carried)
        frontend.start()
        with connect(local) as sock:
            send_all(sock, request)
            read_all(sock)
        frontend.stop()  # its last word
        carried["knot_forward_bytes_total__sent"] += len(request)
        carried["knot_forward_bytes_total__received"] += 32 + len(answer)
        carried["knot_forward_connections_total"] += 1
        becomes(system, **carried)


def test_server_restarts(tmp_path: Path) -> None:
    """A server that comes back counts from nothing, hears how things stand, and what is carried from then on."""
    request = noise(50_000)
    with running_system(tmp_path) as system, serving(sending(b"")) as port:
        frontend, local = system.space("frontend"), free_port()
        system.space("backend-api")
        frontend.knot("port", "forward", str(local), "backend-api", str(port))
        for _ in range(2):
            with connect(local) as sock:
                send_all(sock, request)
                read_all(sock)
        spare = free_port()
        frontend.knot("port", "forward", str(spare), "backend-api", "1")
        becomes(system, knot_forward_bytes_total__sent=2 * len(request), knot_forwards__listening=2)
        assert system.server is not None
        system.server.stop()
        with connect(local) as sock:
            send_all(sock, request)
            read_all(sock)
        system.start()
        becomes(system, knot_forward_bytes_total__sent=len(request), knot_forwards__listening=2, knot_links__direct=1)


def test_relay_and_refusals(tmp_path: Path) -> None:
    """What the hub relays is counted once for each byte, and refusals by door and reason."""
    with running_system(tmp_path) as system, serving(sending(noise(200_000))) as port:
        frontend, local = system.space("frontend"), free_port()
        backend = system.space("backend-api", run=False)
        token = system.api("alice").post("api", "spaces", "backend-api", "token", body={})["join_token"]
        backend.start(token, options=("--config", str(unreachable(tmp_path))))
        frontend.knot("port", "forward", str(local), "backend-api", str(port))
        with connect(local) as sock:
            send_all(sock, b"x" * 1000)
            read_all(sock)
        becomes(system, knot_links__relay=1, knot_relay_connections_open=1, knot_relay_connections_total=1)
        assert 200_000 < scrape(system)["knot_relay_bytes_total"] < 300_000
        late = system.space("late", run=False)
        assert late.start_without_waiting(token).wait() == 1  # it was used
        frontend.knot("port", "forward", str(free_port()), "nowhere", "1", code=1)
        system.knot("port", "list", "nowhere", user="alice", code=1)
        becomes(
            system,
            **{
                "knot_refusals_total__login__token refused": 1,
                "knot_refusals_total__control__not_found": 1,
                "knot_refusals_total__http__not_found": 1,
            },
        )


def unreachable(folder: Path) -> Path:
    """A configuration of an agent that names an address where nobody answers."""
    file = folder / "agent.yaml"
    file.write_text("advertise: [127.0.0.1:1]\n")
    return file
