"""A peer's words reach people as plain text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from knot_ssh.words import WORDS_LIMIT, printable


def test_plain_words_stay() -> None:
    """Ordinary reasons are not changed, in any language."""
    assert printable("port 3000: connection refused") == "port 3000: connection refused"
    assert printable("Verbindung abgelehnt: größer") == "Verbindung abgelehnt: größer"


def test_controls_are_escaped() -> None:
    """Escape sequences, line ends and changes of direction are shown, not obeyed."""
    assert printable("a\x1b]0;title\x07b") == "a\\x1b]0;title\\x07b"
    assert printable("one\r\ntwo\u202ethree") == "one two\\u202ethree"


@given(st.text(max_size=3 * WORDS_LIMIT))
def test_result_is_one_printable_line(text: str) -> None:
    """Whatever comes, the result is printable and bounded."""
    assert printable(text).isprintable()
    assert len(printable(text)) <= 10 * WORDS_LIMIT
