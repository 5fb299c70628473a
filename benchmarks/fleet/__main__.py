"""`python -m benchmarks.fleet`: a server and its agents; what each costs, and how all come back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.fleet.crowd import Crowd
from benchmarks.fleet.server import Server
from benchmarks.processes import cpu_seconds, none_left_behind, raise_limits
from knot_ssh.cli.tables import show

KIB, MIB, MILLI = 1024, 1024 * 1024, 1e-3
SETTLE = 2.0
"""Seconds after a rush before memory and idle CPU are taken."""
RENEWAL_SECONDS = 2400
"""Between two renewals of an agent's certificates."""
MANY = 10_000


@dataclass(frozen=True, slots=True)
class Rush:
    """All agents come at once."""

    name: str
    seconds: float
    server_cpu: float
    agents_cpu: float
    memory: int
    spread: tuple[float, float] = (0, 0)
    """The least and the most that an agent has heard of how far to spread."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured."""

    agents: int
    spaces_seconds: float
    empty: int
    """Bytes of a server without agents."""
    idle_cpu: float
    """Of one processor."""
    renewal_cpu: float
    """Processor seconds for all."""
    notified: int
    rushes: list[Rush]


def measure(count: int, owners: int, processes: int, idle: float, folder: Path, say: Callable[[str], None]) -> Figures:
    """Every stage, one after the other."""
    with Server(folder) as server, Crowd(folder / "agents", processes) as crowd:
        say(f"making {count} spaces over the HTTP API ...")
        began = time.monotonic()
        spaces = server.spaces(count, owners)
        spaces_seconds = time.monotonic() - began
        time.sleep(SETTLE)
        empty = server.memory()
        say("joining ...")
        joined = _rush("all join for the first time", server, crowd, lambda: crowd.join(server.hub, spaces))
        say(f"idle for {idle:g} s ...")
        before = server.cpu()
        time.sleep(idle)
        idle_cpu = (server.cpu() - before) / idle
        say("renewing certificates ...")
        before = server.cpu()
        crowd.renew()
        renewal_cpu = server.cpu() - before
        say("killing the server and starting it again ...")
        came_back = _rush("all come back after kill -9", server, crowd, lambda: _restart(server, crowd))
        say("the same with certificates that have run out ...")
        crowd.forget()
        name = "the same, and all must be certified anew"
        certified_anew = _rush(name, server, crowd, lambda: _restart(server, crowd))
        notified = crowd.state().notified
    return Figures(count, spaces_seconds, empty, idle_cpu, renewal_cpu, notified, [joined, came_back, certified_anew])


def _restart(server: Server, crowd: Crowd) -> float:
    """Kill the server and start it again; gives the seconds from when it was ready until the last agent was."""
    server.kill()
    ready = server.start()
    return crowd.wait().last - ready


def _rush(name: str, server: Server, crowd: Crowd, act: Callable[[], float]) -> Rush:
    """What this takes. The processor time of a server that was started meanwhile counts from its start."""
    pid, before, agents_before = server.pid, server.cpu(), cpu_seconds(crowd.pids)
    seconds = act()
    server_cpu = server.cpu() - (before if server.pid == pid else 0)
    agents_cpu = cpu_seconds(crowd.pids) - agents_before
    time.sleep(SETTLE)
    spreads = crowd.state().spreads
    return Rush(name, seconds, server_cpu, agents_cpu, server.memory(), (min(spreads), max(spreads)))


def report(figures: Figures) -> None:
    """The table, and what more agents would take."""
    count = figures.agents
    grown = [rush.memory - figures.empty for rush in figures.rushes]
    columns = ("", "seconds", "server's CPU s", "a piece", "agents' CPU s", "server's memory", "an agent", "spread told")
    rows = [
        (
            rush.name,
            f"{rush.seconds:.1f}",
            f"{rush.server_cpu:.2f}",
            f"{rush.server_cpu / count / MILLI:.1f} ms",
            f"{rush.agents_cpu:.2f}",
            f"{rush.memory / MIB:.0f} MiB",
            f"{growth / count / KIB:.0f} KiB",
            f"{rush.spread[0]:.2f} to {rush.spread[1]:.2f} s",
        )
        for rush, growth in zip(figures.rushes, grown, strict=True)
    ]
    show(columns, rows)
    click.echo()
    renewal = figures.renewal_cpu / count
    click.echo(f"spaces made over the HTTP API: {figures.spaces_seconds / count / MILLI:.1f} ms each")
    click.echo(f"the server without agents: {figures.empty / MIB:.0f} MiB")
    click.echo(f"idle: {figures.idle_cpu:.1%} of a processor, {figures.idle_cpu / count * 1e6:.0f} us a second for each agent")
    click.echo(f"a renewal of both certificates: {renewal / MILLI:.1f} ms of the server's CPU")
    click.echo(f"messages about other spaces: {figures.notified / count:.0f} to each agent in all")
    click.echo()
    back = max(rush.server_cpu / count for rush in figures.rushes[1:])
    spread = max(rush.spread[1] for rush in figures.rushes)
    click.echo(f"{MANY:,} agents, if each costs the same:")
    click.echo(f"  memory: {(figures.empty + MANY * max(grown) / count) / MIB:,.0f} MiB")
    always = (figures.idle_cpu / count + renewal / RENEWAL_SECONDS) * MANY
    click.echo(f"  idle, renewals among it: {always:.0%} of a processor")
    told = MANY * spread / count
    click.echo(f"  all back after a restart: {max(MANY * back, told):.0f} s, spread over {told:.0f} s")


@click.command()
@click.option("--agents", default=500, show_default=True, type=click.IntRange(1, 60_000), help="How many.")
@click.option("--owners", default=1, show_default=True, type=click.IntRange(1), help="They are spread over so many owners.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Processes that the agents live in.")
@click.option("--idle", default=15.0, show_default=True, help="Seconds for which idle CPU is measured.")
def main(agents: int, owners: int, processes: int, idle: float) -> None:
    """Measure what a fleet of agents costs its server, and how it comes back when the server was killed."""
    raise_limits()
    with none_left_behind(), tempfile.TemporaryDirectory(prefix="knot-fleet-") as folder:
        figures = measure(agents, owners, processes, idle, Path(folder), lambda text: click.echo(text, err=True))
    report(figures)


if __name__ == "__main__":
    main()
