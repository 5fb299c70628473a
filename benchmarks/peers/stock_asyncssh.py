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
    about = (
        "two short scripts around `listen` and `forward_local_port`, aes128-gcm@openssh.com, on asyncio's own event loop; "
        "through the relay: `tunnel=` and another `listen`"
    )
    can_relay = True

    @classmethod
    def version(cls) -> str:
        import asyncssh

        program("ssh-keygen")
        return f"asyncssh {asyncssh.__version__}"

    def start(self) -> None:
        make_key(self.folder / "host")
        make_key(self.folder / "client")
        self._port = self._serve("server")
        self._jump = [str(self._serve("relay"))] if self.relayed else []

    def forward(self, service_port: int) -> int:
        local = free_port()
        keys = [str(self.folder / "client"), str(self.folder / "host.pub")]
        self._end("client", "client", str(self.route(self._port)), *keys, str(local), str(service_port), *self._jump)
        return local

    def login(self) -> Login:
        return Login(self._port, getpass.getuser(), self.folder / "client")

    def _serve(self, end: str) -> int:
        """Start a server; gives its port."""
        port = free_port()
        self._end(end, "server", str(port), str(self.folder / "host"), str(self.folder / "client.pub"))
        return port

    def _end(self, end: str, *words: str) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        self.run(end, python(MODULE, *words), env={**os.environ, "PYTHONPATH": path}).wait_for("ready")
