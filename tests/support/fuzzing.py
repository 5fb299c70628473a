"""schemathesis, run as its users do: it reads a server's description, and sends what should work and what should not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.system import System

FULL = os.environ.get("KNOT_FULL") == "1"
HOOKS = Path(__file__).with_name("schema_hooks.py")
SEED = () if FULL else ("--seed", "1")
"""The same requests each time in the suite; others each time in a long run, which says with which seed."""
UNHURRIED = ("--suppress-health-check", "all")
"""Not to fail where the machine is slow."""
ANSWER_SECONDS = 60


def fuzz(
    system: System, folder: Path, phases: Sequence[str], examples: int, operations: Sequence[str], settings: Sequence[str]
) -> None:
    """Send generated requests for these operations; fails with schemathesis's own words, and the requests to repeat.

    `examples` are requests at most for each operation and phase, `settings` lines of `schemathesis.toml`.
    """
    lines = [f"hooks = {json.dumps(str(HOOKS))}", f"request-timeout = {ANSWER_SECONDS}", *settings]
    (folder / "schemathesis.toml").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "schemathesis.cli", "run", system.url + "/openapi.json"]
    options = ["--phases", ",".join(phases), "--max-examples", str(examples), "--no-color", *SEED, *UNHURRIED]
    chosen = [word for operation in operations for word in ("--include-operation-id", operation)]
    result = subprocess.run(
        [*command, *options, *chosen], cwd=folder, env=system.environment({}), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert system.server is not None
    assert not [line for line in system.server.lines() if " error " in line]


def bearer(system: System, user: str) -> str:
    """The line of a configuration that sends this user's token."""
    return f'headers = {{ Authorization = "Bearer {system.user(user)}" }}'


def words(name: str, values: Sequence[object]) -> list[str]:
    """The lines of a configuration that name some values, for `often`."""
    return [f"[dictionaries.{name}]", f"values = {json.dumps(list(values))}"]


def often(probability: float, **parameters: str) -> str:
    """The line that has parameters take their values from dictionaries, so often. Their names are like `path__space_id`."""
    entries = [
        f'"{name.replace("__", ".")}" = {{ dictionary = "{dictionary}", probability = {probability} }}'
        for name, dictionary in parameters.items()
    ]
    return f"parameters = {{ {', '.join(entries)} }}"
