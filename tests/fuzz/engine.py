"""What `make fuzz` starts for a target: atheris, which has libFuzzer make inputs by what they reach in our code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

INSTRUMENTED = ["knot_ssh", "knot_keys", "knot_server", "knot_agent", "asyncssh", "yaml"]
"""Packages whose branches are followed: ours, and the two in Python that parse for us."""


def main(name: str, options: list[str]) -> None:
    """Run the target of this name with libFuzzer's own options and folders; does not return."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
        watch = importlib.import_module("tests.fuzz.watching").watch

    atheris.Setup([sys.argv[0], *options], watched(target.run, watch))
    atheris.Fuzz()


def watched(run: Callable[[bytes], None], watch: Any) -> Callable[[bytes], None]:
    def run_watched(data: bytes) -> None:
        with watch():
            run(data)

    return run_watched


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
