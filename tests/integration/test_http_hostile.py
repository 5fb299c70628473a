"""Hostile peers of the HTTP API, on the wire: web pages, who is slow on purpose, who opens much, who guesses."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tests.support.system import System, running_system
from tests.support.waiting import until

HEAD_TIME, BODY_TIME = 1.0, 1.0
CONNECTIONS = 16
OPTIONS = {
    "http-head-time": HEAD_TIME,
    "http-body-time": BODY_TIME,
    "max-http-connections": CONNECTIONS,
    "failed-token-rate": 5,
    "url": "https://knot.example.com",
    "hosts": "alias.example,2001:db8::7",
}
PATIENCE = 30


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server that waits shortly and holds few."""
    words = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    folder = tmp_path_factory.mktemp("hostile")
    with running_system(folder, *words) as system:
        system.space("frontend", run=False)
        yield system


def connected(system: System) -> socket.socket:
    host, _, port = system.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def head(*lines: str, method: str = "GET", path: str = "/healthz", host: str = "localhost", version: str = "1.1") -> bytes:
    """A request without a body; with an empty host, one without that header."""
    hosts = [f"Host: {host}"] if host else []
    return "\r\n".join([f"{method} {path} HTTP/{version}", *hosts, *lines, "", ""]).encode("latin-1")


def answers(sock: socket.socket) -> bytes:
    """Everything until the other side hangs up."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(65536):
            found += data
    return found


def ask(system: System, request: bytes) -> tuple[int, str, str]:
    """The status of the one answer, its code if it is an error, and its head."""
    with connected(system) as sock:
        sock.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        first, _, body = answers(sock).partition(b"\r\n\r\n")
    status = int(first.split()[1])
    return status, json.loads(body)["code"] if status >= 400 else "", first.decode().lower()


@pytest.mark.parametrize("host", ["localhost", "knot.example.com", "KNOT.example.com.:443", "alias.example", "[2001:db8::7]:1"])
def test_known_hosts(system: System, host: str) -> None:
    """Loopback, the host of the URL, and those that are named in the settings."""
    assert ask(system, head(host=host))[0] == 200


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json", "/api/spaces", "/nothing", "/metrics"])
def test_other_hosts(system: System, path: str) -> None:
    """A name that was made to lead here (DNS rebinding) gets nothing from any route, with a good token neither."""
    bearer = f"Authorization: Bearer {system.user('alice')}"
    for host in ("evil.example", "evil.example:3000", "127.0.0.1.evil.example"):
        assert ask(system, head(bearer, path=path, host=host))[:2] == (403, "host_refused")
    assert ask(system, head(bearer, path=path, host="", version="1.0"))[:2] == (403, "host_refused")
    assert ask(system, head(bearer, path="http://localhost" + path))[:2] == (403, "host_refused")
    assert ask(system, head("Host: localhost", path=path))[0] == 400


@pytest.mark.parametrize("header", ["Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"])
def test_other_origins(system: System, header: str) -> None:
    """A web page of another site can neither read nor post, also with a good token, and no answer invites it to."""
    bearer = f"Authorization: Bearer {system.user('alice')}"
    for request in (head(header, bearer, path="/api/spaces"), head(header, bearer, "Content-Length: 0", method="POST")):
        status, code, answer = ask(system, request)
        assert (status, code) == (403, "origin_refused")
        assert "access-control" not in answer


def test_preflight(system: System) -> None:
    """A browser that asks whether a page may send JSON is not told that it may."""
    status, _, answer = ask(
        system,
        head("Origin: https://evil.example", "Access-Control-Request-Method: POST", method="OPTIONS", path="/api/spaces"),
    )
    assert status == 403
    assert "access-control" not in answer


def test_own_origin(system: System) -> None:
    """A page of the server's own URL may ask, as others see it."""
    assert ask(system, head("Origin: https://knot.example.com", "Sec-Fetch-Site: same-origin"))[0] == 200


def test_a_form_is_no_json(system: System) -> None:
    """What a page can post unasked is refused, whatever it says."""
    bearer = f"Authorization: Bearer {system.user('alice')}"
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/json-seq"):
        request = head(bearer, f"Content-Type: {kind}", "Content-Length: 2", method="POST", path="/api/spaces") + b"{}"
        assert ask(system, request)[:2] == (415, "not_json")


