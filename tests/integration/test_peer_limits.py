"""What one peer that has logged in may have at a time, at an endpoint and at the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_ssh.addresses import Address
from tests.support.rawssh import Ended, RawSSH
from tests.support.system import System, running_system
from tests.support.waiting import until

MAX = 2


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system in which each peer may have two connections, and ask for one key and prove it."""
    folder = tmp_path_factory.mktemp("narrow")
    with running_system(folder, "--max-peer-connections", str(MAX), "--login-tries", "2") as system:
        yield system


def lives(peer: RawSSH) -> bool:
    """Whether the other side answers."""
    try:
        peer.ask_something()
    except (Ended, OSError):
        return False
    return True


def crowd(address: tuple[str, int], key: Path) -> None:
    """So many connections live, one more does not, and it has a place when another goes."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(RawSSH.login(address, key)) for _ in range(MAX)]
        assert all(map(lives, peers))
        with RawSSH.login(address, key) as late:
            until(lambda: not lives(late), what="the one too many is cut off")  # it may have one more answer first
        assert all(map(lives, peers))
        peers[0].close()
        assert came_in(address, key)


def came_in(address: tuple[str, int], key: Path) -> bool:
    """Whether there is a place again, soon."""
    for _ in range(50):
        with RawSSH.login(address, key) as peer:
            if lives(peer):
                return True
    return False


def test_endpoint(narrow: System, tmp_path: Path) -> None:
    """At an endpoint: connections of one space."""
    config = tmp_path / "agent.yaml"
    config.write_text(f"max_peer_connections: {MAX}\n")
    source = narrow.space("source")
    target = narrow.space("target", run=False)
    token = narrow.api("alice").post("api", "spaces", target.id, "token", body={})["join_token"]
    target.start(token, options=("--config", str(config)))
    crowd(target.endpoint(), source.identity()[0])


def test_hub(narrow: System) -> None:
    """At the hub: connections of one space by its certificate, beside the one of its agent."""
    agent = narrow.space("caller")
    hub = Address.parse(narrow.hub)
    crowd((hub.host, hub.port), agent.identity()[0])
    assert agent.is_running()
