"""Run the load tools from the process that measures."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.errors import Failed
from benchmarks.processes import ROOT, Process, python

CALL_SECONDS = 60
"""The longest that one measurement may take."""
LOGIN_SECONDS = 120
OPEN_SECONDS = 300


def call(tool: str, port: int, **arguments: Any) -> dict[str, float]:
    """Run one tool of `load/client.py` to its end; gives its figures. Raises Failed."""
    command = python("benchmarks.load.client", tool, json.dumps({"port": port, **arguments}))
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"no end within {CALL_SECONDS} s") from None
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["ended without a word"])[-1])
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def background(tool: str, port: int, log: Path, **arguments: Any) -> Process:
    """Start a tool of `load/client.py` that makes load while another measures."""
    return Process(python("benchmarks.load.client", tool, json.dumps({"port": port, **arguments})), log)


def service(log: Path) -> tuple[Process, int]:
    """Start a service; gives it and its port."""
    return _listening(Process(python("benchmarks.load.service"), log))


def delay(port: int, milliseconds: float, log: Path) -> tuple[Process, int]:
    """Start a long line to a port; gives it and its own port."""
    return _listening(Process(python("benchmarks.load.delay", str(port), str(milliseconds)), log))


def idle(port: int, count: int, log: Path) -> Process:
    """Open connections and keep them. Raises Failed when not all can be had."""
    return _ready(Process(python("benchmarks.load.idle", str(port), str(count)), log), "open", OPEN_SECONDS)


def logins(words: list[str], count: int, log: Path) -> Process:
    """Log in so often and stay. `words`: host, port, user, key, certificate. Raises Failed when not all can be had."""
    return _ready(Process(python("benchmarks.load.logins", *words, str(count)), log), "logged in", LOGIN_SECONDS)


def _listening(process: Process) -> tuple[Process, int]:
    return process, int(process.wait_for("listening").split()[1])


def _ready(process: Process, words: str, seconds: float) -> Process:
    try:
        process.wait_for(words, seconds)
    except Failed:
        process.stop()
        raise
    return process
