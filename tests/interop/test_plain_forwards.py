"""Stock `ssh` forwards ports as its users are used to, through the hub and straight to an endpoint."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.webservice import Web
from tests.support.openssh import RUNNER, SSHD, Sshd
from tests.support.plainssh import HUB_HOST, Desk, Way
from tests.support.services import (
    Ends,
    answering,
    connect,
    free_port,
    is_refused,
    noise,
    read_all,
    send_all,
    sending,
    serving,
)
from tests.support.system import Running
from tests.support.waiting import until

REQUEST, ANSWER = noise(3_000_000, 1), noise(3_000_000, 2)
WHOLE = hashlib.sha256(REQUEST).digest() + ANSWER
"""What `sending(ANSWER)` says to REQUEST once that has ended: so both directions are whole, and end by themselves."""


def exchanged(port: int) -> tuple[str, bytes]:
    """Send REQUEST, end that direction, and read to the end."""
    with connect(port) as sock:
        send_all(sock, REQUEST)
        return read_all(sock)


def listens(port: int) -> None:
    until(lambda: not is_refused(port), what="ssh listens")


def test_local_forward_with_half_close(way: Way) -> None:
    """`-L`: 3 MB up, end of stream, 3 MB back, both whole."""
    local = free_port()
    with serving(sending(ANSWER)) as port, way.running("-L", f"{local}:127.0.0.1:{port}"):
        listens(local)
        assert exchanged(local) == ("fin", WHOLE)


def test_several_local_forwards(way: Way) -> None:
    """Several `-L` on one connection lead each to its own port, by name, IPv4 and IPv6, at the same time."""
    with contextlib.ExitStack() as stack:
        hosts = ["127.0.0.1", "localhost", "::1"]
        locals_ = [free_port() for _ in hosts]
        words = []
        for local, host in zip(locals_, hosts, strict=True):
            port = stack.enter_context(serving(answering(host.encode()), "::1" if ":" in host else "127.0.0.1"))
            words += ["-L", f"127.0.0.1:{local}:[{host}]:{port}"]
        stack.enter_context(way.running(*words))
        for local in locals_:
            listens(local)
        lines = [stack.enter_context(connect(local)) for local in locals_]
        assert [read_all(line) for line in lines] == [("fin", host.encode()) for host in hosts]


def test_stdio_with_half_close(way: Way) -> None:
    """`-W`: stdin goes up to its end, and the answer comes back whole."""
    with serving(sending(ANSWER)) as port:
        result = way.run("-W", f"127.0.0.1:{port}", data=REQUEST)
    assert (result.returncode, result.stdout == WHOLE) == (0, True), result.stderr


def test_jump_host_by_hand(desk: Desk) -> None:
    """`-J knot-hub` leads to a space under its id and its names, as a jump host should."""
    with serving(answering(b"by way of the hub")) as port:
        result = desk.run("-J", HUB_HOST, "-W", f"localhost:{port}", "backend-api.alice.eu.knot")
    assert result.stdout == b"by way of the hub", result.stderr


@pytest.mark.skipif(not SSHD, reason="OpenSSH's sshd is not installed")
def test_space_as_jump_host(way: Way, tmp_path: Path) -> None:
    """`-J` through a space: an sshd on its loopback gives the shell that the endpoint does not."""
    sshd = Sshd(tmp_path)
    (tmp_path / "known_hosts").write_text(f"@cert-authority * {sshd.host_ca}\n")
    own = [("IdentityFile", sshd.client_key), ("UserKnownHostsFile", tmp_path / "known_hosts"), ("HostKeyAlias", sshd.names[0])]
    options = [word for name, value in own for word in ("-o", f"{name}={value}")]
    jump = ["-J", way.host] if not way.options else ["-o", f"ProxyCommand={over(way)}"]
    with sshd.serving(way.desk.system) as (_, port):
        command = [*jump, *options, "-o", "BatchMode=yes", "-p", str(port), f"{RUNNER}@127.0.0.1", "sha256sum"]
        result = way.desk.run(*command, data=REQUEST)
    assert result.stdout.split()[:1] == [hashlib.sha256(REQUEST).hexdigest().encode()], result.stderr


def over(way: Way) -> str:
    """The command that `-J` would make, with options of one's own."""
    return " ".join(["ssh", "-F", str(way.desk.config), *way.options, "-W", "[%h]:%p", way.host])


