"""What counts as a finding beside an exception: a record of level error, and one that is not one printable line."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from structlog.testing import capture_logs

from knot_ssh.logs import one_line

SECONDS_MAX = 1.0
"""Of the processor, for one input: who can send one can send many."""
_ERRORS = frozenset({"error", "critical", "exception"})


class Finding(AssertionError):
    """Something is wrong with the product."""


class TooLong(Finding):
    """An input keeps the processor busy."""


_uncounted = 0.0
_watching: list[_Errors] = []


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """What is done meanwhile is no input's doing: it costs no time, and what it logs is nobody's."""
    global _uncounted  # noqa: PLW0603 - it only grows
    began, told = time.process_time(), [list(errors.lines) for errors in _watching]
    with capture_logs():
        yield
    for errors, before in zip(_watching, told, strict=True):
        errors.lines[:] = before
    _uncounted += time.process_time() - began


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """Whatever goes on meanwhile must end in time, log nothing as an error, and log everything on a line of its own."""
    began = time.process_time() - _uncounted
    with capture_logs() as records, _errors_of_libraries() as errors:
        yield
    taken = time.process_time() - _uncounted - began
    for record in records:
        _look_at(dict(record))
    if errors:
        raise Finding("\n".join(errors))
    if taken > SECONDS_MAX:
        raise TooLong(f"that took {taken:.1f} s of the processor")


def try_out(run: Callable[[bytes], None], data: bytes) -> None:
    """Run a target under watch; once more where that took long, for the garbage collector may have had its turn."""
    try:
        with watch():
            run(data)
    except TooLong:
        with watch():
            run(data)


def _look_at(record: dict[str, Any]) -> None:
    if record.get("log_level") in _ERRORS:
        problem = record.pop("exc_info", None)
        story = "".join(traceback.format_exception(problem)) if isinstance(problem, BaseException) else ""
        raise Finding(f"logged as an error: {record!a}\n{story}")
    line = one_line(None, "", record)
    if not line.isprintable():
        raise Finding(f"a record that is not one printable line: {line!a}")


class _Errors(logging.Handler):
    """Remembers what libraries log as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def _errors_of_libraries() -> Iterator[list[str]]:
    handler = _Errors()
    root = logging.getLogger()
    root.addHandler(handler)
    _watching.append(handler)
    try:
        yield handler.lines
    finally:
        _watching.remove(handler)
        root.removeHandler(handler)
