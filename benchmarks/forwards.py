"""`python -m benchmarks.forwards`: many forwards of one agent, applied in one call."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.fleet.server import Server
from benchmarks.processes import Process, cpu_seconds, memory, none_left_behind, python, raise_limits, until
from knot_ssh.cli.tables import show
from knot_ssh.ports import Body, PortsOfServer
from knot_ssh.wire import FORWARDS_MAX

FIRST_PORT = 20_000
"""Below those that the kernel gives to who dials."""
KIB, MILLI = 1024, 1e-3
SOURCE, TARGET = "space-0", "space-1"
START_SECONDS = 30
ROW = ["CALL", "MS", "APPLIED", "STOPPED", "AGENT CPU MS", "SERVER CPU MS", "AGENT MIB"]


@click.command()
@click.option("--forwards", default=1000, show_default=True, type=click.IntRange(1, FORWARDS_MAX))
def main(forwards: int) -> None:
    """Apply so many forwards, apply them again, change one, stop all; what each call takes of time and memory."""
    raise_limits()
    with none_left_behind(), tempfile.TemporaryDirectory(prefix="knot-bench-") as folder:
        show(ROW, measure(forwards, Path(folder)))


def measure(count: int, folder: Path) -> list[list[str]]:
    """A row for each call."""
    with Server(folder) as server, contextlib.ExitStack() as stack:
        tokens = server.spaces(2, 1)
        agents = [_agent(server, name, token, folder) for name, token in tokens.items()]
        for agent in agents:
            stack.callback(agent.stop)
        doors = PortsOfServer(server.owners["owner-0"])
        until(lambda: _forwarded(doors), START_SECONDS, "the agents are not connected")
        wanted = [_forward(FIRST_PORT + number) for number in range(count)]
        edited = [*wanted[:-1], wanted[-1] | {"remote_port": 3001}]
        calls: dict[str, Callable[[], Body]] = {
            f"apply {count}": lambda: doors.apply(SOURCE, wanted),
            "the same again": lambda: doors.apply(SOURCE, wanted),
            "one changed": lambda: doors.apply(SOURCE, edited),
            "list": lambda: doors.list(SOURCE),
            "an empty list": lambda: doors.apply(SOURCE, []),
        }
        return [_row(name, call, agents[0].pid, server.pid) for name, call in calls.items()]


def _row(name: str, call: Callable[[], Body], agent: int, server: int) -> list[str]:
    before = cpu_seconds([agent]), cpu_seconds([server])
    began = time.perf_counter()
    answer = call()
    seconds = time.perf_counter() - began
    spent = cpu_seconds([agent]) - before[0], cpu_seconds([server]) - before[1]
    counts = [str(len(answer[key])) if key in answer else "-" for key in ("applied", "stopped")]
    times = [f"{value / MILLI:.0f}" for value in spent]
    return [name, f"{seconds / MILLI:.0f}", *counts, *times, f"{memory([agent]) / KIB / KIB:.1f}"]


def _forward(port: int) -> Body:
    return {"local_port": port, "space": TARGET, "remote_port": 3000, "persistent": True}


def _forwarded(doors: PortsOfServer) -> bool:
    """Whether source and target run: a list of one is applied without errors."""
    return not doors.apply(SOURCE, [_forward(FIRST_PORT)])["errors"] and not doors.apply(SOURCE, [])["errors"]


def _agent(server: Server, name: str, token: str, folder: Path) -> Process:
    (token_file := folder / f"{name}.token").write_text(token)
    words = ["agent", "run", "--data", str(folder / name), "--server", server.hub, "--token-file", str(token_file)]
    process = Process(python("knot_ssh", *words, "--listen", "127.0.0.1:0"), folder / f"{name}.log")
    process.wait_for("certified")
    return process


if __name__ == "__main__":
    main()
