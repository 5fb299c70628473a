"""JSON as a stranger may send it: UTF-8, no object that says a thing twice, no number that Python alone understands.

RFC 8259 leaves open what such a body means (sections 4, 6, 8.1), so that two programs may read it differently.
"""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any, NoReturn

from knot_ssh.errors import BadInput

DIGITS_MAX = 20
"""Digits of a number: what 64 bits hold. Converting longer ones takes quadratic time."""
KEYS_MAX = 64
"""Keys of one object; ours have ten at most. Each that is unknown costs the validation some 1.2 KiB of memory."""
_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also one without an end, which would otherwise be looked for again from each quote in it."""
_OTHER = re.compile(r"[^\[\]{}]+")
_STEPS = {"[": 1, "{": 1, "]": -1, "}": -1}


def check_json(body: bytes, nesting: int) -> None:
    """Raise BadInput, which repeats nothing of the body, unless it is one JSON value nested no deeper than that."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadInput("the body is not valid JSON: it is not UTF-8") from None
    if _depth(text) > nesting:
        raise BadInput(f"the body is nested more than {nesting} levels deep")
    try:
        json.loads(text, object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BadInput("the body is not valid JSON") from None


def _depth(text: str) -> int:
    """How deep brackets are nested; in one pass, so that depth costs no more than length."""
    brackets = _OTHER.sub("", _STRINGS.sub("", text))
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > KEYS_MAX:
        raise BadInput(f"an object in the body has more than {KEYS_MAX} keys")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadInput("an object in the body has the same key twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > DIGITS_MAX:
        raise BadInput("a number in the body is too large")
    return int(digits)


def _finite(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise BadInput("a number in the body is too large")
    return float(digits)


def _no_number(_word: str) -> NoReturn:
    raise BadInput("the body is not valid JSON: NaN and Infinity are no numbers")
