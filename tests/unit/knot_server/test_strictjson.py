"""Bodies that two readers could take for two things, or that cost far more than their length."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_server.http.strictjson import KEYS_MAX, check
from knot_ssh.errors import BadInput

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=KEYS_MAX),
    max_leaves=10,
)


@given(values)
def test_what_is_proper_passes(value: object) -> None:
    """Whatever has each key once is left to the validation."""
    check(json.dumps(value).encode())


@pytest.mark.parametrize("body", [b'{"a": 1, "a": 1}', b'[{"b": {"a": 1, "\\u0061": 2}}]', b'{"": 1, "": {}}'])
def test_repeated_key(body: bytes) -> None:
    """A key that stands twice is refused, at any depth and in any spelling."""
    with pytest.raises(BadInput, match="twice"):
        check(body)


def test_many_keys() -> None:
    """An object of more keys than anybody needs is refused."""
    check(json.dumps(dict.fromkeys(map(str, range(KEYS_MAX)))).encode())
    with pytest.raises(BadInput, match="more than"):
        check(json.dumps(dict.fromkeys(map(str, range(KEYS_MAX + 1)))).encode())


@pytest.mark.parametrize("body", [b"", b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b'{"a": ' + b"9" * 100_000 + b"}"])
def test_what_cannot_be_read_is_told_later(body: bytes) -> None:
    """Neither nesting nor numbers without end do harm."""
    check(body)
