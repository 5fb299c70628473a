"""What of this process's memory may be seen from outside it: private keys lie there in the clear."""

from __future__ import annotations

import contextlib
import ctypes
import resource

PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Have the kernel write no core dump, and let no other process of the same user read the memory or attach a debugger.

    (prctl(2), PR_SET_DUMPABLE.) Root still can, and what is swapped out is as private as the swap device. A side effect: files
    in /proc/PID belong to root from now on.
    """
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
