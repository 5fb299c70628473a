"""Networks that part and join: relay and direct connections take each other's place, and a lost cable is noticed.

server, near (the source), far and off (the targets) each have a network namespace; near and off never reach each other, far is
parted from them where a test says so. A moment after networks have changed nobody knows it yet: what happens until
somebody does is what these tests look at.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time

import pytest

from tests.faults.beds import FULL
from tests.faults.sites import Site, mode, place_of
from tests.faults.victims import in_time, steadily
from tests.support.configured import ConfiguredAgent
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Line, Stream
from tests.support.networks import Network
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

LINES = 4
AFTERWARDS = 20
"""New connections at least, of which most are made after the link has become direct."""
TRANSFER = 200_000_000 if FULL else 60_000_000
TRANSFER_SECONDS = 20 if FULL else 8
"""For which a transfer lasts, so that networks may change meanwhile."""
DIRECT_AGAIN = 10
NOTICED = 20
HEALED = 3
"""Seconds, from the table."""
PATIENCE = 40
TARGETS = {"direct": "far", "relay": "off"}
"""By the path to them."""
FLAPS = 10
FLAP_SECONDS = (0.2, 6.0)
LOST = ["targets", *(["source"] if FULL else [])]
"""Who is cut off."""


def listed(source: ConfiguredAgent, local: int) -> dict[str, object]:
    """The forward as `knot port list --json` shows it inside the space."""
    forwards = json.loads(source.knot("port", "list", "--json"))["forwards"]
    return next(forward for forward in forwards if forward["local_port"] == local)


@pytest.mark.fault("source and target cannot reach each other", "the forward works by relay, and `port list` says so")
def test_relay(networked: Site, net: Network, figure: Figure) -> None:
    """Where two agents reach the server alone, streams go through it."""
    net.part("far")
    with Ledger() as ledger:
        local = networked.forward("far", ledger.service(place_of(networked.agents["far"])).port)
        line = ledger.open(local, Stream(TRANSFER), Stream(TRANSFER), place=place_of(networked.near))
        until(lambda: line.is_over, PATIENCE, "the transfer ends")
        assert line.is_whole, line
        shown = listed(networked.near, local)
        figure(f"{TRANSFER // 1_000_000} MB each way, mode {shown['mode']}, address {shown['address']}")
        assert shown["mode"] == "relay"


@pytest.mark.fault("networks join", f"new connections direct within {DIRECT_AGAIN} s, relayed ones untouched")
@steadily
def test_join(networked: Site, net: Network, figure: Figure) -> None:
    """As soon as two agents reach each other new connections go directly; what is relayed goes on to its end."""
    net.part("far")
    with Ledger() as ledger:
        near, far = place_of(networked.near), place_of(networked.agents["far"])
        local = networked.forward("far", ledger.service(far).port, path="relay")
        lines = [ledger.served(local, place=near) for _ in range(LINES)]
        rate = TRANSFER / TRANSFER_SECONDS
        lines.append(ledger.open(local, Stream(0), Stream(TRANSFER, rate), place=near))
        with ledger.probing(local, place=near) as probes:
            net.join("far")
            joined = time.monotonic()
            until(lambda: mode(networked.near, local) == "direct", PATIENCE, "the link is direct")
            seconds = time.monotonic() - joined
            until(lambda: len(probes.lines) >= AFTERWARDS, PATIENCE, "connections after the change, too")
        lost = probes.settled().lost()
        touched = [line for line in lines if any(stream.end == "reset" for stream in line.streams)]
        until(lambda: lines[-1].down.end, PATIENCE, "the relayed transfer ends")
        ledger.finish(lines)
        figure(
            f"direct after {seconds:.1f} s, {len(touched)} relayed touched, {len(lost)} of {len(probes.lines)} new ones lost"
        )
        assert not touched
        assert not lost
        in_time(seconds, DIRECT_AGAIN)


@pytest.mark.fault("networks part", "new connections by relay, none lost; those of the direct link reset")
def test_part(networked: Site, net: Network, figure: Figure) -> None:
    """When the direct way is gone, every connection made since is served, by relay, and those over the dead link are reset."""
    with Ledger() as ledger:
        near, far = place_of(networked.near), place_of(networked.agents["far"])
        local = networked.forward("far", ledger.service(far).port, path="direct")
        lines = [ledger.served(local, place=near) for _ in range(LINES)]
        with ledger.probing(local, place=near) as probes:
            net.part("far")
            parted = time.monotonic()
            until(lambda: mode(networked.near, local) == "relay", PATIENCE, "the link is relayed")
            until(lambda: any(line.is_whole and line.opened_at > parted for line in probes.lines), PATIENCE, "one is served")
            again = min(line.over_at for line in probes.lines if line.is_whole and line.over_at > parted) - parted
            until(lambda: all(line.is_over for line in lines), PATIENCE, "every line over the direct link ends")
            seconds = max(line.over_at for line in lines) - parted
        lost = probes.settled(PATIENCE).lost(parted)  # those before may have been on their way
        figure(
            f"{len(lost)} of {len(probes.lines)} new ones lost, served by relay after {again:.1f} s, "
            f"direct ones reset after {seconds:.1f} s"
        )
        assert all(line.is_reset for line in lines), lines
        assert not lost, lost


@pytest.mark.fault("network partition", f"noticed <= {NOTICED} s, traffic <= {HEALED} s after healing")
@pytest.mark.parametrize("lost", LOST)
@steadily
def test_partition(networked: Site, net: Network, figure: Figure, lost: str) -> None:
    """Cables are pulled: links, direct and relayed, are found dead, all streams reset; once they are back all works."""
    near = place_of(networked.near)
    with Ledger() as ledger, contextlib.ExitStack() as stack:
        local, lines = {}, []
        for path, target in TARGETS.items():
            service = ledger.service(place_of(networked.agents[target]))
            local[path] = networked.forward(target, service.port, path=path)
            lines += [ledger.served(local[path], place=near) for _ in range(LINES)]
        pulled = time.monotonic()
        for name in TARGETS.values() if lost == "targets" else ["near"]:
            net.unplug(name)
        until(lambda: not any(mode(networked.near, port) for port in local.values()), PATIENCE, "the source has noticed")
        noticed = time.monotonic() - pulled
        until(lambda: all(line.is_over for line in lines), PATIENCE, "every line ends")
        assert all(line.is_reset for line in lines), lines
        seconds = max(line.over_at for line in lines) - pulled
        probes = {path: stack.enter_context(ledger.probing(port, place=near)) for path, port in local.items()}
        for name in TARGETS.values() if lost == "targets" else ["near"]:
            net.plug(name)
        healed = time.monotonic()
        until(lambda: all(first(each.lines, healed) for each in probes.values()), PATIENCE, "connections are served")
        again = {path: first(each.lines, healed) - healed for path, each in probes.items()}
        figure(
            f"noticed after {noticed:.1f} s, reset after {seconds:.1f} s, "
            f"traffic after {again['direct']:.2f} s direct, {again['relay']:.2f} s relayed"
        )
        in_time(max(noticed, seconds), NOTICED)
        in_time(max(again.values()), HEALED)


@pytest.mark.fault(
    "server's cable pulled, then the target restarts", f"streams go on, served directly <= {HEALED} s after its start"
)
@steadily
def test_silent_server(networked: Site, net: Network, figure: Figure) -> None:
    """A server that is silent, without being known to be away, holds nothing up between agents that reach each other."""
    near, far = networked.near, networked.agents["far"]
    with Ledger() as ledger:
        local = networked.forward("far", ledger.service(place_of(far)).port, path="direct", persistent=True)
        lines = [ledger.served(local, place=place_of(near)) for _ in range(LINES)]
        net.unplug("server")
        ledger.finish(ledger.served(local, place=place_of(near)) for _ in range(LINES))
        ledger.finish(lines)
        far.kill()
        started = networked.start("far")
        line = ledger.served(local, place=place_of(near))
        seconds = line.served_at - started
        net.plug("server")
        figure(f"{2 * LINES} of {2 * LINES} streams whole, served after {seconds:.2f} s")
        ledger.finish([line])
        in_time(seconds, HEALED)


@pytest.mark.skipif(not FULL, reason="takes a minute; set KNOT_FULL=1")
@pytest.mark.fault("networks part and join all the time", f"exact prefixes; served <= {DIRECT_AGAIN} s after it has ended")
@steadily
def test_flapping(networked: Site, net: Network, figure: Figure) -> None:
    """Whatever comes of single connections while the network cannot make up its mind, none is wrong, and it ends well."""
    chance = random.Random("flapping")
    near, far = place_of(networked.near), place_of(networked.agents["far"])
    with Ledger() as ledger:
        local = networked.forward("far", ledger.service(far).port)
        lines = [ledger.served(local, place=near) for _ in range(LINES)]
        with ledger.probing(local, place=near) as probes:
            for _ in range(FLAPS):
                net.part("far")
                pause(chance.uniform(*FLAP_SECONDS))
                net.join("far")
                pause(chance.uniform(*FLAP_SECONDS))
            ended = time.monotonic()
            until(lambda: first(probes.lines, ended), PATIENCE, "a connection is served")
        probes.settled(PATIENCE)
        again = first(probes.lines, ended) - ended
        reset, lost = sum(not line.is_live for line in lines), len(probes.lost())
        figure(f"{reset} of {LINES} reset, {lost} of {len(probes.lines)} new ones lost, served after {again:.2f} s")
        in_time(again, DIRECT_AGAIN)


def pause(seconds: float) -> None:
    """Let so much time pass: here it is the fault itself."""
    threading.Event().wait(seconds)


def first(lines: list[Line], since: float) -> float:
    """When the first of these was served whole after that moment; 0 if none was."""
    return min((line.over_at for line in list(lines) if line.is_whole and line.over_at > since), default=0)
