"""Connections: what becomes of the socket when a login does not come about."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest
from asyncssh.public_key import SSHOpenSSHCertificate

from knot_keys.connections import log_in
from knot_ssh.dataplane.plane import DataPlane
from tests.support.reactors import on_both
from tests.support.waiting import becomes


def never(_shown: SSHOpenSSHCertificate) -> None:
    raise AssertionError("nobody has shown anything")


@pytest.mark.parametrize("turns", [0, 1, 2, 100])
@on_both
async def test_cancelled(plane: DataPlane, turns: int) -> None:
    """Wherever a login is given up, its socket is closed, and the other side reads the end."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with closing(far):
        task = asyncio.ensure_future(log_in(plane, near, "relay", "knot", never))
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await becomes(lambda: near.fileno() == -1)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(5):
            while await loop.sock_recv(far, 1000):
                pass
