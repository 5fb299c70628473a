"""`knot demo`, as a newcomer runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system import Running, knot_command


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: the demo's agents have sockets in it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        yield Path(folder)


def leftovers(folder: Path) -> list[str]:
    """Processes that still work in this folder, and what is left in it."""
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in processes if str(folder) in line] + [path.name for path in folder.iterdir()]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(folder)}


def test_once_teaches_and_leaves_nothing(tmp_path: Path) -> None:
    """`--once` shows a forward, a page through it, the list and a refusal, exits 0 and cleans up."""
    command = knot_command("demo", "--once")
    result = subprocess.run(
        command, env=environment(tmp_path), capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("Port forward established", "Hello from backend-api", "Active port forwards:", "there is no space"):
        assert words in result.stdout
    assert leftovers(tmp_path) == []


def test_interrupt_ends_it_cleanly(tmp_path: Path) -> None:
    """Without `--once` it says what to try, and Ctrl-C ends it without a trace."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    demo = Running(knot_command("demo"), tmp_path / "demo.log", environment(folder))
    demo.wait_for("Ctrl-C ends the demo", 60)
    assert demo.stop(signal.SIGINT) == 0
    assert leftovers(folder) == []
