"""An agent that is killed while forwards are added and removed: afterwards the list is the old or the new one, never half."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial

import pytest

from knot_agent.memory import MEMORY_FILE
from knot_ssh.errors import KnotError, Unavailable
from knot_ssh.ports import Body, PortsOfServer
from tests.faults.beds import FULL
from tests.faults.sites import OWNER, PATIENCE, Site, site
from tests.support.figures import Figure
from tests.support.ports import free_ports
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(900)

KILLS = 200 if FULL else 12
MOMENT = 0.15
"""Seconds within which the kill comes; a change takes about a tenth of that, and the next one follows at once."""
PORTS = 12
State = frozenset[tuple[int, str, int]]
"""A list: local port, target and remote port of each forward."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("lists"), targets=("direct",)) as made:
        yield made


class Changes:
    """Changes the source's list again and again, also when the agent is gone: then what is stored."""

    def __init__(self, own: Site, ports: Sequence[int], chance: random.Random) -> None:
        self.over = threading.Event()
        self._doors = PortsOfServer(own.system.api(OWNER))
        self._source = own.near.id
        self.lists = [shown(self._doors.list(self._source)["forwards"])]
        """What the list was, then what it was after each change that was asked for; the last one may have failed."""
        self._ports = ports
        self._chance = chance

    def run(self) -> None:
        """Until a change gets no answer, or it is over."""
        with suppress(Unavailable):
            while not self.over.is_set():
                self._change()

    def _change(self) -> None:
        """One forward, or some or all at once, made, replaced or stopped."""
        before = self.lists[-1]
        port = self._chance.choice(self._ports)
        forward = {"local_port": port, "space": "direct", "remote_port": self._chance.randint(1, 9), "persistent": True}
        others = frozenset(row for row in before if row[0] != port)
        match self._chance.choice(["forward", "stop", "apply"]):
            case "forward":
                self.lists.append(others | shown([forward]))
                self._doors.forward(self._source, forward)
            case "stop" if others != before:
                self.lists.append(others)
                self._doors.stop(self._source, port)
            case _:
                some = self._chance.sample(self._ports, self._chance.randint(0, len(self._ports)))
                wanted = [forward | {"local_port": port, "remote_port": self._chance.randint(1, 9)} for port in some]
                self.lists.append(shown(wanted))
                assert self._doors.apply(self._source, wanted)["errors"] == []


@pytest.mark.fault("agent killed while forwards are added and removed", "the old list or the new one, never half of one")
def test_torn_lists(own: Site, figure: Figure) -> None:
    """After every kill the agent's memory, the server's list, and what the agent holds once it runs are each a whole one."""
    chance = random.Random("lists")
    ports = free_ports(PORTS)
    doors = PortsOfServer(own.system.api(OWNER))
    made = new = 0
    for _ in range(KILLS):
        own.wait_connected()
        changes = Changes(own, ports, chance)
        thread = threading.Thread(target=changes.run)
        thread.start()
        threading.Event().wait(chance.uniform(0, MOMENT))  # the moment is the fault itself
        own.near.kill()
        changes.over.set()
        thread.join()
        until(lambda: not own.near.is_running(), PATIENCE, "the agent has left")
        kept = shown(doors.list(own.near.id)["forwards"])
        assert kept in changes.lists[-2:]
        assert remembered(own) in changes.lists
        own.start("near")
        until(partial(holds, own, kept), PATIENCE, "the list is there again")
        made += len(changes.lists) - 1
        new += kept == changes.lists[-1]
    doors.apply(own.near.id, [])
    figure(f"{KILLS} kills among {made} changes: each time one of the two, {new} times the new one")


def shown(entries: Sequence[Body]) -> State:
    return frozenset((entry["local_port"], entry["space"], entry["remote_port"]) for entry in entries)


def holds(own: Site, wanted: State) -> bool:
    """Whether the agent is connected and holds these."""
    try:
        return own.near.is_running() and shown(own.near.forwards()) == wanted
    except KnotError:
        return False


def remembered(own: Site) -> State:
    """What the agent would restore without the server."""
    content = json.loads((own.near.folder / MEMORY_FILE).read_text())
    return frozenset((entry["local_port"], entry["target"]["name"], entry["remote_port"]) for entry in content["forwards"])
