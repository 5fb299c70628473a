"""socat: two plain TCP relays. It encrypts nothing, and shows what two more hops cost by themselves.

Its own TLS would be a second stunnel, with a process for each connection; plain it tells more.
"""

from __future__ import annotations

from benchmarks.peers.peer import Peer, line_with, program
from benchmarks.ports import free_port

BUFFER = 128 * 1024
"""Bytes that it moves at once; its default of 8 KiB would measure system calls."""


class Socat(Peer):
    """A pair of socats, each with a process for each connection."""

    name = "socat"
    about = f"two TCP relays without encryption, TCP_NODELAY, buffers of {BUFFER // 1024} KiB; a process for each connection"
    tasks_per_connection = 2

    @classmethod
    def version(cls) -> str:
        return " ".join(line_with("version", program("socat"), "-V").split()[:3])

    def start(self) -> None:
        """Nothing comes before the forward."""

    def forward(self, service_port: int) -> int:
        between = free_port()
        self._socat("server", between, service_port)
        local = free_port()
        self._socat("client", local, self.route(between))
        return local

    def _socat(self, end: str, accept: int, connect: int) -> None:
        listen = f"TCP-LISTEN:{accept},bind=127.0.0.1,reuseaddr,fork,backlog=128,nodelay"
        self.run(end, [program("socat"), "-b", str(BUFFER), listen, f"TCP:127.0.0.1:{connect},nodelay"])