def test_users_own_stanza(way: Way) -> None:
    """A LocalForward for the space's name, in ~/.ssh/config after our lines, opens with a plain `ssh -N`."""
    local, config = free_port(), way.desk.config
    written = config.read_text()
    with serving(sending(ANSWER)) as port:
        config.write_text(f"{written}\nHost {way.host}\n    LocalForward {local} 127.0.0.1:{port}\n")
        try:
            with way.running():
                listens(local)
                assert exchanged(local) == ("fin", WHOLE)
        finally:
            config.write_text(written)


# One connection for many commands


def test_control_master(shared: Way) -> None:
    """`-O check`, `forward` and `cancel` do what they say, and an open connection outlives the cancelling."""
    local = free_port()
    ends = Ends(b"hello")
    assert b"Master running" in shared.run("-O", "check").stderr
    with serving(ends) as port:
        forward = ("-L", f"{local}:127.0.0.1:{port}")
        assert shared.run("-O", "forward", *forward).returncode == 0
        with connect(local) as sock:
            assert sock.recv(5) == b"hello"
            assert shared.run("-O", "cancel", *forward).returncode == 0
            assert is_refused(local)
            send_all(sock, REQUEST)
            assert read_all(sock) == ("fin", b"")
    assert ends.seen == [("fin", REQUEST)]


def test_stdio_over_a_shared_connection(shared: Way) -> None:
    """`-W` uses the connection that is there: it needs no key and no settings."""
    with serving(answering(b"shared")) as port:
        result = shared.run("-i", "none", "-o", "CertificateFile=none", "-W", f"127.0.0.1:{port}")
    assert result.stdout == b"shared", result.stderr


# SOCKS


@pytest.fixture(scope="module")
def socks(way: Way) -> Iterator[tuple[Running, int]]:
    """`ssh -D`, and its port."""
    local = free_port()
    with way.running("-v", "-D", f"127.0.0.1:{local}") as running:
        listens(local)
        yield running, local


def curl(version: str, proxy: int, url: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """POST through the proxy; without -f and without the environment's own proxies."""
    command = ["curl", "-sS", "-m", "20", "--noproxy", "", f"--{version}", f"127.0.0.1:{proxy}", "--data-binary", "@-", url]
    return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)


CURLE_PROXY = 97
"""curl's exit code for a proxy that ends the connection without an answer."""
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


@needs_curl
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("version", ["socks5", "socks5-hostname", "socks4a"])
def test_socks_to_loopback(socks: tuple[Running, int], version: str, host: str) -> None:
    """`-D`: through SOCKS 5 and 4a curl reaches ports of the space's loopback, with 1 MB each way."""
    request, answer = REQUEST[:1_000_000], ANSWER[:1_000_000]
    web = Web(answer)
    with serving(web, "::1" if ":" in host else "127.0.0.1") as port:
        result = curl(version, socks[1], f"http://{host}:{port}/", request)
    assert result.stdout == answer, result.stderr
    assert web.bodies == [request]


@needs_curl
@pytest.mark.parametrize("host", ["169.254.169.254", "0.0.0.0", "127.0.0.2", "10.0.0.1", "localhost.evil.invalid", "[::]"])
@pytest.mark.parametrize("version", ["socks5-hostname", "socks4a"])
def test_socks_to_anywhere_else(socks: tuple[Running, int], version: str, host: str) -> None:
    """Everything off loopback is refused by the endpoint; no service hears of it, and curl gets nothing."""
    web = Web(b"leak")
    with serving(web, "::" if ":" in host else "0.0.0.0") as port:
        result = curl(version, socks[1], f"http://{host}:{port}/")
    assert (result.returncode, result.stdout) == (CURLE_PROXY, b"")
    assert web.bodies == []
    socks[0].wait_for("administratively prohibited: not allowed here")
    assert ask_again(socks[1])


def ask_again(proxy: int) -> bool:
    """Whether the connection still serves."""
    with serving(Web(b"still there")) as port:
        return curl("socks5", proxy, f"http://127.0.0.1:{port}/").stdout == b"still there"
