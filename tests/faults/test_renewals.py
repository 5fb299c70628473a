"""Certificates, host keys and session keys are replaced during a long transfer, and every byte of it arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.beds import FULL
from tests.faults.sites import PATHS, Site, certified_until, renewed, site, status
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.waiting import until

LIFETIME = 10
REKEY_BYTES = 16 * 1024**2
RATE = 60e6 if FULL else 20e6
"""Bytes a second, shared by both paths."""
SECONDS = 300 if FULL else 10
RENEWALS = 30 if FULL else 2

pytestmark = pytest.mark.timeout(SECONDS + 200)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = ("--certificate-lifetime", str(LIFETIME))
    with site(tmp_path_factory.mktemp("renewals"), *options, settings={"rekey_bytes": REKEY_BYTES}) as made:
        yield made


@pytest.mark.fault(
    f"renewals, rekeys and a new host key during a transfer, {LIFETIME} s certificates, rekey at 16 MiB", "nothing dropped"
)
def test_long_transfers(own: Site, figure: Figure) -> None:
    """Direct and relayed streams both ways last through several certificates, many rekeys, and new host keys of the targets;
    new connections are served all the time."""
    with Ledger() as ledger:
        service = ledger.service()
        local = {path: own.forward(path, service.port) for path in PATHS}
        began = time.monotonic()
        rate = RATE / len(PATHS) / 2
        lines = [ledger.open(port, Stream(rate=rate), Stream(rate=rate)) for port in local.values()]
        before = {path: host_key(own, path) for path in PATHS}
        renewals, last = 0, certified_until(own.near)
        with ledger.probing(local["direct"]) as direct, ledger.probing(local["relay"]) as relayed:
            forget_host_keys(own)
            while renewals < RENEWALS or time.monotonic() - began < SECONDS:
                until(lambda: renewed(own.near, last), 2 * LIFETIME, "a renewal")  # noqa: B023  # asked at once
                renewals, last = renewals + 1, certified_until(own.near)
            until(lambda: all(host_key(own, path) != before[path] for path in PATHS), LIFETIME, "new host keys")
        lost = direct.settled().lost() + relayed.settled().lost()
        moved = sum(stream.received for line in lines for stream in line.streams)
        figure(
            f"{moved / 1e6:.0f} MB in {time.monotonic() - began:.0f} s, {renewals} renewals, "
            f"about {moved / REKEY_BYTES:.0f} rekeys, {len(lost)} of {len(direct.lines) + len(relayed.lines)} new ones lost"
        )
        assert {path: status(own.near, port)["mode"] for path, port in local.items()} == {path: path for path in PATHS}
        ledger.finish(lines)
        assert not lost, lost


def host_key(own: Site, path: str) -> str:
    """The host key that the server has certified."""
    spaces = own.system.spaces(own.near.owner)
    return next(str(space["host_key"]) for space in spaces if space["id"] == own.agents[path].id)


def forget_host_keys(own: Site) -> None:
    """Take the targets' host keys away; with the next certificate they have new ones."""
    for path in PATHS:
        for name in ("host_key", "host_key-cert.pub"):
            Path(own.agents[path].folder, name).unlink()
