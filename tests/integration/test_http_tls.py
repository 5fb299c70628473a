"""The HTTP API over TLS, with curl, our own client and the wire; and where it does not listen without."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from knot_ssh.errors import BadInput, KnotError
from tests.support.certificates import DAY, NAME, TlsCa
from tests.support.system import Running, System, running_system
from tests.support.waiting import until

HEAD_TIME = 1.0
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: knot.example.com\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Site:
    """A server with a certificate of a CA of its own."""

    system: System
    ca: TlsCa

    @property
    def port(self) -> int:
        return int(self.system.http_address.rpartition(":")[2])

    @property
    def server(self) -> Running:
        assert self.system.server is not None
        return self.system.server

    def connect(self) -> ssl.SSLSocket:
        """A connection whose server was checked by name."""
        context = ssl.create_default_context(cafile=self.ca.file)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 20), server_hostname=NAME)

    def serial(self) -> int:
        """The serial of the certificate that new connections get."""
        with self.connect() as sock:
            return int(str((sock.getpeercert() or {})["serialNumber"]), 16)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    ca = TlsCa(folder)
    ca.certify()
    options = ("--tls-cert", str(ca.cert), "--tls-key", str(ca.key), "--hosts", NAME)
    with running_system(folder, *options, "--http-head-time", str(HEAD_TIME), "--max-http-connections", "16") as system:
        yield Site(system, ca)


def answered(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(REQUEST)
    return sock.recv(65536)


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(site: Site) -> None:
    """curl is satisfied with the CA, refuses without it, and hears that this is a place for https."""
    url = f"https://localhost:{site.port}/healthz"
    command = ["curl", "-sS", "--include", "--cacert", str(site.ca.file), url]
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.lower()
    assert found.startswith("http/1.1 200 ")
    assert "strict-transport-security: max-age=" in found
    assert subprocess.run(["curl", "-sS", url], capture_output=True, timeout=30, check=False).returncode != 0


def test_url_says_https(site: Site) -> None:
    """The address that the server tells is one of TLS."""
    assert site.system.url.startswith("https://127.0.0.1:")


def test_login_with_a_ca(site: Site, tmp_path: Path) -> None:
    """`knot login --ca` keeps the CA, so that later commands check by it; without it the server is not trusted."""
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    words = ("login", "--server", site.system.url, "--token", "-")
    token = site.system.tokens["admin"]
    said = site.system.knot(*words, stdin=token, env=env, code=1)
    assert "cannot be trusted" in said
    assert "--ca FILE" in said
    assert token not in said
    site.system.knot(*words, "--ca", str(site.ca.file), stdin=token, env=env)
    assert "admin" in site.system.knot("user", "list", env=env)
    kept = {"KNOT_SERVER": site.system.url, "KNOT_TOKEN": token}
    site.system.knot("user", "list", env=kept, code=1)
    site.system.knot("user", "list", env=kept | {"KNOT_CA_FILE": str(site.ca.file)})


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_ca_file_that_is_none(site: Site, tmp_path: Path, content: bytes | None) -> None:
    """It is one line, and never the system's roots instead."""
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    words = ("login", "--server", site.system.url, "--token", "-", "--ca", str(file))
    assert str(file) in site.system.knot(*words, stdin=site.system.tokens["admin"], code=2)


def test_another_ca(site: Site, tmp_path: Path) -> None:
    """A server that somebody else's CA certifies is not trusted, whatever its name."""
    stranger = TlsCa(tmp_path)
    env = {"KNOT_SERVER": site.system.url, "KNOT_TOKEN": "knot_x", "KNOT_CA_FILE": str(stranger.file)}
    assert "cannot be trusted" in site.system.knot("user", "list", env=env, code=1)


def test_renewal(site: Site) -> None:
    """New connections get a renewed certificate soon, and at once on SIGHUP; the open one goes on, and a bad file changes
    nothing."""
    with site.connect() as sock:
        assert answered(sock).startswith(b"HTTP/1.1 200 ")
        serial = site.ca.certify()
        until(lambda: site.serial() == serial, what="the new certificate is served")
        site.ca.certify(until=-DAY)
        site.server.process.send_signal(signal.SIGHUP)
        site.server.wait_for("TLS certificate not renewed")
        assert site.serial() == serial
        serial = site.ca.certify()
        site.server.process.send_signal(signal.SIGHUP)
        until(lambda: site.serial() == serial, what="the next certificate is served")
    with site.connect() as sock:
        assert answered(sock).startswith(b"HTTP/1.1 200 ")


