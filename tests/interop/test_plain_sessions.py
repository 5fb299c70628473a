"""What is not there is refused in one clear line: shells, commands, files, terminals, at an endpoint and at the hub."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from tests.conftest import Pair
from tests.support.plainssh import HUB_HOST, Desk, Way
from tests.support.services import answering, free_port, serving

PROMPT = 5
"""Seconds that a refusal may take on a machine that has other work; it takes a tenth of one."""
ENDPOINT_SAYS = "this endpoint forwards ports and has no shell, commands or files"
HUB_SAYS = "the hub leads to the endpoints of spaces and has no shell, commands or files"
SSH_SAYS_ITSELF = (
    "Connection to ",
    "Connection closed",
    "scp: Connection closed",
    "lost connection",
    "Pseudo-terminal will not",
)
"""What ssh, sftp and scp add, whatever the reason was."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Something that people try, as words before and after the host."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    program: str = "ssh"


WISHES = {
    "a shell": Wish(),
    "a shell without a terminal": Wish(("-T",)),
    "a terminal": Wish(("-tt",)),
    "a command": Wish(after=("id",)),
    "a command on a terminal": Wish(("-tt",), ("id",)),
    "a subsystem": Wish(("-s",), ("sftp",)),
    "agent and X11 forwarding": Wish(("-A", "-X", "-T")),
    "the control subsystem": Wish(("-s",), ("knot-control",)),
    "sftp": Wish(program="sftp"),
}


def told(stderr: bytes) -> list[str]:
    """The lines that are not the client's own comment."""
    return [line for line in stderr.decode().splitlines() if line.strip() and not line.startswith(SSH_SAYS_ITSELF)]


def check(desk: Desk, options: tuple[str, ...], host: str, wish: Wish, says: str) -> None:
    """Refused at once, with one line and exit code 255."""
    began = time.monotonic()
    options = tuple("-P" if word == "-p" and wish.program == "sftp" else word for word in options)
    result = desk.run(*options, *wish.before, host, *wish.after, program=wish.program)
    assert (result.returncode, result.stdout) == (255, b"")
    assert told(result.stderr) == [f"channel 0: open failed: administratively prohibited: {says}"]
    assert time.monotonic() - began < PROMPT


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_endpoint(way: Way, wish: Wish) -> None:
    """An endpoint says that it forwards ports."""
    check(way.desk, way.options, way.host, wish, ENDPOINT_SAYS)


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
def test_hub(desk: Desk, wish: Wish) -> None:
    """The hub says that it leads to spaces."""
    check(desk, (), HUB_HOST, wish, HUB_SAYS)


def test_scp(way: Way, tmp_path: Path) -> None:
    """scp, whose exit code for any failure is its own, says the same."""
    file = tmp_path / "file"
    file.write_text("a file")
    options = ["-P" if word == "-p" else word for word in way.options]
    result = way.desk.run(*options, str(file), f"{way.host}:file", program="scp")
    assert result.returncode != 0
    assert [line.partition("prohibited: ")[2] for line in told(result.stderr)] == [ENDPOINT_SAYS]


def test_reverse_forward(way: Way) -> None:
    """`-R` fails as OpenSSH says it for every server that does not have it."""
    port = free_port()
    result = way.run("-N", "-o", "ExitOnForwardFailure=yes", "-R", f"{port}:127.0.0.1:1")
    assert (result.returncode, told(result.stderr)) == (255, [f"Error: remote port forwarding failed for listen port {port}"])


def test_through_a_shared_connection(shared: Way) -> None:
    """Over ControlMaster the sentence comes, too, and forwards on that connection go on."""
    result = shared.run(then=("id",))
    assert result.returncode == 255
    assert told(result.stderr)[-1].endswith(ENDPOINT_SAYS)
    with serving(answering(b"still there")) as port:
        assert shared.run("-W", f"127.0.0.1:{port}").stdout == b"still there"


@pytest.mark.parametrize("where", ["endpoint", "hub"])
def test_paramiko(pair: Pair, desk: Desk, caplog: pytest.LogCaptureFixture, where: str) -> None:
    """paramiko gets a refused channel at once, with the sentence in its log, and its connection lives on."""
    says = ENDPOINT_SAYS if where == "endpoint" else HUB_SAYS
    hub_host, _, hub_port = pair.system.hub.rpartition(":")
    address = pair.backend.endpoint() if where == "endpoint" else (hub_host, int(hub_port))
    credential = paramiko.Ed25519Key.from_private_key_file(str(desk.folder / "id_ed25519"))
    credential.load_certificate(str(desk.folder / "id-cert.pub"))
    connection = paramiko.Transport(socket.create_connection(address, timeout=10))
    try:
        connection.connect(username="knot", pkey=credential)
        with caplog.at_level(logging.DEBUG, "paramiko"), pytest.raises(paramiko.ChannelException) as caught:
            connection.open_session(timeout=PROMPT)
        assert caught.value.code == 1
        assert says in caplog.text
        assert connection.is_active()
    finally:
        connection.close()
