"""How records are shown to people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.cli.audit import line, moment
from knot_ssh.errors import BadInput
from knot_ssh.words import json_line

ANYTHING = st.text() | st.integers() | st.booleans() | st.none() | st.lists(st.text())


@given(st.dictionaries(st.text(), ANYTHING))
def test_a_record_is_one_line(fields: dict[str, Any]) -> None:
    """Whatever a server says, or a stranger has said to it, a record is one line of printable ASCII in either form."""
    record = {"id": 1, "at": "2026-11-20T09:30:00.25Z", "event": "refused", "actor": "a stranger", "owner": None} | fields
    for text in (line(record), json_line(record)):
        assert text.isascii()
        assert text.isprintable()


@pytest.mark.parametrize("hostile", ["\n", "\r", "\x1b[2J", "\x7f", "\u202e", "\u2066", "\x00", "\u2028", "\x85", "a b=c", '"'])
def test_words_of_strangers(hostile: str) -> None:
    """Control characters and those that turn the direction of writing are shown escaped, in every field."""
    record = dict.fromkeys(("at", "event", "actor", "owner", "space", "host"), f"x{hostile}y")
    assert f"x{hostile}y" not in line(record).partition("host=")[2].split(" ")
    assert line(record).isprintable()


def test_a_line() -> None:
    """Time, event, who, whose, where, and what else there is to say; a list is its words."""
    record = {"id": 1, "at": "2026-11-20T09:30:00.250000Z", "event": "forward made", "actor": "agent web", "owner": "alice"}
    text = line(record | {"space": "web", "space_id": "3f0c", "local_port": 8080, "keys": ["a", "b"], "replaced": None})
    head = ["2026-11-20T09:30:00Z", "forward", "made", "agent", "web", "alice", "web"]
    assert text.split() == [*head, "local_port=8080", "keys=a,b", "replaced=None"]


def test_moments() -> None:
    """A time ago, or a date or time, in this machine's zone unless another is named."""
    found = moment("1h")
    assert timedelta(hours=1) <= datetime.now(UTC) - found < timedelta(hours=1, minutes=1)
    assert moment("2026-11-20T09:30:00+02:00") == datetime(2026, 11, 20, 7, 30, tzinfo=UTC)
    assert moment("2026-11-20") == datetime(2026, 11, 20).astimezone(UTC)


@pytest.mark.parametrize("text", ["", "soon", "1y", "-1h", "999999999w", "2026-13-01", "1h\n", "0001-01-01T00:00:00+14:00"])
def test_no_moments(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(BadInput, match="neither a time ago"):
        moment(text)
