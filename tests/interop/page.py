"""docs/plain-ssh.md as tests read it."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "plain-ssh.md"


def snippet(name: str, replaced: dict[str, str] | None = None) -> str:
    """The indented block after the mark of this name, with these words replaced; each must be there."""
    rest = PAGE.read_text().partition(f"<!-- tested: {name} -->\n")[2]
    found = re.match(r"\n((?:    .*\n|\n)+)", rest)
    assert found, name
    text = textwrap.dedent(found[1])
    for documented, ours in (replaced or {}).items():
        assert documented in text, documented
        text = text.replace(documented, ours)
    return text


def settings() -> dict[str, str]:
    """The table of what `ssh -G` shows: a setting's name, and its value with marks of code taken away."""
    rows = re.findall(r"^\| `([a-z0-9]+)` \| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    return {name: value.replace("`", "") for name, value in rows}


def commands(*programs: str) -> list[str]:
    """Every line of the page's blocks that calls one of these programs, whatever variables stand before it."""
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ")]
    return [line for line in lines if re.match(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(programs)}) ", line)]
