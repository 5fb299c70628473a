"""A list of what is revoked that does not fit into one message: agents have all of it, and hear what is new."""

from __future__ import annotations

import contextlib
import json
import random
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from knot_server.usecases.revocation import PART
from tests.support.couples import Couple, ended_after
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.system import AgentOf, System, running_system
from tests.support.waiting import until

COUNT = 5 * PART + 7
"""More than one line could have: `rpc.LINE_LIMIT` is some 95,000 serials."""
_random = random.Random(1)
SERIALS = frozenset(_random.getrandbits(63) for _ in range(COUNT))


def known(agent: AgentOf) -> set[int]:
    """What the agent remembers as revoked."""
    file = agent.folder / "memory.json"
    return set() if not file.exists() else set(json.loads(file.read_text())["revoked"]["serials"])


def fill(system: System) -> None:
    """Have the store know so many revocations that have an hour to run."""
    until_when = int(time.time()) + 3600
    rows = ((serial, "a test", until_when) for serial in SERIALS)
    with contextlib.closing(sqlite3.connect(system.folder / "server" / "store.db")) as store, store:
        store.executemany("INSERT INTO revoked_certificates (serial, reason, expires_at) VALUES (?, ?, ?)", rows)


@pytest.mark.fault("100,007 revocations", "agents have them all, and the next one acts")
def test_long_list(tmp_path: Path, figure: Figure) -> None:
    """Agents are told the whole list when they come, in parts; one more ends what it should at once, and stock OpenSSH's
    list has them all."""
    with running_system(tmp_path) as system, Ledger() as ledger:
        couple = Couple(system, "relay", "owner")
        local = couple.forward(ledger.service().port)
        assert system.server
        system.server.stop()
        fill(system)
        system.start()
        for agent in (couple.source, couple.target):
            until(lambda agent=agent: known(agent) == SERIALS, 30, "the agent has the list")  # type: ignore[misc]
        line = ledger.served(local)
        began = time.monotonic()
        system.knot("revoke", "certificate", str(couple.source.identity()[1]), user="owner")
        took = ended_after([line], began)
        ledger.finish([ledger.served(local)])
        krl = tmp_path / "krl"
        krl.write_bytes(system.api("owner").get_bytes("api", "krl"))
        query = ["ssh-keygen", "-Q", "-l", "-f", str(krl)]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
        assert listed.count("serial: ") == 2 * (COUNT + 1)
        size = (couple.source.folder / "memory.json").stat().st_size
        figure(f"{took:.2f} s with the command; KRL {krl.stat().st_size / 1e6:.1f} MB, memory.json {size / 1e6:.1f} MB")
