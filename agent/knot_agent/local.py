"""The agent's unix socket, for the command line inside the space: JSON-RPC, for users who are let in.

The folder is private before the socket exists, the socket is made under a strict umask, and every connection's uid is
asked of the kernel (SO_PEERCRED). Where agent and developer are different users, `socket_users` and `socket_group` name
who else is let in: then folder and socket can be reached by others, and the uid decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from knot_ssh.errors import KnotError
from knot_ssh.local import SOCKET_FILE
from knot_ssh.rpc import LINE_LIMIT, Method, Peer
from knot_ssh.tasks import Tasks

log = structlog.get_logger(__name__)

PATH_LIMIT = 107
"""Bytes that `sockaddr_un` holds, less the final NUL."""


@dataclass(frozen=True, slots=True)
class Guests:
    """Who may use the socket besides the agent's own user and root."""

    users: Sequence[str] = ()
    group: str | None = None

    def admits(self, uid: int) -> bool:
        """Whether this user is let in."""
        if uid in (os.geteuid(), 0):
            return True
        try:
            user = pwd.getpwuid(uid)
        except KeyError:
            return False
        if user.pw_name in self.users:
            return True
        return self.group is not None and grp.getgrnam(self.group).gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)

    def open_up(self, folder: Path, path: Path) -> None:
        """Let guests reach the socket: named users by any way, a group by its own bits."""
        if self.users:
            folder.chmod(0o711)
            path.chmod(0o666)
        elif self.group:
            for place, mode in ((folder, 0o710), (path, 0o660)):
                os.chown(place, -1, grp.getgrnam(self.group).gr_gid)
                place.chmod(mode)
        else:
            folder.chmod(0o700)


class LocalSocket:
    """Serves the command line until closed."""

    def __init__(self, folder: Path, guests: Guests, methods: Mapping[str, Method]) -> None:
        self._path = folder / SOCKET_FILE
        self._guests = guests
        self._methods = methods
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Make the socket; raises KnotError when its path is too long."""
        if len(os.fsencode(self._path)) > PATH_LIMIT:
            raise KnotError(f"the path {self._path} is too long for a socket; choose a shorter --data")
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            sock.bind(str(self._path))
        finally:
            os.umask(umask)
        self._server = await asyncio.start_unix_server(self._connected, sock=sock, limit=LINE_LIMIT)
        self._guests.open_up(self._path.parent, self._path)

    async def close(self) -> None:
        """Remove the socket and end every conversation."""
        if self._server:
            self._server.close()
        self._path.unlink(missing_ok=True)
        await self._tasks.cancel()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid = _peer_uid(writer.get_extra_info("socket"))
        if self._guests.admits(uid):
            self._tasks.start(self._serve(reader, writer))
        else:
            log.warning("local user refused", uid=uid)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer, self._methods).run()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _peer_uid(sock: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
