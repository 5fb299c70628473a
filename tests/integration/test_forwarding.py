"""What a forward carries, and how its streams end."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.support.services import (
    Ends,
    answering,
    ask,
    connect,
    echo,
    free_port,
    is_refused,
    noise,
    outcome,
    read_all,
    reset,
    resetting,
    send_all,
    sending,
    serving,
)
from tests.support.system import Running
from tests.support.waiting import until

MB = 1_000_000


def test_the_port_is_bound_when_success_is_reported(pair: Pair) -> None:
    """Right after the command, a connection is accepted and served."""
    with serving(answering(b"hello")) as port:
        assert ask(pair.forward(port)) == b"hello"


def test_curl_gets_a_large_file_whole(pair: Pair, tmp_path: Path) -> None:
    """100 MB over HTTP arrive with the same hash."""
    data = noise(100 * MB)
    (tmp_path / "file").write_bytes(data)
    port = free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(port)]
    server = Running(command, tmp_path / "http.log", pair.system.environment({}))
    try:
        until(lambda: not is_refused(port), what="the HTTP server listens")
        local = pair.forward(port)
        got = tmp_path / "got"
        subprocess.run(["curl", "-sSf", "-o", str(got), f"http://127.0.0.1:{local}/file"], check=True, timeout=60)
    finally:
        server.kill()
    assert hashlib.sha256(got.read_bytes()).digest() == hashlib.sha256(data).digest()


@pytest.mark.skipif(not shutil.which("redis-server"), reason="redis-server is not installed")
def test_redis_works_through_a_forward(pair: Pair, tmp_path: Path) -> None:
    """redis-cli sets, gets, pipelines and subscribes nothing odd: it cannot tell the forward from the server."""
    port = free_port()
    server = Running(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)],
        tmp_path / "redis.log",
        pair.system.environment({}),
    )
    try:
        until(lambda: not is_refused(port), what="redis listens")
        cli = ["redis-cli", "-p", str(pair.forward(port))]
        text = noise(200_000).hex()
        subprocess.run([*cli, "-x", "set", "key"], input=text, text=True, check=True, timeout=30)
        got = subprocess.run([*cli, "--raw", "get", "key"], capture_output=True, text=True, check=True, timeout=30)
        many = subprocess.run([*cli, "-r", "500", "incr", "counter"], capture_output=True, text=True, check=True, timeout=60)
    finally:
        server.kill()
    assert got.stdout.strip() == text
    assert many.stdout.split()[-1] == "500"


def test_fifty_connections_at_once(pair: Pair) -> None:
    """Fifty parallel streams each get their own bytes back."""

    def exchange(number: int) -> bool:
        data = noise(300_000, number)
        with connect(local) as sock:
            writer = threading.Thread(target=send_all, args=(sock, data))
            writer.start()
            end, got = read_all(sock)
            writer.join()
        return end == "fin" and got == data

    with serving(echo) as port, ThreadPoolExecutor(50) as pool:
        local = pair.forward(port)
        assert all(pool.map(exchange, range(50)))


def test_ping_pong_of_single_bytes(pair: Pair) -> None:
    """A thousand one-byte round trips on one connection."""
    with serving(echo) as port, connect(pair.forward(port)) as sock:
        for number in range(1000):
            byte = bytes([number % 256])
            sock.sendall(byte)
            assert sock.recv(2) == byte


def test_half_close_lets_the_answer_through(pair: Pair) -> None:
    """After the request's end the whole answer still comes, and the service saw the whole request."""
    request, answer = noise(2 * MB, 2), noise(3 * MB, 3)
    with serving(sending(answer)) as port, connect(pair.forward(port)) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        end, got = read_all(sock)
    assert end == "fin"
    assert got == hashlib.sha256(request).digest() + answer


def test_answer_of_a_service_that_closes_at_once_is_whole(pair: Pair) -> None:
    """A service that writes 3 MB and closes loses none of it, while the client has not closed yet."""
    answer = noise(3 * MB, 4)
    with serving(answering(answer)) as port, connect(pair.forward(port)) as sock:
        assert read_all(sock) == ("fin", answer)


def test_slow_reader_gets_everything(pair: Pair) -> None:
    """A reader that takes nothing until everything on the way is full still gets all 60 MB."""
    answer = noise(60 * MB, 5)
    sent: list[int] = [0]

    def send(connection: socket.socket) -> None:
        for start in range(0, len(answer), 65536):
            connection.sendall(answer[start : start + 65536])
            sent[0] += 1

    def stalled() -> bool:
        before, now = seen[-1], sent[0]
        seen.append(now)
        return now == before > 0

    seen = [0]
    with serving(send) as port, connect(pair.forward(port)) as sock:
        until(stalled, what="the service is held up")
        assert sent[0] * 65536 < len(answer)
        assert read_all(sock) == ("fin", answer)


