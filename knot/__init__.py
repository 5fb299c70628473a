"""knot for scripts: `import knot.space as space`. Every error that a call can raise is a KnotError."""

from __future__ import annotations

from knot_ssh.errors import (
    BadInput,
    Conflict,
    Forbidden,
    HeldByFile,
    KnotError,
    LooseFile,
    NotAuthenticated,
    NotFound,
    NotRunning,
    OtherZone,
    PortTaken,
    Unavailable,
)

__all__ = [
    "BadInput",
    "Conflict",
    "Forbidden",
    "HeldByFile",
    "KnotError",
    "LooseFile",
    "NotAuthenticated",
    "NotFound",
    "NotRunning",
    "OtherZone",
    "PortTaken",
    "Unavailable",
]
