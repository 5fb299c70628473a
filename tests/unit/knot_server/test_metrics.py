"""The metrics of a server as Prometheus reads them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import prometheus_client
import pytest
from prometheus_client.parser import text_string_to_metric_families

from knot_server.datafolder import initialise
from knot_server.http.metrics import Metrics
from knot_server.refusals import CODES, OTHER, Refusals
from knot_server.roster import Present
from knot_server.services import Services
from knot_server.settings import ServerSettings
from knot_ssh.names import Owner, Principal, SpaceId, Zone
from knot_ssh.rpc import Peer
from knot_ssh.wire import AgentReport, Carried, ForwardStates, LinkModes
from tests.support.planes import stock_plane
from tests.unit.knot_server.conftest import NoLine

Sample = tuple[str, frozenset[tuple[str, str]]]


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[Services, Metrics]]:
    """A server that listens nowhere."""
    await initialise(folder, Owner("root"))
    services = await Services.open(stock_plane(), folder, ServerSettings())
    try:
        yield services, Metrics(services, Refusals(CODES))
    finally:
        await services.close()


def arrive(services: Services, report: AgentReport) -> Present:
    """An agent that says this of itself."""
    agent = Present(SpaceId.new(), Principal(Owner("alice"), Zone("eu")), cast("Peer", None), NoLine())
    services.roster.arrive(agent)
    services.roster.report(agent, report)
    return agent


async def samples(metrics: Metrics) -> dict[Sample, float]:
    """What Prometheus would take from the answer."""
    families = text_string_to_metric_families((await metrics.text()).decode())
    return {(sample.name, frozenset(sample.labels.items())): sample.value for family in families for sample in family.samples}


def key(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


REPORT = AgentReport(
    forwards=ForwardStates(listening=2, failed=1),
    links=LinkModes(direct=1, down=1),
    open=4,
    carried=Carried(sent=10, received=20, opened=5, refused=1),
)


async def test_two_servers_in_one_process(tmp_path: Path) -> None:
    """Two servers count for themselves, and nothing is put into the registry that a process shares."""
    async with server(tmp_path / "one") as (services, metrics), server(tmp_path / "other") as (_, other):
        arrive(services, REPORT)
        services.hub.relay.refusals.count("revoked")
        here, there = await samples(metrics), await samples(other)
        for name, count in ((key("knot_agents_connected"), 1), (key("knot_refusals_total", door="relay", reason="revoked"), 1)):
            assert (here[name], there[name]) == (count, 0)
    assert b"knot_" not in prometheus_client.generate_latest()


async def test_reports_are_shown(tmp_path: Path) -> None:
    """What agents say appears under the name of each field, for every state and mode there is."""
    async with server(tmp_path / "server") as (services, metrics):
        arrive(services, REPORT)
        agent = arrive(services, REPORT)
        services.roster.leave(agent)
        found = await samples(metrics)
    states = {state: found[key("knot_forwards", state=state)] for state in ForwardStates.model_fields}
    modes = {mode: found[key("knot_links", mode=mode)] for mode in LinkModes.model_fields}
    assert states == {"starting": 0, "listening": 2, "waiting": 0, "failed": 1, "draining": 0}
    assert modes == {"direct": 1, "relay": 0, "down": 1}
    assert found[key("knot_forward_connections_open")] == 4
    assert found[key("knot_forward_bytes_total", direction="sent")] == 20
    assert found[key("knot_forward_bytes_total", direction="received")] == 40
    assert found[key("knot_forward_connections_total")] == 10
    assert found[key("knot_forward_connections_refused_total")] == 2


async def test_store_is_counted(tmp_path: Path) -> None:
    """Users, spaces, certificates and the build are there from the start."""
    async with server(tmp_path / "server") as (_, metrics):
        found = await samples(metrics)
    assert (found[key("knot_users")], found[key("knot_spaces")], found[key("knot_certificates_valid")]) == (1, 0, 0)
    build = next(dict(labels) for (name, labels), _ in found.items() if name == "knot_build_info")
    assert build["store"] == "sqlite"
    assert all(build.values())


async def test_strangers_make_no_labels(tmp_path: Path) -> None:
    """Whatever reason is counted, there are no more series than before: an unknown one is `other`, free text is cut off."""
    async with server(tmp_path / "server") as (services, metrics):
        before = await samples(metrics)
        for number in range(1000):
            services.hub.refusals.count(f"reason {number}")
            services.hub.relay.refusals.count(f'mallory"}} {number}\n')
            services.control.refusals.count(f"code_{number}")
        services.hub.refusals.count("identity: role/mallory")
        after = await samples(metrics)
    assert set(after) == set(before)
    assert after[key("knot_refusals_total", door="login", reason=OTHER)] == 1000
    assert after[key("knot_refusals_total", door="login", reason="identity")] == 1


async def test_reading_takes_no_longer_for_a_fleet(tmp_path: Path) -> None:
    """An answer is as long for a thousand agents as for none: only numbers change."""
    async with server(tmp_path / "server") as (services, metrics):
        before = await samples(metrics)
        for _ in range(1000):
            arrive(services, REPORT)
        after = await samples(metrics)
    assert set(after) == set(before)
    assert after[key("knot_forwards", state="listening")] == 2000


async def test_huge_sums_can_be_written(tmp_path: Path) -> None:
    """A sum that no float holds exactly is written all the same."""
    async with server(tmp_path / "server") as (services, metrics):
        services.roster.fleet.carried["sent"] = 10**30 + 1
        found = await samples(metrics)
    assert found[key("knot_forward_bytes_total", direction="sent")] == pytest.approx(1e30)
