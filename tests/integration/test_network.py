"""Agents in network namespaces of their own: what works without further settings."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services import free_port
from tests.support.system import Running, System, knot_command
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces"),
    pytest.mark.skipif(not shutil.which("ip"), reason="iproute2 is not installed"),
]

SERVER, NEAR, FAR = "10.213.0.1", "10.213.0.2", "10.213.0.3"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def namespaces(tag: str, *addresses: str) -> Iterator[list[str]]:
    """Namespaces on one bridge, one for each address; gives their names."""
    names = [f"{tag}{number}" for number in range(len(addresses))]
    hub = f"{tag}br"
    try:
        ip("netns", "add", hub)
        ip("-n", hub, "link", "add", "br0", "type", "bridge")
        ip("-n", hub, "link", "set", "br0", "up")
        for name, address in zip(names, addresses, strict=True):
            ip("netns", "add", name)
            ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", hub)
            ip("-n", hub, "link", "set", name, "master", "br0", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in (*names, hub):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def test_wildcard_endpoint_is_reachable_from_another_namespace(tmp_path: Path) -> None:
    """An agent with default settings advertises the address it reaches the hub from, and is reached there."""
    tag = f"k{os.getpid() % 100000}"
    with namespaces(tag, SERVER, NEAR, FAR) as (server, near, far), contextlib.ExitStack() as stack:
        data = str(tmp_path / "server")
        system = System(tmp_path)
        (tmp_path / "home").mkdir()
        token = system.knot("server", "init", "--data", data)
        prefix = ("ip", "netns", "exec")

        def run(place: str, name: str, *words: str, env: dict[str, str] | None = None) -> Running:
            running = Running(list(words), tmp_path / f"{name}.log", system.environment(env or {}), (*prefix, place))
            stack.callback(running.stop)
            return running

        def knot(place: str, *words: str, env: dict[str, str]) -> str:
            command = [*prefix, place, *knot_command(*words)]
            environment = system.environment(env)
            result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert result.returncode == 0, result.stderr
            return result.stdout.strip()

        addresses = ("--http", f"{SERVER}:3000", "--ssh", f"{SERVER}:2222", "--allow-plain-http")
        run(server, "server", *knot_command("server", "run", "--data", data, *addresses)).wait_for("server ready")
        desktop = {"KNOT_SERVER": f"http://{SERVER}:3000", "KNOT_TOKEN": token, "KNOT_ALLOW_PLAIN_HTTP": "1"}
        for place, name in ((near, "near"), (far, "far")):
            joining = {"KNOT_JOIN_TOKEN": knot(server, "space", "create", name, "--zone", "eu", env=desktop)}
            words = ("agent", "run", "--data", str(tmp_path / name), "--server", f"{SERVER}:2222")
            run(place, name, *knot_command(*words), env=joining).wait_for("certified")
        site = tmp_path / "site"
        site.mkdir()
        (site / "index.html").write_text("far away")
        port = free_port()
        web = ("-m", "http.server", "--bind", "127.0.0.1", "--directory", str(site), str(port))
        run(far, "web", sys.executable, *web)
        knot(server, "port", "forward", "near", "8080", "far", str(port), env=desktop)

        def fetched() -> bool:
            curl = [*prefix, near, "curl", "-s", "http://127.0.0.1:8080/"]
            return subprocess.run(curl, capture_output=True, timeout=30, check=False).stdout == b"far away"

        until(fetched, what="the page from the other namespace")
        listing = knot(server, "port", "list", "near", "--json", env=desktop)
        assert f"{FAR}:2022" in listing
