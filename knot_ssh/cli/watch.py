"""Show something anew whenever it changes, until it is interrupted or nobody reads any more."""

from __future__ import annotations

import os
import select
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import click

from knot_ssh.errors import Unavailable

HOME, CLEAR_LINE, CLEAR_BELOW, CLEAR_ALL = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[2J"
"""ECMA-48 control sequences."""


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say: on stdout, and beside it on stderr."""

    text: str
    notice: str = ""

    def print(self, before: Report | None = None) -> None:
        """Say what was not said before."""
        if before is None or self.text != before.text:
            click.echo(self.text)
        if self.notice and (before is None or self.notice != before.notice):
            click.echo(self.notice, err=True)


def watch(look: Callable[[], Report], seconds: float) -> None:
    """Look every so many seconds. On a terminal the report stays in place; elsewhere each one that differs is printed.

    Ends when interrupted, and when the reader of stdout has gone. Who does not answer for a while is asked again, but
    for the first time: then Unavailable is raised.
    """
    draw = _draw if sys.stdout.isatty() else Report.print
    try:
        before: Report | None = None
        report = look()
        while True:
            draw(report, before)
            if reader_left(seconds):
                break
            before, report = report, _again(look, report)
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        pass
    silence_stdout()


def _again(look: Callable[[], Report], before: Report) -> Report:
    try:
        return look()
    except Unavailable as error:
        return replace(before, notice=f"knot: {error}")


def _draw(report: Report, before: Report | None) -> None:
    """The report from the top of the terminal on, as much as fits."""
    size = shutil.get_terminal_size()
    lines = [line[: size.columns] for line in (*report.notice.splitlines(), *report.text.splitlines())]
    shown = [line + CLEAR_LINE for line in lines[: size.lines - 1]]
    start = HOME if before else CLEAR_ALL + HOME
    click.echo(start + "\r\n".join(shown) + "\r\n" + CLEAR_BELOW, nl=False)


def reader_left(seconds: float) -> bool:
    """Wait; whether the reader of stdout has gone meanwhile, which a pipe tells without being written to."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return bool(poll.poll(seconds * 1000))


def silence_stdout() -> None:
    """So that what is still buffered is no error when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
