"""`knot` that is killed (SIGKILL) as it is about to change one of the files of a key ring: `dying.py FILE WORDS...`.

FILE holds the number of changes to let pass before that; where it does not exist, or is empty, nothing happens.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RINGS = ("user_ca", "host_ca", "hub_key")


def deadly(function: Callable[..., Any], counter: Path) -> Callable[..., Any]:
    """The same, until the counter says that this is the end."""

    def call(path: Any, *words: Any, **options: Any) -> Any:
        if Path(path).name.lstrip(".").startswith(RINGS) and counter.exists() and (left := counter.read_text()):
            if left == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            counter.write_text(str(int(left) - 1))
        return function(path, *words, **options)

    return call


def main() -> None:
    counter = Path(sys.argv.pop(1))
    os.link = deadly(os.link, counter)
    for name in ("replace", "unlink"):
        setattr(Path, name, deadly(getattr(Path, name), counter))
    from knot_ssh.cli.main import main as knot

    knot()


if __name__ == "__main__":
    main()
