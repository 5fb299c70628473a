"""Half-close through the whole system: one direction ends, and the other still carries all of its bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.sites import PATHS, Site, site
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.waiting import until

REQUEST = 1_000
ANSWER = 3_000_000
TIMES = 5


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("half-close")) as made:
        yield made


@pytest.mark.fault("half-close", "request and end, then 3 MB the other way, complete")
@pytest.mark.parametrize("path", PATHS)
def test_answers_after_the_end_of_the_question(own: Site, figure: Figure, path: str) -> None:
    """Whichever end asks: it ends its direction, and only then the other one sends 3 MB and ends its own."""
    with Ledger() as ledger:
        local = own.forward(path, ledger.service().port)
        lines = []
        for _ in range(TIMES):
            question = Stream(REQUEST)
            lines.append(ledger.open(local, question, Stream(ANSWER, after=question)))
            question = Stream(REQUEST)
            lines.append(ledger.open(local, Stream(ANSWER, after=question), question))
        until(lambda: all(line.is_over for line in lines), what="every answer is there")
        whole = sum(line.is_whole for line in lines)
        figure(f"{whole} of {len(lines)} complete, {TIMES} each way")
        assert whole == len(lines)
