"""The README's story by hand, typed as it stands."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.services import free_port
from tests.support.system import System

README = Path(__file__).parents[2] / "README.md"
SECONDS = 90

BACKGROUND = {
    "knot server run": "server ready",
    "knot agent run": "certified",
    "python3 -m http.server": "",
}
"""Commands that get a terminal of their own, and what they say when they are ready."""


def commands() -> list[str]:
    """The indented lines of the story, but for the first, which finds `knot`, and the last, which cleans up."""
    story = README.read_text().partition("## Five minutes, by hand")[2].partition("\n## ")[0]
    lines = [line.strip() for line in story.splitlines() if line.startswith("    ")]
    assert lines[0].startswith("export PATH=")
    assert lines[-1].startswith("rm -r ")
    return lines[1:-1]


def typed(line: str, number: int) -> str:
    """The line as a shell takes it: a long-running one in the background, waited for until it is ready."""
    ready = next((words for start, words in BACKGROUND.items() if line.startswith(start)), None)
    if ready is None:
        return line
    log = f"terminal-{number}.log"
    wait = f"until grep -q '{ready}' {log}; do kill -0 $!; sleep 0.1; done" if ready else "sleep 1"
    return f"{line} > {log} 2>&1 &\n{wait}"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("ssh")), reason="curl or ssh is not installed")
def test_story_by_hand(system: System, tmp_path: Path) -> None:
    """Every command of the story works, in its order; only ports and folders are others, for this machine's sake."""
    script = "\n".join(typed(line, number) for number, line in enumerate(commands()))
    script = script.replace("/tmp/knot", str(tmp_path / "knot"))
    script = script.replace("| ssh ", '| ssh -F "$HOME/.ssh/config" ')  # ssh takes the home folder from the passwd entry
    for port in ("3000", "2222", "3001", "8080"):
        script = re.sub(rf"\b{port}\b", str(free_port()), script)
    ports = [f"--http 127.0.0.1:{m[1]}" for m in [re.search(r"--server http://127.0.0.1:(\d+)", script)] if m]
    ports += [f"--ssh 127.0.0.1:{m[1]}" for m in [re.search(r"--server 127.0.0.1:(\d+)", script)] if m]
    script = re.sub(r"(knot server run --data \S+)", rf"\1 {' '.join(ports)}", script)
    bins = str(Path(sys.executable).parent)
    environment = system.environment({"PATH": f"{bins}:/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)})
    environment |= {"XDG_CONFIG_HOME": str(tmp_path / "config"), "XDG_DATA_HOME": str(tmp_path / "data")}
    guard = "set -euo pipefail\ntrap 'kill $(jobs -p); wait' EXIT\n"
    result = subprocess.run(
        ["bash", "-c", guard + script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr + script
    out = result.stdout
    assert out.count("Directory listing for /") >= 3
    assert re.search(r"Port forward established: \d+ -> backend-api:\d+", out)
    assert re.search(r"Port forward established: frontend:\d+ -> backend-api:\d+", out)
    assert "Active port forwards:" in out
    assert "(persistent, direct)" in out
    assert "stopped in space 'frontend'." in out
    assert re.search(r"\{'applied': \[\], 'stopped': \[\{'local_port': \d+, .*'errors': \[\]\}", out)
