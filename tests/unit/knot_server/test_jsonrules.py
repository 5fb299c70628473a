"""How bodies are read."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_server.http.jsonrules import check_json
from knot_ssh.errors import BadInput

LEVELS = 8
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=VALUES)
def test_json_is_taken(value: object) -> None:
    """Whatever can be said in JSON passes, brackets and quotes in its strings, too."""
    check_json(json.dumps(value).encode(), 100)
    check_json(json.dumps(value, ensure_ascii=False).encode(), 100)


@given(body=st.binary(max_size=60) | st.text(alphabet='[]{}",:\\1eN.-', max_size=40).map(str.encode))
def test_anything_else_is_refused_and_nothing_more(body: bytes) -> None:
    """Any bytes are either JSON or bad input."""
    try:
        check_json(body, LEVELS)
    except BadInput:
        return
    json.loads(body)


@pytest.mark.parametrize(
    "body",
    [b'{"a": 1, "a": 1}', b'{"a": 1, "\\u0061": 2}', b'[{"x": {"a": 1, "b": 2, "a": 3}}]', b"NaN", b"[Infinity]",
     b"[-Infinity]", b"1e999", b"-1e999", b"9" * 21,
     b"-" + b"9" * 21, b"9" * 100_000, b"1e" + b"9" * 1000, b"\xef\xbb\xbf1", b'"\xff"',
     "1".encode("utf-16"), b"", b"1 2", b"[1,]", b"'a'"],
)  # fmt: skip
def test_what_programs_may_read_differently(body: bytes) -> None:
    """A key twice, numbers that are none or too large, another encoding: refused without repeating it."""
    with pytest.raises(BadInput) as caught:
        check_json(body, LEVELS)
    assert len(str(caught.value)) < 100


def test_nesting() -> None:
    """So deep, and no deeper; brackets in strings do not count."""
    check_json(b"[" * LEVELS + b"]" * LEVELS, LEVELS)
    check_json(json.dumps(["[" * 100, '"[' * 100, "\\" * 7 + '"[{']).encode(), LEVELS)
    with pytest.raises(BadInput, match="nested"):
        check_json(b"[" * (LEVELS + 1) + b"]" * (LEVELS + 1), LEVELS)


@pytest.mark.parametrize("piece", [b"[", b'{"a":', b'["', b'"\\', b"[]", b"{},", b'"', b"\\", b"[[]],", b"9"])
def test_no_body_takes_long(piece: bytes) -> None:
    """Whatever half a megabyte is filled with, it is refused in much less than a second of processor time."""
    body = piece * (512 * 1024 // len(piece))
    before = time.process_time()
    with pytest.raises(BadInput):
        check_json(body, LEVELS)
    assert time.process_time() - before < 1
