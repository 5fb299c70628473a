"""Strict agents, cut off from the server: they let nobody in, and end what is open, once their list of what is revoked is too
old."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.beds import FULL
from tests.support.couples import Couple, ended_after
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.services import free_port
from tests.support.system import AgentOf, System, running_system
from tests.support.waiting import until

AGE = 20
"""Seconds, the least that there may be."""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    with running_system(tmp_path) as system:
        yield system


def be(agent: AgentOf, *, strict: bool) -> None:
    """Have the agent be strict, or not, from its next start on."""
    text = f"strict: true\nrevocation_max_age: {AGE}\n" if strict else "{}"
    agent.folder.with_suffix(".yaml").write_text(text)


def start(agent: AgentOf, listen: str) -> None:
    options = ("--config", str(agent.folder.with_suffix(".yaml")))
    agent.start_without_waiting(listen=listen, options=options).wait_for("agent ready")


@pytest.mark.fault("server away, a strict agent", "what is open ends after 20 s, and comes back by itself")
@pytest.mark.parametrize("which", ["source", "target"] if FULL else ["target"])
def test_server_away(system: System, which: str, figure: Figure) -> None:
    """A strict agent goes on for so long, then ends its streams, both as source and as target, and lets nothing new through;
    restarted, it waits for the server; with the server all is well again."""
    couple = Couple(system, "direct", "strict")
    agent, other = (couple.source, couple.target) if which == "source" else (couple.target, couple.source)
    with Ledger() as ledger:
        port, listen = ledger.service().port, f"127.0.0.1:{free_port()}"
        local = couple.forward(port, persistent=True)
        agent.stop()
        be(agent, strict=True)
        start(agent, listen)
        line = ledger.served(local)
        assert system.server
        began = time.monotonic()
        system.server.stop()
        took = ended_after([line], began)
        figure(f"{took:.1f} s")
        assert AGE - 5 <= took <= AGE + 5
        assert agent.running
        agent.running.wait_for("revocations too old")
        assert not ledger.open(local).is_served
        agent.running.stop()
        start(agent, listen)
        if which == "target":
            assert "revocations too old" in agent.running.wait_for("login refused")
        else:
            until(lambda: "is strict" in str(couple.forwarded(local)["reason"]), what="it says why")
        system.start()
        ledger.finish([ledger.served(local)])
        assert other.running
        assert other.running.process.poll() is None
