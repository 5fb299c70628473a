"""What a process takes: memory, processor time, descriptors. From /proc, in bytes and seconds."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

KIB = 1024
MIB = 1024 * KIB
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Meter:
    """Looks at one process."""

    name: str
    pid: int

    def memory(self) -> int:
        """The proportional set size: pages shared with others count in part."""
        return self._field("smaps_rollup", "Pss")

    def peak(self) -> int:
        """The largest resident set since `forget_peak`."""
        return self._field("status", "VmHWM")

    def resident(self) -> int:
        return self._field("status", "VmRSS")

    def forget_peak(self) -> None:
        """See proc_pid_clear_refs(5)."""
        self._path("clear_refs").write_text("5")

    def cpu(self) -> float:
        """User and system time."""
        fields = self._path("stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK

    def descriptors(self) -> int:
        return len(os.listdir(self._path("fd")))

    def _field(self, file: str, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB", self._path(file).read_text(), re.MULTILINE)
        assert found, (file, name)
        return int(found[1]) * KIB

    def _path(self, file: str) -> Path:
        return Path("/proc", str(self.pid), file)


class Growth:
    """What a process has taken since this was made. `peak` is never less than what memory grew to in between."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        meter.forget_peak()
        self._memory = meter.memory()
        self._resident = meter.resident()
        self._cpu = meter.cpu()

    @property
    def memory(self) -> int:
        return self.meter.memory() - self._memory

    @property
    def peak(self) -> int:
        return self.meter.peak() - self._resident

    @property
    def cpu(self) -> float:
        return self.meter.cpu() - self._cpu

    def __str__(self) -> str:
        now, peak = self.memory / MIB, self.peak / MIB
        return f"{self.meter.name}: {now:+.1f} MiB, at most {peak:+.1f} MiB, {self.cpu:.2f} CPU-s"


def percentile(values: list[float], share: float) -> float:
    """The value that so many of them (0 to 1) do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
