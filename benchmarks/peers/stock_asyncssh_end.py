"""The two ends of stock asyncssh, each a process:

python -m benchmarks.peers.stock_asyncssh_end server PORT HOST_KEY AUTHORIZED_KEYS
python -m benchmarks.peers.stock_asyncssh_end client PORT KEY HOST_PUBLIC_KEY LOCAL_PORT REMOTE_PORT [JUMP_PORT]
"""

from __future__ import annotations

import asyncio
import sys

import asyncssh

CIPHERS = ["aes128-gcm@openssh.com"]


class Server(asyncssh.SSHServer):
    """Lets everyone who is logged in connect anywhere."""

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True


async def serve(port: str, host_key: str, authorized: str) -> None:
    """The server end."""
    await asyncssh.listen(
        "127.0.0.1",
        int(port),
        server_factory=Server,
        server_host_keys=[host_key],
        authorized_client_keys=authorized,
        encryption_algs=CIPHERS,
        compression_algs=None,
    )
    await _ready()


async def connect(port: str, key: str, host_key: str, local_port: str, remote_port: str, jump_port: str = "") -> None:
    """The client end. With a jump port its connection lies inside one to the server there."""

    async def logged_in(port: str, tunnel: asyncssh.SSHClientConnection | None = None) -> asyncssh.SSHClientConnection:
        return await asyncssh.connect(
            "127.0.0.1",
            int(port),
            tunnel=tunnel,
            client_keys=[key],
            known_hosts=([host_key], [], []),
            encryption_algs=CIPHERS,
            compression_algs=None,
            config=None,
            agent_path=None,
        )

    connection = await logged_in(port, await logged_in(jump_port) if jump_port else None)
    await connection.forward_local_port("127.0.0.1", int(local_port), "127.0.0.1", int(remote_port))
    await _ready()


async def _ready() -> None:
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    end, *words = sys.argv[1:]
    asyncio.run(serve(*words) if end == "server" else connect(*words))


if __name__ == "__main__":
    main()
