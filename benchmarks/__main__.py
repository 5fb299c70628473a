"""`python -m benchmarks`: measure, print the table, and for a complete run write it beside this file."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.errors import Missing
from benchmarks.measuring import Results, measure
from benchmarks.peers import PEERS
from benchmarks.peers.knot import Knot
from benchmarks.peers.peer import Peer
from benchmarks.plot import draw
from benchmarks.processes import none_left_behind, raise_limits
from benchmarks.report import Report
from benchmarks.rows import ROWS, chosen
from benchmarks.sizes import FULL, QUICK

RESULTS = "results.md"
PLOT = "connections.svg"
INTERRUPTED = 128 + 2
"""Exit code after Ctrl-C, as a shell gives it."""
HERE = Path(__file__).parent


class Names(click.ParamType[Any]):
    """Names from a set, separated by commas."""

    name = "NAME,…"

    def __init__(self, known: list[str]) -> None:
        self._known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        names = [name.strip() for name in str(value).split(",") if name.strip()]
        unknown = [name for name in names if name not in self._known]
        if unknown:
            self.fail(f"{', '.join(unknown)}: choose from {', '.join(self._known)}", param, ctx)
        return names


def _setting(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Parse key=value; the value as in the YAML file."""
    pairs = [value.partition("=") for value in values]
    if any(not separator for _, separator, _ in pairs):
        raise click.BadParameter("is not key=value")
    return {key: yaml.safe_load(value) for key, _, value in pairs}


@click.command()
@click.option("--quick", is_flag=True, help="Few rounds and small sizes: to see a change, not to claim one.")
@click.option("--rows", type=Names(list(ROWS)), help=f"Only these rows: {', '.join(ROWS)}.")
@click.option("--peers", type=Names(list(PEERS)), help=f"Only these peers: {', '.join(PEERS)}.")
@click.option("--rounds", type=click.IntRange(min=1), help=f"Rounds.  [default: {FULL.rounds}, with --quick {QUICK.rounds}]")
@click.option("--agent-setting", multiple=True, callback=_setting, metavar="KEY=VALUE", help="For both agents' YAML file.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help=f"Folder for {RESULTS} and {PLOT}.  [default: benchmarks/ when everything is measured in full, else none]",
)
def main(
    quick: bool,
    rows: list[str] | None,
    peers: list[str] | None,
    rounds: int | None,
    agent_setting: dict[str, Any],
    output: Path | None,
) -> None:
    """Compare the data path with OpenSSH and others on this machine."""
    sizes = QUICK if quick else FULL
    sizes = dataclasses.replace(sizes, rounds=rounds or sizes.rounds)
    Knot.settings = agent_setting
    raise_limits()
    versions, missing = _present(peers or list(PEERS))
    selected = chosen(rows or [])
    with none_left_behind(), tempfile.TemporaryDirectory(prefix="knot-bench-") as folder:
        kinds = [PEERS[name] for name in versions]
        results = measure(kinds, selected, sizes, Path(folder), lambda text: click.echo(text, err=True))
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    report = Report(results, selected, versions, missing, sizes.rounds, command)
    click.echo(report.text())
    if results.interrupted:
        sys.exit(INTERRUPTED)
    everything = not (quick or rows or peers)
    if folder_for_files := output or (HERE if everything else None):
        _write(report, results, folder_for_files)


def _present(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the peers that are installed, and why the others are not there."""
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name in names:
        peer: type[Peer] = PEERS[name]
        try:
            versions[name] = peer.version()
        except Missing as reason:
            missing[name] = str(reason)
    return versions, missing


def _write(report: Report, results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot: str | None = PLOT
    try:
        draw(results, list(report.versions), folder / PLOT)
    except Missing as reason:
        click.echo(str(reason), err=True)
        plot = None
    (folder / RESULTS).write_text(report.markdown(plot))
    click.echo(f"written: {folder / RESULTS}" + (f", {folder / PLOT}" if plot else ""), err=True)


if __name__ == "__main__":
    main()
