"""docs/plain-ssh.md does what it says: its table, its commands, and its scripts as they stand."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.interop.page import commands, settings, snippet
from tests.support.plainssh import Desk, set_up
from tests.support.services import connect, free_port, is_refused, noise, read_all, send_all, sending, serving
from tests.support.system import Running, System
from tests.support.waiting import until

REQUEST, ANSWER = noise(3_000_000, 3), noise(3_000_000, 4)
WHOLE = hashlib.sha256(REQUEST).digest() + ANSWER
SERVER = "https://knot.example.com"
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


def shown(desk: Desk, host: str) -> dict[str, str]:
    """What `ssh -G` makes of the configuration."""
    lines = desk.run("-G", host).stdout.decode().splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)


def test_table_of_settings(desk: Desk, pair: Pair) -> None:
    """`ssh -G backend-api.knot` shows every row of the table, and the table has every setting that was written."""
    effective, documented = shown(desk, "backend-api.knot"), settings()
    expected = {name: value.replace("~", str(desk.home)) for name, value in documented.items()}
    expected |= {name: pair.backend.id for name, value in documented.items() if value == "the space's id"}
    assert {name: effective.get(name) for name in documented} == expected
    written = (desk.folder / "ssh_config").read_text() + (desk.folder / "spaces").read_text()
    names = {name.lower() for name in re.findall(r"^    (\w+) ", written, re.MULTILINE)} - {"include"}
    assert names & set(effective) == set(documented)


@pytest.mark.parametrize("line", commands("ssh", "autossh"))
def test_commands(desk: Desk, line: str) -> None:
    """ssh takes every command of the page, and reads a host and a configuration from it."""
    words = [word for word in shlex.split(line) if word not in {"-F", "~/.ssh/knot-by-hand/config"}]
    words = words[next(number for number, word in enumerate(words) if "=" not in word) + 1 :]
    words = words[2:] if words[:2] == ["-M", "0"] else words
    result = desk.run("-T", "-G", *words)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"\nuser " in b"\n" + result.stdout


# Whoever has nothing but ssh, ssh-keygen and curl


@contextlib.contextmanager
def carried(command: list[str], local: int, environment: dict[str, str], log: Path) -> Iterator[Running]:
    """The command runs, and its local port leads to a service that answers REQUEST with WHOLE."""
    running = Running(command, log, environment)
    try:
        until(lambda: not is_refused(local) or running.process.poll() is not None, what="it listens")
        assert running.process.poll() is None, running.lines()
        with connect(local) as sock:
            send_all(sock, REQUEST)
            assert read_all(sock) == ("fin", WHOLE)
        yield running
    finally:
        running.stop()


def script(system: System, home: Path, **replaced: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the page in this home, with the token in the file that it names."""
    (home / "knot-token").write_text(system.user("alice") + "\n")
    text = snippet("only-ssh", {SERVER: system.url, **replaced})
    environment = system.environment({"HOME": str(home)})
    command = ["sh", "-c", text]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=30, check=False)


@needs_curl
def test_only_ssh_and_curl(pair: Pair, tmp_path: Path) -> None:
    """The script makes files that nobody else can read, without the token in them; with those `ssh` forwards a port. A second
    run keeps the key."""
    for _ in range(2):
        result = script(pair.system, tmp_path)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    made = list((tmp_path / ".ssh" / "knot-by-hand").iterdir())
    assert {path.name for path in made} == {"id", "id.pub", "id-cert.pub", "known_hosts", "config", "ca", "certificate"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o600}
    assert not any(pair.system.user("alice") in path.read_text() for path in made)
    local = free_port()
    with serving(sending(ANSWER)) as port:
        line = snippet("only-ssh-forward", {"8080": str(local), "3000": str(port)})
        environment = pair.system.environment({"HOME": str(tmp_path)})
        with carried(["sh", "-c", f"exec {line}"], local, environment, tmp_path / "log"):
            pass


@needs_curl
def test_only_ssh_and_curl_without_a_good_token(pair: Pair, tmp_path: Path) -> None:
    """With a wrong token the script ends at once with curl's one line, and leaves no configuration behind."""
    (tmp_path / "other").write_text("knot_0123456789ab_wrong\n")
    result = script(pair.system, tmp_path, **{"$HOME/knot-token": "$HOME/other"})
    assert result.returncode != 0
    assert re.fullmatch(r"curl: \(22\) .* 401.*\n", result.stderr)
    assert not (tmp_path / ".ssh" / "knot-by-hand" / "config").exists()


# paramiko


@pytest.fixture(scope="module")
def own_desk(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """A desk for scripts."""
    return set_up(pair.system, tmp_path_factory.mktemp("desk"), "alice")


def program(pair: Pair, way: str, local: int, remote: int, replaced: dict[str, str]) -> list[str]:
    """The page's example, through the hub or straight, with our server and ports in it."""
    text = snippet("paramiko", {SERVER: pair.system.url, "8080": str(local), "3000": str(remote)})
    if way == "straight":
        _, port = pair.backend.endpoint()
        through_the_hub = text[text.index('host, _, port = ca["hub"]') : text.index("\nwith socket.create_server")]
        line = snippet("paramiko-straight", {"10.0.0.7": "127.0.0.1", "2022": str(port)})
        text = text.replace(through_the_hub, line)
    for documented, ours in replaced.items():
        assert documented in text
        text = text.replace(documented, ours)
    return [sys.executable, "-c", text]


def environment(pair: Pair, desk: Desk) -> dict[str, str]:
    return desk.environment | {"KNOT_TOKEN": pair.system.user("alice"), "PATH": os.environ["PATH"]}


@pytest.mark.parametrize("way", ["through the hub", "straight"])
def test_paramiko(pair: Pair, own_desk: Desk, way: str, tmp_path: Path) -> None:
    """The example forwards a port, whole and with half-close, one connection after the other and beside each other."""
    local = free_port()
    with serving(sending(ANSWER)) as port:
        command = program(pair, way, local, port, {})
        with carried(command, local, environment(pair, own_desk), tmp_path / "log") as running:
            with connect(local) as first, connect(local) as second:
                for sock in (second, first):
                    send_all(sock, REQUEST)
                    assert read_all(sock) == ("fin", WHOLE)
            assert running.lines() == []


WRONG_PINS = {
    "the endpoint's, through the hub": ("through the hub", 'space["host_key"]', 'ca["hub_key"]'),
    "the endpoint's, straight": ("straight", 'space["host_key"]', 'ca["hub_key"]'),
    "the hub's": ("through the hub", 'ca["hub_key"]', 'space["host_key"]'),
}


@pytest.mark.parametrize("pin", WRONG_PINS)
def test_paramiko_with_another_key(pair: Pair, own_desk: Desk, pin: str) -> None:
    """A key that is not the pinned one ends the example before it logs in or listens."""
    way, documented, wrong = WRONG_PINS[pin]
    local = free_port()
    result = subprocess.run(
        program(pair, way, local, 1, {documented: wrong}),
        env=environment(pair, own_desk), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "paramiko.ssh_exception.SSHException: Bad host key from server"
    assert is_refused(local)
