"""SSH connections that are logged in and carry nothing. `python -m benchmarks.load.logins HOST PORT USER KEY CERT COUNT`
prints `logged in COUNT`. CERT may be empty. The host key is not checked: what the connections cost the server is the question.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import asyncssh


async def log_in(host: str, port: int, user: str, key: str, certificate: str, count: int) -> None:
    """Log in so many times, say so, and stay."""
    client_keys: Any = [(key, certificate) if certificate else key]
    kept = [
        await asyncssh.connect(
            host, port, username=user, client_keys=client_keys, known_hosts=None, config=None, agent_path=None
        )
        for _ in range(count)
    ]
    print("logged in", len(kept), flush=True)
    await asyncio.Event().wait()


def main() -> None:
    host, port, user, key, certificate, count = sys.argv[1:]
    try:
        asyncio.run(log_in(host, int(port), user, key, certificate, int(count)))
    except (OSError, asyncssh.Error) as error:
        sys.exit(f"login: {error}")


if __name__ == "__main__":
    main()
