"""Start processes with a log file, look at what they cost, and leave none behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from benchmarks.errors import Failed

ROOT = Path(__file__).resolve().parent.parent
"""The repository: load tools run from here, so that they are importable."""

START_SECONDS = 30
STOP_SECONDS = 10
PAUSE = 0.02
TICKS = os.sysconf("SC_CLK_TCK")

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""prctl(2)."""

Found = TypeVar("Found")


class Process:
    """A process, everything it starts in turn, and its log."""

    def __init__(self, command: list[str], log: Path, *, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
        self.name = log.stem
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its processes in order
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_for(self, words: str, seconds: float = START_SECONDS) -> str:
        """The first line of the log with these words. Raises Failed when it does not come."""

        def look() -> str | None:
            ended = self._process.poll() is not None
            lines = self._log.read_text(errors="replace").splitlines()
            found = next((line for line in lines if words in line), None)
            if ended and not found:
                raise Failed(self._last_words())
            return found

        return until(look, seconds, f"{self.name} does not say {words!r}")

    def require(self) -> None:
        """Raises Failed, with its last words, when it has ended."""
        if self._process.poll() is not None:
            raise Failed(self._last_words())

    def stop(self) -> None:
        """End it and everything it has started."""
        end([self.pid, *descendants(self.pid)])
        self._process.wait()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return f"{self.name} ended: " + next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def python(module: str, *words: str) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", module, *words]


def until(condition: Callable[[], Found | None], seconds: float, trouble: str) -> Found:
    """The condition's first true value. Raises Failed with `trouble` when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise Failed(f"{trouble}, within {seconds:g} s")
        time.sleep(PAUSE)
    return found


def descendants(pid: int) -> list[int]:
    """All processes below this one, in no order."""
    children: dict[int, list[int]] = {}
    for each, fields in _all_processes():
        children.setdefault(int(fields[1]), []).append(each)
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, [])]
        found += new
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes and of the children they have waited for, as in /proc/PID/stat: in clock ticks."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) / TICKS


def memory(pids: Iterable[int]) -> int:
    """Bytes that processes occupy: the proportional set size, in which a page of many processes counts once."""
    return sum(map(_proportional_size, pids))


def tasks() -> int:
    """Threads on this machine now."""
    return int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def raise_limits() -> None:
    """Allow as many descriptors as the machine does; every process that is started inherits it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def none_left_behind() -> Iterator[None]:
    """Whatever is started inside ends with it, also after Ctrl-C, SIGTERM or SIGHUP.

    This process adopts what loses its parent (a session of sshd, say), so that everything stays findable.
    """
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell ignores SIGINT for what it runs in background
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        end_everything()


def end_everything() -> None:
    """End all that this process has started, directly or not."""
    end(descendants(os.getpid()))


def end(pids: list[int]) -> None:
    """SIGTERM, and for who does not listen SIGKILL; returns once all are gone."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with contextlib.suppress(Failed):
            until(lambda: not any(map(_is_running, pids)), seconds, "processes do not end")
            break
    for pid in pids:
        with contextlib.suppress(ChildProcessError):  # not a child of ours, or waited for elsewhere
            os.waitpid(pid, os.WNOHANG)


def _is_running(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _all_processes() -> Iterator[tuple[int, list[str]]]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            yield int(name), fields


def _proportional_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except PermissionError:  # sshd hides its memory from other processes of the same user
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return 0


def _die_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
