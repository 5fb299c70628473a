"""Every parser of what strangers send, for some seconds: on what is kept of the long runs, and on inputs near to valid ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.stage import close_all
from tests.fuzz.target import CORPUS, Target, declared
from tests.fuzz.targets import TARGETS
from tests.fuzz.watching import Finding, try_out, watch

EXAMPLES = 40
"""For each target; the long runs try some hundred thousand."""
EDITS_MAX = 4
KEPT_MAX = 100_000
"""Bytes of a target's corpus in the repository."""


@pytest.fixture(autouse=True, scope="module")
def _nothing_left() -> Iterator[None]:
    yield
    close_all()


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    """One after the other."""
    return TARGETS[request.param]


@st.composite
def near(draw: st.DrawFn, valid: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """A valid input with a few edits."""
    content = draw(st.sampled_from(valid))
    pieces = st.binary(max_size=8) | st.sampled_from([*words, b""]) | st.sampled_from(valid)
    for _ in range(draw(st.integers(0, EDITS_MAX))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 8)))
        content = content[:start] + draw(pieces) + content[end:]
    return content


def test_what_is_kept(target: Target) -> None:
    """No valid input breaks its parser, and none that once did."""
    for content in (*target.seeds(), *target.kept()):
        try_out(target.run, content)


def test_what_is_nearly_valid(target: Target) -> None:
    """No input that is nearly valid breaks its parser."""

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(near(target.seeds(), target.words))
    def check(content: bytes) -> None:
        try_out(target.run, content)

    check()


def test_the_corpus_is_small(target: Target) -> None:
    """What is kept is not a burden, and belongs to a target."""
    assert sum(map(len, target.kept())) <= KEPT_MAX
    assert {path.name for path in CORPUS.iterdir()} <= TARGETS.keys()


# What counts as a finding


def test_an_undeclared_error_is_a_finding() -> None:
    """What a parser does not promise to raise comes through."""
    with pytest.raises(KeyError), watch(), declared(ValueError):
        raise KeyError


def test_an_error_that_a_terminal_would_obey_is_a_finding() -> None:
    """What an error says must be printable."""
    with pytest.raises(Finding, match="terminal"), declared(ValueError):
        raise ValueError("\x1b[2J")


def test_a_record_of_level_error_is_a_finding() -> None:
    """Also that of a library."""
    with pytest.raises(Finding, match="logged as an error"), watch():
        structlog.get_logger("test").error("failed")
    with pytest.raises(Finding, match="library"), watch():
        logging.getLogger("library").error("library failed")


def test_what_takes_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's time counts, not the clock's."""
    monkeypatch.setattr("tests.fuzz.watching.SECONDS_MAX", 0.0)
    with pytest.raises(Finding, match="of the processor"), watch():
        sum(range(100_000))
