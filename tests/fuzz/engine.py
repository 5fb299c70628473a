"""What `make fuzz` starts for a target: atheris, which has libFuzzer make inputs by what they reach in our code."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

Run = Callable[[bytes], None]
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
"""See unshare(2) and netdevice(7)."""
INSTRUMENTED = ["knot_ssh", "knot_keys", "knot_server", "knot_agent", "asyncssh", "yaml"]
"""Packages whose branches are followed: ours, and the two in Python that parse for us."""


def leave_network() -> None:
    """Go where there is nothing but a loopback of one's own, if that may be done: ports that inputs name are bound."""
    with contextlib.suppress(OSError):
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0:
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def main(name: str, itself: str, options: list[str]) -> None:
    """Run the target of this name with libFuzzer's own options and folders; does not return.

    `itself` is what libFuzzer is to start where it needs another process, to compare inputs.
    """
    leave_network()
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
        try_out = importlib.import_module("tests.fuzz.watching").try_out
        close_all = importlib.import_module("tests.fuzz.stage").close_all

    atheris.Setup([itself, *options], watched(target.run, try_out, close_all))
    atheris.Fuzz()


def watched(run: Run, try_out: Callable[[Run, bytes], None], close_all: Callable[[], None]) -> Run:
    """An input's way; after a finding no thread is left that Python would wait for at its end."""

    def run_watched(data: bytes) -> None:
        try:
            try_out(run, data)
        except BaseException:
            close_all()
            raise

    return run_watched


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
