"""The HTTP client, against a real server."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from knot_ssh.api import Api, Patience
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, NotFound, NotRunning, Unavailable


class Server(ThreadingHTTPServer):
    """Gives one answer to everything, and remembers what it was asked."""

    status = 200
    answer: bytes = b"{}"
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def will_answer(self, status: int, body: object) -> None:
        self.status = status
        self.answer = body if isinstance(body, bytes) else json.dumps(body).encode()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        for name, value in self.server.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.answer)

    do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Tests have nothing to say."""


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on a free port."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server.url, "knot_secret")


def test_get(server: Server, api: Api) -> None:
    """A GET gives the answer's JSON; the token stands in the header and nowhere else."""
    server.will_answer(200, {"spaces": []})
    assert api.get("api", "spaces") == {"spaces": []}
    [(method, path, headers, body)] = server.asked
    assert (method, path, body) == ("GET", "/api/spaces", b"")
    assert headers["Authorization"] == "Bearer knot_secret"


def test_post(server: Server, api: Api) -> None:
    """A POST sends its body as JSON, and says so."""
    api.post("space-io", "frontend", "port", "forward", body={"local_port": 8080})
    [(method, path, headers, body)] = server.asked
    assert (method, path, json.loads(body)) == ("POST", "/space-io/frontend/port/forward", {"local_port": 8080})
    assert headers["Content-Type"] == "application/json"


def test_delete(server: Server, api: Api) -> None:
    """A DELETE names what is to go in its path."""
    api.delete("api", "spaces", "frontend")
    assert server.asked[0][:2] == ("DELETE", "/api/spaces/frontend")


def test_path_cannot_be_left(server: Server, api: Api) -> None:
    """A name with a meaning in URLs stays within its step of the path."""
    api.get("api", "spaces", "../users?x=1#y/é\n")
    assert server.asked[0][1] == "/api/spaces/..%2Fusers%3Fx%3D1%23y%2F%C3%A9%0A"


def test_url_may_have_a_path(server: Server) -> None:
    """A server behind a proxy's path is reached there, with or without a slash at the end."""
    for url in (f"{server.url}/knot", f"{server.url}/knot/"):
        Api(url, "t").get("healthz")
    assert [path for _, path, _, _ in server.asked] == ["/knot/healthz"] * 2


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "not_found", NotFound), (409, "not_running", NotRunning), (401, "not_authenticated", NotAuthenticated),
     (503, "unavailable", Unavailable), (400, "bad_input", BadInput), (418, "from_the_future", KnotError)],
)  # fmt: skip
def test_error_is_the_one_raised(server: Server, api: Api, status: int, code: str, kind: type[KnotError]) -> None:
    """The error that the server answered with is raised as its class, with its sentence."""
    server.will_answer(status, {"success": False, "error": "the sentence", "code": code})
    with pytest.raises(KnotError, match=r"^the sentence$") as caught:
        api.get("x")
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [{}, [], "no", 7, None, {"error": 7}, {"detail": "x"}])
def test_error_in_another_shape(server: Server, api: Api, body: object) -> None:
    """An error without a sentence names the status."""
    server.will_answer(500, body)
    with pytest.raises(KnotError, match=r"^the server answered 500$"):
        api.get("x")


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"\xff", b"{"])
@pytest.mark.parametrize("status", [200, 500])
def test_other_servers_are_told_apart(server: Server, api: Api, status: int, body: bytes) -> None:
    """An answer that is no JSON comes from something else than a knot server, and the error says so."""
    server.will_answer(status, body)
    with pytest.raises(KnotError, match=f"is not a knot server: it answered {status}"):
        api.get("x")


def test_deep_answer(server: Server, api: Api) -> None:
    """JSON nested beyond reason is an error like any other answer that makes no sense."""
    server.will_answer(200, b"[" * 100_000)
    with pytest.raises(KnotError, match="is not a knot server"):
        api.get("x")


