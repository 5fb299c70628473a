"""What an agent keeps for the audit record while the hub is away, and how it tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from knot_agent import witness as witnessing
from knot_agent.witness import BY_SOURCE, WAITING_MAX, Witness
from knot_keys.certificates import ClientCertificate
from knot_keys.connections import RELAY_PEER
from knot_keys.identity import Identity
from knot_ssh.errors import BadInput, KnotError, Unavailable
from knot_ssh.names import Owner, Zone
from knot_ssh.wire import SEEN_MAX, AuditReport, LinkSeen, RefusalSeen
from tests.support.waiting import becomes

CLIENT = ClientCertificate(Identity.person(Owner("alice"), [Zone("eu")]), (1 << 64) - 1, "SHA256:x", 2e9, "SHA256:ca")


class Hub:
    """Takes reports, or is away."""

    def __init__(self) -> None:
        self.reports: list[AuditReport] = []
        self.error: KnotError | None = None
        self.asked = 0

    async def tell(self, report: AuditReport) -> None:
        self.asked += 1
        if self.error:
            raise self.error
        self.reports.append(AuditReport.model_validate_json(report.model_dump_json()))

    @property
    def seen(self) -> list[object]:
        return [seen for report in self.reports for seen in report.seen]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(witnessing, "SETTLE_SECONDS", 0.0)
    return Hub()


@pytest.fixture
async def witness(hub: Hub) -> AsyncIterator[Witness]:
    witness = Witness()
    task = asyncio.ensure_future(witness.run(hub.tell))
    yield witness
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_links(witness: Witness, hub: Hub) -> None:
    """A link is told with its serial, and whether it came through the hub."""
    witness.link_opened(CLIENT, "10.0.0.9")
    witness.link_opened(CLIENT, RELAY_PEER)
    await becomes(lambda: len(hub.seen) == 2)
    direct, relayed = hub.seen
    assert isinstance(direct, LinkSeen)
    assert isinstance(relayed, LinkSeen)
    assert (direct.serial, direct.mode, direct.address) == (str((1 << 64) - 1), "direct", "10.0.0.9")
    assert relayed.mode == "relay"


async def test_the_hub_is_away(witness: Witness, hub: Hub) -> None:
    """What is seen waits, as much as there is room for; when the hub is back it hears all of that once, in its order, in
    messages of a bounded size, and how many were left out."""
    hub.error = Unavailable()
    for number in range(WAITING_MAX + 5):
        witness.link_opened(CLIENT, f"10.0.{number // 250}.{number % 250}")
    await becomes(lambda: hub.asked)
    hub.error = None
    witness.begin()
    await becomes(lambda: len(hub.seen) == WAITING_MAX)
    assert len(witness) == 0
    assert max(len(report.seen) for report in hub.reports) == SEEN_MAX
    assert sum(report.left_out for report in hub.reports) == 5
    first = hub.seen[0]
    assert isinstance(first, LinkSeen)
    assert first.address == "10.0.0.0"


async def test_an_older_hub(witness: Witness, hub: Hub) -> None:
    """A hub that does not want it is told once, and not again."""
    hub.error = BadInput("there is no such method")
    witness.link_opened(CLIENT, "10.0.0.9")
    await becomes(lambda: hub.asked == 1 and len(witness) == 0)


async def test_strangers(witness: Witness, hub: Hub) -> None:
    """One address has so many of its refusals told, the rest is counted; words are cut to what a message takes."""
    for _ in range(100):
        witness.login_refused("identity: " + "x" * 1000, "10.0.0.9" * 100, 7)
    witness.channel_refused("address not allowed", "10.0.0.8", None, "evil\n" * 1000, (1 << 32) - 1)
    await becomes(lambda: len(hub.seen) == BY_SOURCE.burst + 1)
    refusals = [seen for seen in hub.seen if isinstance(seen, RefusalSeen)]
    assert (refusals[0].reason, refusals[0].door, refusals[0].serial) == ("identity", "endpoint", "7")
    assert refusals[-1].port == (1 << 32) - 1
    await becomes(lambda: sum(report.left_out for report in hub.reports) == 100 - BY_SOURCE.burst)
