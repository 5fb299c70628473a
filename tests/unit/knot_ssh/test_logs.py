"""One record is one line, whatever a peer put into it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.logs import AT_ONCE, Sparing, one_line

HOSTILE = "x\n2024-01-01T00:00:00Z info fake event=1\r\x1b[2J\0\u2028\u202e"

PROGRAM = """
import logging
import structlog
from knot_ssh.logs import configure_logs

configure_logs()
log = structlog.get_logger("test")
hostile = {hostile!r}
log.info("plain", space="backend", port=8080)
log.warning("hostile", value=hostile, empty="", spaced="a b", quoted='a"b', pair="a=b")
log.info(hostile)
log.debug("not shown")
try:
    raise ValueError(hostile)
except ValueError:
    log.exception("failed")
    logging.getLogger("library").exception("library failed")
logging.getLogger("library").warning("said %s", hostile)
logging.getLogger("asyncssh").info("not shown")
logging.getLogger("asyncssh").warning("shown")
"""


def logged(program: str) -> list[str]:
    """The lines that a program logs."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.split("\n")[:-1]


def test_line_count_is_record_count() -> None:
    """Our own records and those of libraries, with tracebacks or hostile text in them, are one line each."""
    lines = logged(PROGRAM.format(hostile=HOSTILE))
    assert [line.split()[1] for line in lines] == ["info", "warning", "info", "error", "error", "warning", "warning"]
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_values_are_readable() -> None:
    """Plain words stand as they are; others are quoted, so that their ends can be told."""
    plain, hostile, *_ = logged(PROGRAM.format(hostile="a b"))
    assert plain.endswith(" info plain port=8080 space=backend")
    assert hostile.endswith(""" warning hostile empty='' pair='a=b' quoted='a"b' spaced='a b' value='a b'""")


def test_traceback_is_kept() -> None:
    """The story of a failure is in the log, of our own records and of libraries' ones."""
    lines = logged(PROGRAM.format(hostile="the reason"))
    assert [line.count("ValueError: the reason") for line in lines[3:5]] == [1, 1]


@given(
    st.dictionaries(st.sampled_from(["value", "reason", "port"]), st.text() | st.integers() | st.binary() | st.none()),
    st.text(),
)
def test_any_record_is_one_printable_line(values: dict[str, Any], event: str) -> None:
    """Whatever the values, a record is one line of printable ASCII."""
    line = one_line(None, "info", {"event": event, "level": "info", "timestamp": "now", **values})
    assert line.isascii()
    assert line.isprintable()
    assert line.startswith("now info ")


@given(st.text(), st.text())
def test_one_value_never_passes_for_two(first: str, second: str) -> None:
    """Values cannot be made up to look like a pair of their own: different records are different lines."""
    lines = {
        one_line(None, "info", {"event": "e", "a": first, "b": second}),
        one_line(None, "info", {"event": "e", "a": f"{first} b={second}"}),
    }
    assert len(lines) == 2


class Recorded:
    """Stands in for a logger."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.records.append({"event": event} | fields)


def test_sparing_leaves_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others cause at will is logged ten times at once, then once a second, with the number of those left out."""
    now = 100.0
    monkeypatch.setattr("knot_ssh.logs.time.monotonic", lambda: now)
    sparing, log = Sparing(), Recorded()
    for number in range(1000):
        sparing.warning(log, "refused", number=number)
    assert [record["number"] for record in log.records] == list(range(AT_ONCE))
    now += 1.5
    for number in range(1000, 1003):
        sparing.warning(log, "refused", number=number)
    assert log.records[AT_ONCE:] == [{"event": "refused", "number": 1000, "suppressed": 990}]
