"""`make fuzz`: look for inputs that break a parser, for as long as it is told to, and say what was found."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.stage import close_all
from tests.fuzz.target import Target, name_of
from tests.fuzz.targets import TARGETS
from tests.fuzz.watching import try_out

WORK = Path(".fuzz")
"""Everything that was made so far, for a later run to go on from, and findings. Not kept in the repository."""
SECONDS = 60
"""For each target, unless told otherwise."""
MEMORY_MIB = 2048
"""Of the whole process: one that grows without bound comes there."""
HANG_SECONDS = 60
"""By the clock; what takes a second of the processor is a finding, too, but on a busy machine a second may pass by itself."""
IN_MEMORY = "/dev/shm"
"""Stores and files of the targets lie there where they can: they are written at every input."""
KEPT_FILES, KEPT_BYTES = 60, 100_000
"""What is kept of a target's inputs in the repository."""
FIGURES = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)")
STATISTIC = re.compile(rb"stat::(\w+):\s+(\d+)")


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended: libFuzzer's figures, and the file of what was found."""

    target: str
    executions: str
    coverage: str
    features: str
    corpus: str
    peak_mib: str
    found: Path | None

    def __str__(self) -> str:
        shown = f"found: {self.found}" if self.found else "nothing found"
        figures = f"{self.executions} inputs, {self.coverage} edges, {self.features} features, corpus {self.corpus}"
        return f"{self.target}: {figures}, {self.peak_mib} MiB at most, {shown}"


def main() -> int:
    """Exit codes: 0 nothing found, 1 something found, 2 wrong usage."""
    options = _options()
    if options.input:
        return _again(TARGETS[options.target[0]], options.input)
    results = []
    for name in options.target or TARGETS:
        results.append(_fuzz(TARGETS[name], options.seconds))
        if options.keep:
            _keep(TARGETS[name])
        print(results[-1], flush=True)
    for result in results:
        if result.found:
            print(f"again: make fuzz ARGS='--target {result.target} --input {result.found}'")
    return int(any(result.found for result in results))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=", description="Look for inputs that break a parser.")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="which one; may be repeated; default: all")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"for each target; default: {SECONDS}")
    parser.add_argument("--keep", action="store_true", help="put the smallest inputs that reach everything into the corpus")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run the target once, with this")
    options = parser.parse_args()
    if options.input and len(options.target or ()) != 1:
        parser.error("--input takes one --target")
    return options


def _again(target: Target, path: Path) -> int:
    """Run a finding once more, without libFuzzer: the traceback is Python's own, and a debugger works."""
    try:
        try_out(target.run, path.read_bytes())
    finally:
        close_all()
    print(f"{target.name}: nothing wrong with {path}")
    return 0


def _fuzz(target: Target, seconds: int) -> Result:
    work, found = WORK / target.name, WORK / "found"
    for folder in (work, found, target.corpus):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (work / name_of(seed)).write_bytes(seed)
    before = set(found.glob(f"{target.name}-*"))
    with _words(target) as words:
        told = (
            f"-max_total_time={seconds}", f"-max_len={target.input_max}", f"-dict={words}", f"-rss_limit_mb={MEMORY_MIB}",
            f"-timeout={HANG_SECONDS}", f"-artifact_prefix={found}/{target.name}-", "-print_final_stats=1",
        )  # fmt: skip
        output = _run(target, [*told, str(work), str(target.corpus)])
    new = sorted(set(found.glob(f"{target.name}-*")) - before)
    return _result(target, output, new[0] if new else None)


def _run(target: Target, options: Sequence[str]) -> bytes:
    """What libFuzzer said; a traceback among it is shown."""
    with tempfile.TemporaryDirectory(prefix="knot-fuzz-", dir=IN_MEMORY if os.path.isdir(IN_MEMORY) else None) as temporary:
        command = [_itself(Path(temporary), target), *options]
        environment = {**os.environ, "TMPDIR": temporary}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        shown = [line for line in done.stdout.splitlines() if not line.startswith((b"INFO", b"#"))]
        sys.stdout.buffer.write(b"\n".join(shown) + b"\n")
        print(f"exit status {done.returncode} of {shlex.join(command)}", flush=True)
    return done.stdout


def _itself(folder: Path, target: Target) -> str:
    """A command that is one word: libFuzzer starts itself to compare inputs."""
    path = folder / "engine"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.fuzz.engine {target.name} "$0" "$@"\n')
    path.chmod(0o700)
    return str(path)


@contextmanager
def _words(target: Target) -> Iterator[str]:
    """A file of words in libFuzzer's form."""
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as file:
        for word in target.words:
            file.write('"' + "".join(f"\\x{byte:02X}" for byte in word) + '"\n')
        file.flush()
        yield file.name


def _result(target: Target, output: bytes, found: Path | None) -> Result:
    figures = (FIGURES.findall(output) or [(b"?",) * 4])[-1]
    coverage, features, inputs, size = (figure.decode() for figure in figures)
    statistics = {name.decode(): number.decode() for name, number in STATISTIC.findall(output)}
    executions = statistics.get("number_of_executed_units", "?")
    peak = statistics.get("peak_rss_mb", "?")
    return Result(target.name, executions, coverage, features, f"{inputs}/{size}", peak, found)


def _keep(target: Target) -> None:
    """Take into the corpus what reaches more than is kept already: the smallest first, and not without end."""
    with tempfile.TemporaryDirectory() as folder:
        _run(target, ["-merge=1", folder, str(target.corpus), str(WORK / target.name)])
        files = list(target.corpus.iterdir())
        count, size = len(files), sum(path.stat().st_size for path in files)
        for path in sorted(Path(folder).iterdir(), key=lambda path: path.stat().st_size):
            content = path.read_bytes()
            count, size = count + 1, size + len(content)
            if count > KEPT_FILES or size > KEPT_BYTES:
                return
            (target.corpus / name_of(content)).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