class Stubborn:
    """A service that ends its own direction at once, and reads only when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.seen: list[tuple[str, bytes]] = []

    def __call__(self, connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        self.go.wait(60)
        self.seen.append(read_all(connection))


def test_half_close_towards_a_reader_that_waits(pair: Pair) -> None:
    """The answer to a half-closed request arrives whole when its reader is slow and the service long gone."""
    request, answer = noise(MB, 9), noise(9 * MB, 10)
    ended = threading.Event()

    def send(connection: socket.socket) -> None:
        sending(answer)(connection)
        ended.set()

    with serving(send) as port, connect(pair.forward(port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        send_all(sock, request)
        assert sock.recv(32) == hashlib.sha256(request).digest()
        ended.wait(2)
        assert read_all(sock) == ("fin", answer)


def test_upload_to_a_service_that_has_ended_and_waits(pair: Pair) -> None:
    """An upload arrives whole at a service that ended its own direction first and reads late."""
    data = noise(9 * MB, 11)
    service = Stubborn()
    with serving(service) as port, connect(pair.forward(port)) as sock:
        assert sock.recv(1) == b""
        writer = threading.Thread(target=send_all, args=(sock, data))
        writer.start()
        writer.join(0.5)
        service.go.set()
        writer.join()
        until(lambda: service.seen, what="the service saw the end")
    assert service.seen == [("fin", data)]


def test_refused_target_resets(pair: Pair) -> None:
    """Where nothing listens at the target the client sees a reset, never a clean end, and `list` says why."""
    local = pair.forward(free_port())
    assert outcome(local) == ("reset", b"")
    status = next(forward for forward in pair.frontend.forwards() if forward["local_port"] == local)
    assert "refused" in status["reason"]


def test_reset_by_the_service_reaches_the_client(pair: Pair) -> None:
    """A service that resets mid-stream gives the client a reset."""
    with serving(resetting(b"begun")) as port, connect(pair.forward(port)) as sock:
        assert sock.recv(5) == b"begun"
        sock.sendall(b"x")
        assert read_all(sock)[0] == "reset"


def test_reset_by_the_client_reaches_the_service(pair: Pair) -> None:
    """A client that resets mid-stream gives the service a reset."""
    ends = Ends(b"begun")
    with serving(ends) as port:
        sock = connect(pair.forward(port))
        assert sock.recv(5) == b"begun"
        reset(sock)
        until(lambda: ends.seen, what="the service saw the end")
    assert ends.seen == [("reset", b"")]


@pytest.mark.parametrize("victim", ["source", "target"])
def test_killed_agent_resets_both_ends(pair: Pair, victim: str) -> None:
    """kill -9 of either agent resets the application and the service; neither sees a clean end."""
    source, target = pair.system.space(f"dies-source-{victim}"), pair.system.space(f"dies-target-{victim}")
    ends = Ends(b"begun")
    local = free_port()
    with serving(ends) as port:
        source.knot("port", "forward", str(local), target.name, str(port))
        with connect(local) as sock:
            assert sock.recv(5) == b"begun"
            (source if victim == "source" else target).kill()
            assert read_all(sock)[0] == "reset"
        until(lambda: ends.seen, what="the service saw the end")
    assert ends.seen[0][0] == "reset"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_services_of_either_loopback_work(pair: Pair, host: str) -> None:
    """A service that listens on 127.0.0.1 alone works, and so does one on ::1 alone."""
    with serving(answering(b"here"), host) as port:
        assert ask(pair.forward(port)) == b"here"


def test_the_same_forward_again_succeeds(pair: Pair) -> None:
    """Repeating a forward is no error and leaves one."""
    with serving(answering(b"one")) as port:
        local = pair.forward(port)
        pair.frontend.knot("port", "forward", str(local), "backend-api", str(port))
        assert ask(local) == b"one"
    assert [forward["local_port"] for forward in pair.frontend.forwards()].count(local) == 1


@pytest.mark.parametrize("first", ["backend-api", "once"])
def test_another_forward_on_the_port_replaces(pair: Pair, first: str) -> None:
    """New connections go to the new target at once; an open one keeps its old target to its end, also when that was
    another space that nothing else leads to."""
    if first == "once":
        pair.system.space("once")
    local = free_port()
    with serving(echo) as old, serving(answering(b"new")) as new:
        pair.frontend.knot("port", "forward", str(local), first, str(old))
        with connect(local) as kept:
            kept.sendall(b"before")
            assert kept.recv(6) == b"before"
            pair.frontend.knot("port", "forward", str(local), "backend-api", str(new))
            assert ask(local) == b"new"
            kept.sendall(b"after")
            kept.shutdown(socket.SHUT_WR)
            assert read_all(kept) == ("fin", b"after")


def test_stop_frees_the_port_and_resets_connections(pair: Pair) -> None:
    """After `stop` nothing listens, and an open connection has been reset."""
    with serving(echo) as port:
        local = pair.forward(port)
        with connect(local) as sock:
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
            assert pair.frontend.knot("port", "stop", str(local)) == f"Port forward on port {local} stopped."
            assert read_all(sock)[0] == "reset"
    assert is_refused(local)


def test_sigterm_lets_open_connections_end(pair: Pair) -> None:
    """An agent told to stop accepts nothing more and lets a stream that is under way finish."""
    source = pair.system.space("drains")
    local = free_port()
    with serving(echo) as port:
        source.knot("port", "forward", str(local), "backend-api", str(port))
        with connect(local) as sock:
            sock.sendall(b"a")
            assert sock.recv(1) == b"a"
            assert source.running is not None
            source.running.process.send_signal(signal.SIGTERM)
            until(lambda: is_refused(local), what="the port is closed")
            sock.sendall(b"b")
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == ("fin", b"b")
        assert source.running.wait() == 0
