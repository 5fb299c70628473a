"""JSON as nobody can take it for two things (RFC 8259 section 4): looked through before anything is made of a body."""

from __future__ import annotations

import json
from typing import Any

from knot_ssh.errors import BadInput

KEYS_MAX = 64
"""Keys of one object; ours have ten at most. Each unknown one costs the validation 1 KiB."""

Pairs = list[tuple[str, Any]]


def check(body: bytes) -> None:
    """Raise BadInput for a key that stands twice in an object, and for an object of too many; what is no JSON is told later."""
    try:
        json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return


def _object(pairs: Pairs) -> None:
    if len(pairs) > KEYS_MAX:
        raise BadInput(f"the body has an object of more than {KEYS_MAX} keys")
    if len({key for key, _ in pairs}) < len(pairs):
        raise BadInput("the body has an object in which a key stands twice")
