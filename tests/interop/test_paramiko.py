"""paramiko against an agent's endpoint: another SSH implementation, dialled directly."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from tests.conftest import Pair
from tests.support.forgery import Forge, signed
from tests.support.services import Ends, noise, sending, serving
from tests.support.waiting import until


@contextmanager
def transport(pair: Pair, key: Path, *, login: str = "knot") -> Iterator[paramiko.Transport]:
    """A connection to backend-api, its host key pinned from the API (paramiko ignores host certificates)."""
    pinned = next(space["host_key"] for space in pair.system.spaces("alice") if space["name"] == "backend-api")
    connection = paramiko.Transport(socket.create_connection(pair.backend.endpoint(), timeout=10))
    try:
        connection.start_client(timeout=10)
        shown = connection.get_remote_server_key()
        assert f"{shown.get_name()} {shown.get_base64()}" == pinned
        credential = paramiko.Ed25519Key.from_private_key_file(str(key))
        credential.load_certificate(str(key) + "-cert.pub")
        connection.auth_publickey(login, credential)
        yield connection
    finally:
        connection.close()


def opened(connection: paramiko.Transport, port: int, host: str = "127.0.0.1") -> paramiko.Channel:
    return connection.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 1), timeout=10)


def test_half_close_with_hashes(pair: Pair, tmp_path: Path) -> None:
    """4 MB up, end of stream, 3 MB back: both whole."""
    request, answer = noise(4_000_000, 6), noise(3_000_000, 7)
    key = pair.system.certificate("alice", tmp_path)
    with serving(sending(answer)) as port, transport(pair, key) as connection:
        channel = opened(connection, port)
        channel.settimeout(30)
        channel.sendall(request)
        channel.shutdown_write()
        got = b"".join(iter(lambda: channel.recv(65536), b""))
    assert got == hashlib.sha256(request).digest() + answer


def test_closing_right_after_sending_loses_nothing(pair: Pair, tmp_path: Path) -> None:
    """A client that sends and closes at once: the service reads all of it and a clean end."""
    data = noise(2_000_000, 8)
    ends = Ends()
    key = pair.system.certificate("alice", tmp_path)
    with serving(ends) as port, transport(pair, key) as connection:
        channel = opened(connection, port)
        channel.sendall(data)
        channel.close()
        until(lambda: ends.seen, what="the service saw the end")
    assert ends.seen == [("fin", data)]


def test_lost_connection_resets_the_service(pair: Pair, tmp_path: Path) -> None:
    """When the connection dies without an end of stream, the service sees a reset."""
    ends = Ends(b"begun")
    key = pair.system.certificate("alice", tmp_path)
    with serving(ends) as port:
        with transport(pair, key) as connection:
            channel = opened(connection, port)
            assert channel.recv(5) == b"begun"
            channel.sendall(b"part")
        until(lambda: ends.seen, what="the service saw the end")
    assert ends.seen[0][0] == "reset"


@pytest.mark.parametrize("login", ["root", "join", "bob@eu", "", "x" * 500])
def test_login_name_changes_nothing(pair: Pair, tmp_path: Path, login: str) -> None:
    """Whatever the login name, the certificate decides."""
    key = pair.system.certificate("alice", tmp_path)
    with transport(pair, key, login=login) as connection:
        assert connection.is_authenticated()


@pytest.mark.parametrize("login", ["knot", "alice", "alice@eu", "backend-api"])
@pytest.mark.parametrize("principal", ["bob@eu", "alice@us"])
def test_others_are_refused_at_login(pair: Pair, tmp_path: Path, principal: str, login: str) -> None:
    """Certificates of another owner and of another zone do not enter, under any login name."""
    owner, _, zone = principal.partition("@")
    key = signed(principals=principal, key_id=f"person/{owner}/{zone}/-/-")(Forge(pair.system, tmp_path))
    with pytest.raises(paramiko.AuthenticationException), transport(pair, key, login=login):
        pass


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 2**32 - 1), ("localhost\0", 80), ("8.8.8.8", 80)])
def test_odd_destinations_are_refused(pair: Pair, tmp_path: Path, host: str, port: int) -> None:
    """Ports that are none, and hosts off loopback, are administratively prohibited; the connection lives on."""
    key = pair.system.certificate("alice", tmp_path)
    with serving(Ends()) as good, transport(pair, key) as connection:
        with pytest.raises(paramiko.ChannelException) as caught:
            opened(connection, port, host)
        assert caught.value.code == 1
        assert opened(connection, good).active


def test_sessions_and_reverse_forwards_are_refused(pair: Pair, tmp_path: Path) -> None:
    """No session channel opens, and no port is opened for the client."""
    key = pair.system.certificate("alice", tmp_path)
    with transport(pair, key) as connection:
        with pytest.raises(paramiko.ChannelException):
            connection.open_session(timeout=10)
        with pytest.raises(paramiko.SSHException):
            connection.request_port_forward("127.0.0.1", 0)
