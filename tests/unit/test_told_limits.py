"""docs/security.md says plainly what cannot be stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.figures import Figure

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
TOLD = "told in docs/security.md"


def section(heading: str) -> str:
    """The text below this heading, in one line."""
    _, found, rest = PAGE.read_text().partition(f"## {heading}\n")
    assert found, heading
    return " ".join(rest.partition("\n## ")[0].split())


@pytest.mark.threat(8, "the server, taken over, certifies anyone", f"not stopped by certificates alone: {TOLD}")
def test_server_as_authority(figure: Figure) -> None:
    """The page says that the server can mint access, what it can see, and what it would take to stop it."""
    text = section("If the server is taken over")
    figure("told: certifies anyone, reaches every space; no countersignature yet")
    assert "can certify anyone as anyone, and so reach the loopback ports of every space" in text
    assert "Certificates alone do not stop that" in text
    assert "countersignature by a key that the owner holds, which there is not yet" in text


@pytest.mark.threat(15, "another local user connects to a forward's port", f"TCP cannot stop it: {TOLD}")
def test_local_ports(figure: Figure) -> None:
    """The page says that a local port is open to everybody on the machine, and what would not be."""
    text = section("Who is trusted with what")
    figure("told: TCP on 127.0.0.1 has no permissions; a unix socket would")
    assert "can use a forward's local port: TCP on 127.0.0.1 has no permissions" in text
    assert "unix socket" in text


@pytest.mark.threat(23, "revoke while an agent is cut off from the hub", f"bounded by the certificate's life: {TOLD}")
def test_revocation_offline(figure: Figure) -> None:
    """The page says for how long an agent that cannot be told goes on believing a certificate."""
    text = section("Revocation")
    figure("told: an hour at most, and what `strict: true` makes of it")
    assert "An agent that is cut off from the hub cannot know" in text
    assert "a revoked one that it has not heard of opens channels for an hour at most" in text
    assert "strict: true" in text
