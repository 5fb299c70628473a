"""The agent's unix socket, from the command line's side: one request, one answer, with the standard library alone."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from knot_ssh.errors import Unavailable, error_for

SOCKET_FILE = "agent.sock"
"""The socket's name in the agent's data folder."""
ANSWER_SECONDS = 30


class AgentSocket:
    """A connected socket of an agent."""

    def __init__(self, path: Path) -> None:
        """Connect; raises Unavailable when no agent answers there, or lets this user in."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise Unavailable(f"no agent answers at {path} ({error.strerror or error}); is `knot agent run` running?") from None

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """Ask and wait; raises the error that the agent answered with, or Unavailable."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            with self._socket, self._socket.makefile("rwb") as stream:
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
                answer = json.loads(stream.readline())
        except (OSError, ValueError):
            raise Unavailable(f"the agent at {self._path} did not answer; its log tells more") from None
        if error := answer.get("error"):
            raise error_for(str(error.get("data", {}).get("code")), str(error.get("message")))
        return answer["result"]

    def close(self) -> None:
        self._socket.close()