def test_no_secret_in_a_url(system: System) -> None:
    """A token in the query is none, and the request is refused on every route; neither answer nor log repeats it."""
    token = system.user("alice")
    for path in ("/api/spaces", "/healthz", "/openapi.json", "/nothing", "/space-io/frontend/port/list"):
        assert ask(system, head(path=f"{path}?access_token={token}"))[:2] == (400, "bad_input")
    elsewhere = head(f"Cookie: token={token}", f"X-Api-Key: {token}", path="/api/spaces")
    assert ask(system, elsewhere)[:2] == (401, "not_authenticated")
    for path in (f"/api/tokens/{token}", f"/x?{token}"):
        assert ask(system, head(path=path, host="evil.example"))[:2] == (403, "host_refused")
    secret = token.rpartition("_")[2]

    def is_recorded() -> bool:
        """Of many refusals at once some are left out."""
        assert ask(system, head(path=f"/api/tokens/{token}", method="DELETE"))[0] in {400, 401, 429}
        return "/api/tokens/knot_" in recorded(system)

    until(is_recorded, what="the refusal is recorded")
    assert secret not in recorded(system)
    assert system.server is not None
    assert secret not in "\n".join(system.server.lines())


def test_known_parameters(system: System) -> None:
    """A parameter that a route knows is taken there, and nowhere else; one more beside it is refused."""
    bearer = f"Authorization: Bearer {system.user('alice')}"
    assert ask(system, head(bearer, path="/api/audit?limit=1&after=0"))[0] == 200
    for path in ("/api/audit?limit=1&token=x", "/api/spaces?limit=1", "/api/audit/?limit=1"):
        assert ask(system, head(bearer, path=path))[:2] == (400, "bad_input")
    assert ask(system, head(bearer, path="/api/audit?limit=1", method="POST"))[:2] == (405, "method_not_allowed")


def test_two_tokens_are_none(system: System) -> None:
    """Two programs that read one request must not see two callers."""
    bearer = f"Authorization: Bearer {system.user('alice')}"
    assert ask(system, head(bearer, bearer, path="/api/spaces"))[:2] == (400, "bad_input")


@pytest.mark.parametrize("request_", [head(), head(path="/nothing"), head(host="evil"), b"\x16\x03\x01\r\n\r\n", head("A: \0")])
def test_every_answer_says_how_to_take_it(system: System, request_: bytes) -> None:
    """No answer is sniffed, kept or made anything of, whichever layer gives it."""
    answer = ask(system, request_)[2]
    for line in ("x-content-type-options: nosniff", "cache-control: no-store", "content-security-policy: default-src 'none'"):
        assert answer.count(line) == 1, answer
    assert "strict-transport-security" not in answer
    assert "server:" not in answer


# Slow ones, and many


def test_a_head_that_does_not_end(system: System) -> None:
    """Whoever sends a head byte by byte is told, and cut off, after so long in all; each byte makes it no longer."""
    begin = time.monotonic()
    answer = dripped(system)
    assert HEAD_TIME * 0.9 <= time.monotonic() - begin < HEAD_TIME + 5
    if answer is None:  # a byte was on its way when the server hung up, and the reset took the answer with it (RFC 9112, 9.6)
        answer = dripped(system)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"too_slow"' in answer.replace(b" ", b"")[-200:]


def dripped(system: System) -> bytes | None:
    """The answer to a head that comes byte by byte; None where a reset has taken it away."""
    with connected(system) as sock:
        sock.settimeout(0.1)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                sock.sendall(b"x")
                begun = sock.recv(65536)
                sock.settimeout(PATIENCE)
                return begun + answers(sock)
            except TimeoutError:
                continue
            except ConnectionError:
                return None
    return b""


def test_a_second_head_that_does_not_end(system: System) -> None:
    """A connection that was answered once has no more time for the next head."""
    begin = time.monotonic()
    with connected(system) as sock:
        sock.sendall(head() + b"GET /healthz HTTP/1.1\r\n")
        found = answers(sock)
    assert found.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in found
    assert time.monotonic() - begin < HEAD_TIME + 5


def test_silence(system: System) -> None:
    """Who says nothing is let go of after the time for a head, without a word."""
    with connected(system) as sock:
        assert answers(sock) == b""


@pytest.mark.parametrize("who", ["alice", ""])
def test_a_body_that_does_not_end(system: System, who: str) -> None:
    """A body that does not come is not waited for, from who has a token and from who has none."""
    lines = [f"Authorization: Bearer {system.user(who)}"] if who else []
    request = head(*lines, "Content-Type: application/json", "Content-Length: 100", method="POST", path="/api/spaces") + b"{"
    begin = time.monotonic()
    with connected(system) as sock:
        sock.sendall(request)
        found = answers(sock)
    assert found.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - begin < BODY_TIME + 8


