"""What is no HTTP at all, and never comes to the application, is refused in the same form as everything else."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from knot_server.http.bodies import Problem
from knot_ssh.errors import BadInput


class Protocol(H11Protocol):
    """uvicorn's, on h11."""

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong, and hang up."""
        body = Problem(error=msg, code=BadInput.code).model_dump_json().encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
