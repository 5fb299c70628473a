"""A program whose wall clock is wrong: `knot`, with as many seconds added to it as a file says at the moment.

python -m tests.support.shifted_clock FILE agent run --data ...
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from knot_ssh.cli.main import main as knot

right = time.time


def main() -> None:
    file, *words = sys.argv[1:]
    offset = Path(file)
    time.time = lambda: right() + float(offset.read_text())
    sys.argv[1:] = words
    knot()


if __name__ == "__main__":
    main()
