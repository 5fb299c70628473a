"""Arguments that cannot be are refused before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import knot
from knot import space
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, Unavailable
from knot_ssh.wire import FORWARDS_MAX

GOOD = {"local_port": 8080, "space": "backend-api", "remote_port": 3000}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which no server, agent or settings are named."""
    for name in ("KNOT_SERVER", "KNOT_URL", "KNOT_TOKEN", "KNOT_AGENT_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Frontend", 8080, "backend-api", 3000), "space name 'Frontend'"),
        ((None, 8080, "backend-api", 3000), "source: must be text"),
        ((b"frontend", 8080, "backend-api", 3000), "source: must be text"),
        (("frontend", 0, "backend-api", 3000), "local_port: "),
        (("frontend", 65536, "backend-api", 3000), "local_port: "),
        (("frontend", "8080", "backend-api", 3000), "local_port: must be a whole number"),
        (("frontend", True, "backend-api", 3000), "local_port: must be a whole number"),
        (("frontend", 8080.0, "backend-api", 3000), "local_port: must be a whole number"),
        (("frontend", 10**400, "backend-api", 3000), "local_port: "),
        (("frontend", 8080, None, 3000), "space: must be text"),
        (("frontend", 8080, "../users", 3000), "space: "),
        (("frontend", 8080, "\ud800", 3000), "space: "),
        (("frontend", 8080, "backend-api", object()), "remote_port: must be a whole number"),
        (("frontend", 8080, "backend-api", 3000, "yes"), "persistent: must be true or false"),
        (("frontend", 8080, "backend-api", 3000, False, 1), "force: must be true or false"),
    ],
)
def test_forwards_that_cannot_be(arguments: tuple[Any, ...], words: str) -> None:
    """port_forward says which argument is wrong."""
    with pytest.raises(BadInput, match=f"^{words}"):
        space.port_forward(*arguments)


@pytest.mark.parametrize(
    ("forwards", "words"),
    [
        (None, "forwards: must be a list"),
        ("8080", "forwards: must be a list"),
        ({8080: 3000}, "forwards: must be a list"),
        ([8080], r"forwards\.0: must be keys with values"),
        ([GOOD, {"local_port": 1}], r"forwards\.1\.space: is missing"),
        ([GOOD | {"port": 1}], r"forwards\.0\.port: is not known here"),
        ([GOOD | {"local_port": 0}], r"forwards\.0\.local_port: "),
        ([GOOD | {"remote_port": {1, 2}}], r"forwards\.0\.remote_port: must be a whole number"),
        ([GOOD] * (FORWARDS_MAX + 1), "forwards: "),
    ],
)
def test_lists_that_cannot_be(forwards: Any, words: str) -> None:
    """port_apply says which entry is wrong, and in what."""
    with pytest.raises(BadInput, match=f"^{words}"):
        space.port_apply("frontend", forwards)


def test_other_arguments_that_cannot_be() -> None:
    """port_list and port_stop likewise."""
    calls: list[Any] = [
        lambda: space.port_list(None),  # type: ignore[arg-type]
        lambda: space.port_list(""),
        lambda: space.port_stop("frontend", "8080"),  # type: ignore[arg-type]
        lambda: space.port_stop("frontend", 8080, drain=1),  # type: ignore[arg-type]
        lambda: space.port_apply("frontend", [], dry_run="no"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(BadInput):
            call()


def test_nothing_is_configured() -> None:
    """Outside a space and without settings the error says what to do."""
    with pytest.raises(BadInput, match="knot login"):
        space.port_list("frontend")


def test_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server without a token is not asked."""
    monkeypatch.setenv("KNOT_URL", "http://127.0.0.1:1")
    with pytest.raises(NotAuthenticated):
        space.port_list("frontend")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A named agent that is gone is not replaced by a server, and a server that is gone is Unavailable."""
    monkeypatch.setenv("KNOT_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("KNOT_TOKEN", "knot_a_b")
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        space.port_list("frontend")
    monkeypatch.setenv("KNOT_AGENT_SOCKET", str(tmp_path / "agent.sock"))
    with pytest.raises(Unavailable, match="no agent answers"):
        space.port_list("frontend")


def test_every_error_of_the_api_can_be_imported() -> None:
    """What a call can raise stands in `knot`, as the very classes of the project."""
    assert all(issubclass(getattr(knot, name), KnotError) for name in knot.__all__)
