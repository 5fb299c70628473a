"""What scripts are told of bodies, beside the messages themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from knot import bodies
from knot_ssh import wire

PAIRS = [
    (bodies.ForwardEntry, wire.ForwardRequest),
    (bodies.AppliedForward, wire.AppliedForward),
    (bodies.ApplyError, wire.ApplyError),
    (bodies.Applied, wire.Applied),
    (bodies.Counters, wire.Counters),
    (bodies.LinkStatus, wire.LinkStatus),
    (bodies.Forward, wire.ForwardStatus),
    (bodies.ForwardList, wire.ForwardList),
]


@pytest.mark.parametrize(("body", "message"), PAIRS, ids=lambda kind: kind.__name__)
def test_bodies_have_the_fields_of_the_messages(body: type, message: type[wire.Message]) -> None:
    """Each body has exactly the fields of its message, and null where that may be null."""
    hints = get_type_hints(body)
    assert set(hints) == set(message.model_fields)
    for name, field in message.model_fields.items():
        assert (type(None) in get_args(hints[name])) == (type(None) in get_args(field.annotation)), name


def test_words_are_those_of_the_messages() -> None:
    """States, modes and origins are the same words."""
    hints = get_type_hints(bodies.Forward)
    for name in ("state", "mode", "origin"):
        assert get_args(hints[name]) == get_args(wire.ForwardStatus.model_fields[name].annotation)


def test_a_script_imports_neither_server_nor_agent_nor_command_line() -> None:
    """`import knot.space` loads no click, no SSH, no web framework and no event loop."""
    code = "import json, sys, knot.space; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    heavy = {"click", "rich", "yaml", "asyncssh", "cryptography", "fastapi", "sqlalchemy", "urllib3", "asyncio", "structlog"}
    assert not heavy & set(loaded)
    assert not {"knot_server", "knot_agent", "knot_keys"} & set(loaded)
