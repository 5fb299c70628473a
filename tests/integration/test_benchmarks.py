"""The benchmarks run; what they measure is not for a test to judge."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_row_beside_openssh() -> None:
    """`python -m benchmarks` starts OpenSSH and the product, measures both and prints their ratio."""
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--rounds",
        "1",
        "--peers",
        "openssh,knot",
        "--rows",
        "round-trip",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("| round trip, back to back"))
    assert "failed" not in row
    assert "x OpenSSH" in row
