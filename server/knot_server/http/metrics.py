"""What the server tells Prometheus: facts that are counted where they happen, read and written down when it asks.

Nothing here is global, and no label holds what users or agents have chosen: labels come from lists in the program.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping

import asyncssh
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from knot_server.refusals import Refusals
from knot_server.services import Services
from knot_server.usecases.inventory import Inventory, take_inventory
from knot_ssh import __version__

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
"""The text format that every Prometheus reads."""


class Metrics:
    """The metrics of one server."""

    def __init__(self, services: Services, http_refusals: Refusals) -> None:
        self._services = services
        self._http_refusals = http_refusals

    async def text(self) -> bytes:
        """All of them in the text format; raises StoreUnavailable."""
        inventory = await take_inventory(self._services.database)
        registry = CollectorRegistry()
        registry.register(_Facts([*self._agents(), *self._relay(), *self._server(), *_stored(inventory)]))
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def _agents(self) -> Iterator[Metric]:
        """What agents are, and what they say of themselves."""
        roster = self._services.roster
        fleet = roster.fleet
        carried = fleet.carried
        yield GaugeMetricFamily("knot_agents_connected", "Agents that are connected to the hub.", value=len(roster))
        yield GaugeMetricFamily(
            "knot_sshds_registered", "Spaces without an agent whose sshd can be relayed to.", value=roster.registered
        )
        yield _gauge("knot_forwards", "Forwards of connected agents by state.", "state", fleet.forwards)
        yield _gauge("knot_links", "Links of connected agents by mode; down: not connected now.", "mode", fleet.links)
        yield GaugeMetricFamily("knot_forward_connections_open", "Connections that forwards carry now.", value=fleet.open)
        ways = {"sent": carried["sent"], "received": carried["received"]}
        yield _counter("knot_forward_bytes", "Bytes that forwards have sent to targets and received.", "direction", ways)
        yield CounterMetricFamily(
            "knot_forward_connections", "Connections that forwards have carried.", value=carried["opened"]
        )
        yield CounterMetricFamily(
            "knot_forward_connections_refused", "Connections that forwards could not carry.", value=carried["refused"]
        )

    def _relay(self) -> Iterator[Metric]:
        relay = self._services.hub.relay
        yield GaugeMetricFamily("knot_relay_connections_open", "Connections that the hub relays now.", value=relay.open)
        yield CounterMetricFamily("knot_relay_connections", "Connections that the hub has relayed.", value=relay.passed)
        yield CounterMetricFamily(
            "knot_relay_bytes", "Bytes that the hub has relayed, either way, encrypted as they are.", value=relay.tally.received
        )

    def _server(self) -> Iterator[Metric]:
        services = self._services
        build = GaugeMetricFamily(
            "knot_build_info", "Always 1; the labels say what runs.", labels=["version", "python", "asyncssh", "store"]
        )
        build.add_metric([__version__, platform.python_version(), asyncssh.__version__, services.database.kind], 1)
        yield build
        yield _counter(
            "knot_certificates_issued", "Certificates issued, by what they are for.", "kind", services.enrolment.issued
        )
        doors = {
            "http": self._http_refusals,
            "control": services.control.refusals,
            "login": services.hub.refusals,
            "relay": services.hub.relay.refusals,
        }
        refusals = CounterMetricFamily("knot_refusals", "What was refused, by door and reason.", labels=["door", "reason"])
        for door, refused in doors.items():
            for reason, count in refused.counts.items():
                refusals.add_metric([door, reason], count)
        yield refusals


class _Facts(Collector):
    """What was read for one answer."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _stored(inventory: Inventory) -> Iterator[Metric]:
    yield GaugeMetricFamily("knot_users", "Users.", value=inventory.users)
    yield GaugeMetricFamily("knot_spaces", "Spaces, running or not.", value=inventory.spaces)
    yield GaugeMetricFamily("knot_forwards_persistent", "Forwards in the store.", value=inventory.persistent_forwards)
    yield GaugeMetricFamily("knot_certificates_valid", "Certificates that have not expired.", value=inventory.certificates)
    yield GaugeMetricFamily("knot_revocations", "Certificates and keys void before their time.", value=inventory.revocations)


def _gauge(name: str, sentence: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, sentence, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _counter(name: str, sentence: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, sentence, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
