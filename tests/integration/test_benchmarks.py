"""The benchmarks run; what they measure is not for a test to judge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


ROWS = {"round-trip": "round trip, back to back", "relay-round-trip": "through the relay, round trip"}


@pytest.mark.parametrize("name", ROWS)
def test_one_row_beside_openssh(name: str) -> None:
    """`python -m benchmarks` starts OpenSSH and the product, be it with a relay, measures both and prints their ratio."""
    words = ["--quick", "--rounds", "1", "--peers", "openssh,knot", "--rows", name]
    command = [sys.executable, "-m", "benchmarks", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith(f"| {ROWS[name]}"))
    assert "failed" not in row
    assert "x OpenSSH" in row
