"""A hub that alters what it relays: nobody is given an altered byte, and the application sees a reset."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.sites import Site, site
from tests.support.figures import Figure
from tests.support.hostile_hub import WAYS
from tests.support.ledger import Ledger
from tests.support.waiting import until

LINES = 3


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that tells the hub what to do."""
    return tmp_path_factory.mktemp("orders") / "order"


@pytest.fixture(scope="module")
def own(order: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program = [sys.executable, "-m", "tests.support.hostile_hub", str(order)]
    with site(tmp_path_factory.mktemp("hostile-hub"), targets=("relay",), program=program) as made:
        yield made


@pytest.mark.threat(7, "the relay flips, drops, repeats, swaps, cuts bytes", "no altered byte delivered, reset, served again")
@pytest.mark.fault("the hub alters what it relays", "no altered byte delivered, reset at both ends, served again")
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("way", WAYS)
def test_altered_bytes(own: Site, order: Path, figure: Figure, way: str, direction: str) -> None:
    """Whatever the hub does to the stream between two agents ends their link: the streams over it are cut, never wrong."""
    with Ledger() as ledger:
        local = own.forward("relay", ledger.service().port)
        lines = [ledger.served(local) for _ in range(LINES)]
        draft = order.with_suffix(".draft")
        draft.write_text(f"{way} {direction}")
        draft.rename(order)  # the hub must not read half of it
        until(lambda: not order.exists(), what="the hub has done it")
        until(lambda: all(line.is_over for line in lines), what="every line ends")
        reset = sum(line.is_reset for line in lines)
        received = sum(stream.received for line in lines for stream in line.streams)
        figure(f"{received} bytes delivered, none altered; {reset} of {LINES} reset")
        assert reset == LINES, lines
        ledger.finish([ledger.served(local)])
