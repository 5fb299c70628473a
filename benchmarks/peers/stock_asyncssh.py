"""asyncssh as it comes: `listen` in one process, `forward_local_port` in another."""

from __future__ import annotations

import getpass
import os

from benchmarks.peers.peer import Login, Peer, make_key, program
from benchmarks.ports import free_port
from benchmarks.processes import ROOT, python

MODULE = "benchmarks.peers.stock_asyncssh_end"


class StockAsyncssh(Peer):
    """Our own two scripts of a few lines, in `stock_asyncssh_end.py`."""

    name = "asyncssh"
    about = "two short scripts around `listen` and `forward_local_port`, aes128-gcm@openssh.com, on asyncio's own event loop"

    @classmethod
    def version(cls) -> str:
        import asyncssh

        program("ssh-keygen")
        return f"asyncssh {asyncssh.__version__}"

    def start(self) -> None:
        self._port = free_port()
        make_key(self.folder / "host")
        make_key(self.folder / "client")
        self._end("server", str(self._port), str(self.folder / "host"), str(self.folder / "client.pub"))

    def forward(self, service_port: int) -> int:
        local = free_port()
        keys = [str(self.folder / "client"), str(self.folder / "host.pub")]
        self._end("client", str(self.route(self._port)), *keys, str(local), str(service_port))
        return local

    def login(self) -> Login:
        return Login(self._port, getpass.getuser(), self.folder / "client")

    def _end(self, end: str, *words: str) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self.run(end, python(MODULE, end, *words), env={**os.environ, "PYTHONPATH": path}).wait_for("ready")
