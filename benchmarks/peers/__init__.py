"""What is compared: each file is one way to forward a port, all behind the interface in `peer.py`."""

from __future__ import annotations

from benchmarks.peers.knot import Knot
from benchmarks.peers.openssh import OpenSSH
from benchmarks.peers.peer import Peer
from benchmarks.peers.socat import Socat
from benchmarks.peers.stock_asyncssh import StockAsyncssh
from benchmarks.peers.stunnel import Stunnel

PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (OpenSSH, Stunnel, Socat, StockAsyncssh, Knot)}
"""By name, in the order of the table's columns."""