def test_redirect_is_not_followed(server: Server, api: Api) -> None:
    """The token is not carried where a redirect points."""
    server.will_answer(302, {})
    server.headers = (("Location", f"{server.url}/elsewhere"),)
    with pytest.raises(KnotError):
        api.get("x")
    assert [path for _, path, _, _ in server.asked] == ["/x"]


def test_nobody_listens() -> None:
    """A server that is down is unavailable, in a sentence that says where and why."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"^the server at {url} did not answer: connection refused$"):
            Api(url, "t").get("x")


def test_hung_up_without_an_answer() -> None:
    """A server that hangs up is unavailable."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(Unavailable, match="did not answer"):
            Api(f"http://127.0.0.1:{listener.getsockname()[1]}", "t").get("x")
        thread.join()


@pytest.mark.parametrize(
    "url",
    ["", "knot.example.com", "localhost:3000", "ftp://host", "file:///etc/passwd", "http://", "http:///path", "http://host?x=1",
     "http://host#x", "//host", "http://[", "http://[::1", "http://host:port", "http://host:99999",
     "http://host\x1b[31m"],
)  # fmt: skip
def test_other_text_is_no_server(url: str) -> None:
    """What is not an http or https URL of a server is bad input, before anything is sent."""
    with pytest.raises(BadInput, match="is not a URL like"):
        Api(url, "t")


@pytest.mark.parametrize("url", ["http://alice:hunter2@host", "alice:hunter2@host"])
def test_no_password_in_the_url(url: str) -> None:
    """A password in the URL is refused without being repeated: later errors would repeat it, too."""
    with pytest.raises(BadInput, match="no password") as caught:
        Api(url, "t")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["a b", "a\n", "a\r\nX-Evil: 1", "a\0", "é", "\u2028"])
def test_token_cannot_carry_a_header(token: str) -> None:
    """A token with anything but printable ASCII is refused, and not quoted."""
    with pytest.raises(NotAuthenticated) as caught:
        Api("http://127.0.0.1:1", token)
    assert token not in str(caught.value)


def test_bytes(server: Server, api: Api) -> None:
    """What is no JSON is given as it is."""
    server.will_answer(200, b"\x00\xff{")
    assert api.get_bytes("api", "krl") == b"\x00\xff{"


def test_refusal_in_the_place_of_bytes(server: Server, api: Api) -> None:
    """A refusal is the server's error there, too; what claims to be one without JSON is no knot server's."""
    server.will_answer(404, {"success": False, "error": "no", "code": "not_found"})
    with pytest.raises(NotFound):
        api.get_bytes("api", "krl")
    server.will_answer(404, b"<html>")
    with pytest.raises(KnotError, match="not a knot server"):
        api.get_bytes("api", "krl")


def test_answers_are_bounded(server: Server, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server cannot fill our memory."""
    monkeypatch.setattr("knot_ssh.api.ANSWER_LIMIT", 10)
    server.will_answer(200, b'"12345678"')
    assert api.get("api", "ca") == "12345678"
    server.will_answer(200, b'"123456789"')
    for ask in (api.get, api.get_bytes):
        with pytest.raises(KnotError, match="answered more than 10 bytes"):
            ask("api", "ca")


@pytest.mark.parametrize("status", [502, 503, 504])
def test_gateway_without_server(server: Server, api: Api, status: int) -> None:
    """A proxy that says in its own words that the server is away means just that."""
    server.will_answer(status, b"<html>Bad Gateway</html>")
    with pytest.raises(Unavailable, match=f"its gateway says {status}"):
        api.get("api", "spaces")


def test_patience() -> None:
    """Who has little time waits no longer than that."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        api = Api(f"http://127.0.0.1:{silent.getsockname()[1]}", "t", Patience(connect=0.05, read=0.05))
        with pytest.raises(Unavailable, match="no answer in time"):
            api.get("api", "ca")
        api.close()
