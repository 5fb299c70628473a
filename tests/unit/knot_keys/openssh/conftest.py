"""A home folder, a CA, and a server that says what a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_keys.authority import Authority
from knot_keys.openssh.places import Places
from tests.support.saying_api import SayingApi, saying_api


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another authority."""
    return Authority.create(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def server(authority: Authority) -> Iterator[SayingApi]:
    """A server that answers as it should, with one space, until a test changes that."""
    with saying_api(authority) as running:
        space_id = "11111111-2222-3333-4444-555555555555"
        running.spaces = [{"id": space_id, "name": "frontend", "owner": "alice", "zone": "eu", "running": True}]
        yield running


@pytest.fixture
def places(tmp_path: Path, server: SayingApi, monkeypatch: pytest.MonkeyPatch) -> Places:
    """An empty home folder of somebody who may use that server."""
    for variable in ("KNOT_URL", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KNOT_SERVER", server.url)
    monkeypatch.setenv("KNOT_TOKEN", "knot_secret")
    return Places.here()
