"""A server that is killed while an agent joins, as a program: `knot`, which ends itself with SIGKILL at a moment to choose.

    python -m tests.support.dying_server FILE server run --data ...

When FILE is there, and names this moment, it is removed and the server is gone: `kept`, once the journal tells of the join
and before the store commits it; `consumed`, once that has happened and before the answer.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from knot_server.store.journal import Journal
from knot_server.usecases.enrolment import Enrolment
from knot_ssh.cli.main import main as knot

MOMENTS = {"kept": (Journal, "keep"), "consumed": (Enrolment, "redeem")}
Method = Callable[..., Awaitable[Any]]


def dying_after(method: Method, moment: str, order: Path) -> Method:
    async def done(*args: Any, **options: Any) -> Any:
        result = await method(*args, **options)
        die_if_asked(moment, order)
        return result

    return done


def die_if_asked(moment: str, order: Path) -> None:
    if order.exists() and order.read_text() == moment:
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    file, *words = sys.argv[1:]
    for moment, (where, name) in MOMENTS.items():
        setattr(where, name, dying_after(getattr(where, name), moment, Path(file)))
    sys.argv[1:] = words
    knot()


if __name__ == "__main__":
    main()
