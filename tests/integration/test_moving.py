"""A space moves to another zone: what crosses the border ends, what lies on the new side works, and nobody joins again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from knot_keys.certificates import read_certificate
from knot_ssh.errors import OtherZone
from tests.support.couples import LIMIT, Couple, ended_after
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.services import answering, ask, serving
from tests.support.system import AgentOf, System, running_system
from tests.support.waiting import until

PATHS = ["direct", "relay"]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("moving")) as system:
        yield system


def move(couple: Couple, agent: AgentOf, zone: str) -> None:
    couple.api.patch("api", "spaces", agent.id, body={"zone": zone})


def certified_for(agent: AgentOf) -> set[str]:
    """The principals of both certificates."""
    files = [agent.identity()[1], agent.folder / "host_key-cert.pub"]
    return {principal for file in files for principal in read_certificate(file.read_text()).principals}


def stands(couple: Couple, local: int, **expected: Any) -> bool:
    return expected.items() <= couple.forwarded(local).items()


@pytest.mark.fault("space moved to another zone", "last byte within 2 s")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("which", ["source", "target"])
def test_border(system: System, which: str, path: str, figure: Figure) -> None:
    """What is open ends within two seconds, the forward fails as of another zone, also made anew; once both spaces are in the
    new zone it works, on certificates that say so, without a join."""
    couple = Couple(system, path, f"mover-{which}-{path}")
    first, second = (couple.source, couple.target) if which == "source" else (couple.target, couple.source)
    with Ledger() as ledger:
        port = ledger.service().port
        local = couple.forward(port)
        lines = [ledger.served(local) for _ in range(4)]
        began = time.monotonic()
        move(couple, first, "us")
        took = ended_after(lines, began)
        figure(f"{took * 1000:.0f} ms")
        assert took < LIMIT
        owner = couple.owner
        assert certified_for(first) == {f"{owner}@us", first.id, f"{first.name}.{owner}.us.knot"}
        until(lambda: stands(couple, local, state="failed", reason="other zone"), what="it fails")
        assert ask(local) == b""
        with pytest.raises(OtherZone):
            couple.forward(port)
        move(couple, second, "us")
        until(lambda: stands(couple, local, mode=path), what="it works")
        ledger.finish([ledger.served(local)])
    for agent in (first, second):
        assert agent.running
        assert len([line for line in agent.running.lines() if " joined " in line]) == 1


def test_while_away(system: System) -> None:
    """A space that moves while its agent is away comes back in the new zone, with the state of before, and its stored forward
    fails; back in the old zone, moved while it is away again, the forward works."""
    couple = Couple(system, "direct", "absent")
    agent = couple.source
    options = ("--config", str(agent.folder.with_suffix(".yaml")))
    with serving(answering(b"x")) as port:
        local = couple.forward(port, persistent=True)
        agent.stop()
        old = (agent.folder / "agent.json").read_bytes()
        said = system.knot("space", "move", agent.name, "us", user="absent")
        assert said == f"Moved the space {agent.name} to zone us."
        assert (agent.folder / "agent.json").read_bytes() == old
        agent.start(options=options)
        until(lambda: "absent@us" in certified_for(agent), what="it is certified")
        until(lambda: stands(couple, local, state="failed", reason="other zone"), what="it fails")
        agent.stop()
        assert "other zone" in system.knot("port", "list", agent.name, user="absent")
        move(couple, agent, "eu")
        agent.start(options=options)
        until(lambda: stands(couple, local, mode="direct") and ask(local) == b"x", what="it works")


def test_again_and_again(system: System) -> None:
    """Moves and renames at once, there and back: the agent ends up certified for what the store says, and reachable."""
    couple = Couple(system, "relay", "restless")
    with serving(answering(b"x")) as port:
        local = couple.forward(port)
        for number in range(4):
            body = {"zone": ["us", "eu"][number % 2], "name": f"target-{number}"}
            couple.api.patch("api", "spaces", couple.target.id, body=body)
            expected = f"target-{number}.restless.{body['zone']}.knot"
            until(lambda: expected in certified_for(couple.target), what=expected)  # noqa: B023
        until(lambda: stands(couple, local, mode="relay") and ask(local) == b"x", what="it works")