def test_no_handshake(site: Site) -> None:
    """Who connects and shakes no hands is let go of in the time for a head, and keeps nobody out meanwhile."""
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        flood = [stack.enter_context(socket.create_connection(("127.0.0.1", site.port), 20)) for _ in range(64)]
        with site.connect() as sock:
            assert answered(sock).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - begin < 5
        for sock_ in flood:
            with contextlib.suppress(ConnectionResetError):
                assert sock_.recv(1) == b""
    assert time.monotonic() - begin < HEAD_TIME + 10


def test_plain_http_at_the_door(site: Site) -> None:
    """A request in the clear is not answered, and the next one over TLS is; the log has no traceback."""
    for noise in (REQUEST, b"\x16\x03\x01\xff\xff" + b"\0" * 100, b"\0"):
        with socket.create_connection(("127.0.0.1", site.port), 20) as sock, contextlib.suppress(ConnectionResetError):
            sock.sendall(noise)
            assert b"200" not in sock.recv(4096)
    with site.connect() as sock:
        assert answered(sock).startswith(b"HTTP/1.1 200 ")
    assert not [
        line for line in site.server.lines() if "Traceback" in line or (" error " in line and "not renewed" not in line)
    ]


# Where it does not listen


def refused(folder: Path, *options: str) -> str:
    """The one line with which a server does not start."""
    system = System(folder)
    (folder / "home").mkdir()
    data = str(folder / "server")
    system.knot("server", "init", "--data", data)
    return system.knot("server", "run", "--data", data, "--ssh", "127.0.0.1:0", *options, code=2)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.7:3000", "knot.example.com:3000"])
def test_not_off_loopback_without_tls(tmp_path: Path, address: str) -> None:
    """The server does not listen where others reach it, and says what to do, before it opens anything."""
    said = refused(tmp_path, "--http", address)
    assert "--tls-cert" in said
    assert "--allow-plain-http" in said


def test_half_a_pair(tmp_path: Path) -> None:
    """A certificate without a key is no TLS, and not a reason to do without."""
    assert "both, or neither" in refused(tmp_path, "--tls-cert", str(tmp_path / "tls.pem"))


def test_a_wrong_certificate_stops_the_start(tmp_path: Path) -> None:
    """An expired certificate is told at the start, not by clients."""
    ca = TlsCa(tmp_path)
    ca.certify(until=-DAY)
    assert "expired" in refused(tmp_path, "--http", "0.0.0.0:0", "--tls-cert", str(ca.cert), "--tls-key", str(ca.key))


def test_off_loopback_when_told(tmp_path: Path) -> None:
    """With TLS, or told that a proxy speaks it, it listens anywhere."""
    with running_system(tmp_path, "--http", "0.0.0.0:0", "--allow-plain-http") as system:
        assert system.server is not None
        assert "http://0.0.0.0:" in system.server.wait_for("server ready")


def test_no_token_in_the_clear(tmp_path: Path) -> None:
    """Command line and scripts send no token to another machine without TLS, unless told; nothing leaves before that."""
    from knot_ssh.api import Api
    from knot_ssh.trust import Trust

    system = System(tmp_path)
    (tmp_path / "home").mkdir()
    for url in ("http://10.0.0.5:3000", "http://knot.example.com", "http://127.0.0.1.example.com", "http://localhost.evil"):
        said = system.knot("login", "--server", url, "--token", "knot_x", code=2)
        assert "--allow-plain-http" in said
        system.knot("space", "list", env={"KNOT_SERVER": url, "KNOT_TOKEN": "knot_x"}, code=2)
        with pytest.raises(BadInput):
            Api(url, "knot_x")
        Api(url, "knot_x", trust=Trust(allow_plain_http=True))
    with pytest.raises(KnotError):
        Api("http://127.0.0.1:1", "knot_x").get("x")