def test_silent_connections_make_way(system: System) -> None:
    """Whoever opens many and says nothing keeps nobody out: the oldest of them go, and a request is served at once."""
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(connected(system)) for _ in range(4 * CONNECTIONS)]
        begin = time.monotonic()
        assert ask(system, head())[0] == 200
        assert time.monotonic() - begin < HEAD_TIME
        flood[0].settimeout(PATIENCE)
        assert answers(flood[0]) == b""


def test_who_is_served_is_not_turned_out(system: System) -> None:
    """A request that has arrived is answered, however many come after it."""
    request = head(f"Authorization: Bearer {system.user('alice')}", path="/api/spaces")
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(connected(system))
        for _ in range(5):
            assert ask(system, request)[0] == 200


def test_pipelining_is_bounded(system: System) -> None:
    """Thousands of requests at once are answered in order, or not read; the server holds little meanwhile."""
    before = memory(system)
    count = 3000
    with connected(system) as sock:
        sock.settimeout(1)
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            while sent < count:
                sock.sendall(head(path="/openapi.json"))
                sent += 1
        assert memory(system) - before < 32 << 20
    assert ask(system, head())[0] == 200


def test_who_reads_nothing_is_let_go(system: System) -> None:
    """A peer that asks and never reads the answers is cut off, so that it holds nothing for long."""
    with connected(system) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(1)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(2000):
                sock.sendall(head(path="/openapi.json"))
        until(lambda: is_closed(sock), PATIENCE, "the connection is cut")


def test_strangers_bodies_are_not_held(system: System) -> None:
    """Bodies of who shows no token take no memory: they are thrown away as they come, and answered 401."""
    before = memory(system)
    body = b" " * (500 * 1024)
    length = f"Content-Length: {len(body) + 1}"
    request = head("Content-Type: application/json", length, method="POST", path="/api/spaces") + body
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(connected(system)) for _ in range(CONNECTIONS - 2)]
        for sock in flood:
            sock.sendall(request)
        assert memory(system) - before < 4 << 20
        flood[0].sendall(b" ")
        assert flood[0].recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_deep_body_costs_nothing(system: System) -> None:
    """JSON that is nested as deep as fits is refused before anything walks down into it."""
    token = system.user("alice")
    twice = b'{"name": "x", "name": "y", "zone": "eu"}'
    for body in (b"[" * 500_000, b'{"a":' * 100_000, b'{"name":' * 40 + b"1" + b"}" * 40, twice):
        begin = time.monotonic()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        response = urllib3.request("POST", system.url + "/api/spaces", body=body, headers=headers, retries=False)
        assert (response.status, response.json()["code"]) == (400, "bad_input")
        assert time.monotonic() - begin < 5


def test_guessing(system: System) -> None:
    """Tokens that are refused are answered 429 after so many; a good one from the same address is served all the while."""
    wrong = head("Authorization: Bearer knot_000000000000_" + "0" * 64, path="/api/spaces")
    right = head(f"Authorization: Bearer {system.user('alice')}", path="/api/spaces")
    found = [ask(system, wrong) for _ in range(12)]
    assert {code for _, code, _ in found} == {"not_authenticated", "rate_limited"}
    status, code, answer = found[-1]
    assert (status, code) == (429, "rate_limited")
    waiting = re.search(r"retry-after: (\d+)", answer)
    assert waiting
    assert 1 <= int(waiting[1]) <= 60
    assert ask(system, right)[0] == 200


def test_a_token_that_asks_too_often(tmp_path: Path) -> None:
    """One token has so many requests; another user's is not held up by that."""
    with running_system(tmp_path, "--token-rate", "1") as system:
        tokens = [system.user("alice"), system.user("bob")]
        busy, other = (head(f"Authorization: Bearer {token}", path="/api/spaces") for token in tokens)
        codes = [ask(system, busy)[1] for _ in range(30)]
        assert codes[0] == ""
        assert "rate_limited" in codes
        assert ask(system, other)[0] == 200


def recorded(system: System) -> str:
    """The audit record, as it is stored."""
    with contextlib.closing(sqlite3.connect(system.folder / "server" / "store.db")) as store:
        return "\n".join(fields for (fields,) in store.execute("SELECT fields FROM audit"))


def memory(system: System) -> int:
    """Resident bytes of the server."""
    assert system.server is not None
    status = Path(f"/proc/{system.server.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side has ended the connection; reads nothing."""
    try:
        sock.send(b"G")
    except TimeoutError:
        return False
    except OSError:
        return True
    return False
