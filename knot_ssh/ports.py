"""Forwards through either door: the agent's socket inside a space, or the HTTP API from anywhere.

Both speak the same bodies, so a caller need not know which it has. A source of None means the space of the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from knot_ssh.errors import BadInput, KnotError

if TYPE_CHECKING:
    from knot_ssh.api import Api
    from knot_ssh.local import AgentSocket

Body = dict[str, Any]


class Ports(Protocol):
    """Make, list, stop and replace forwards. Results are the bodies of the HTTP API; errors are KnotErrors."""

    def forward(self, source: str | None, forward: Body) -> Body: ...
    def list(self, source: str | None) -> Body: ...
    def stop(self, source: str | None, local_port: int, *, drain: bool = False) -> Body: ...
    def apply(self, source: str | None, forwards: Sequence[Body], *, dry_run: bool = False) -> Body: ...


@dataclass(frozen=True, slots=True)
class PortsOfAgent:
    """Through the agent's socket."""

    agent: AgentSocket

    def forward(self, source: str | None, forward: Body) -> Body:
        return _body(self.agent.call("port.forward", {"source": source, "forward": forward}), *FORWARD)

    def list(self, source: str | None) -> Body:
        return _listing(self.agent.call("port.list", {"source": source}))

    def stop(self, source: str | None, local_port: int, *, drain: bool = False) -> Body:
        return _body(self.agent.call("port.stop", {"source": source, "local_port": local_port, "drain": drain}), *FORWARD)

    def apply(self, source: str | None, forwards: Sequence[Body], *, dry_run: bool = False) -> Body:
        request = {"forwards": list(forwards), "dry_run": dry_run}
        return _applied(self.agent.call("port.apply", {"source": source, "request": request}))


@dataclass(frozen=True, slots=True)
class PortsOfServer:
    """Through the HTTP API."""

    api: Api

    def forward(self, source: str | None, forward: Body) -> Body:
        return _body(self.api.post("space-io", _named(source), "port", "forward", body=forward), *FORWARD)

    def list(self, source: str | None) -> Body:
        return _listing(self.api.get("space-io", _named(source), "port", "list"))

    def stop(self, source: str | None, local_port: int, *, drain: bool = False) -> Body:
        body = {"local_port": local_port, "drain": drain}
        return _body(self.api.post("space-io", _named(source), "port", "stop", body=body), *FORWARD)

    def apply(self, source: str | None, forwards: Sequence[Body], *, dry_run: bool = False) -> Body:
        body = {"forwards": list(forwards), "dry_run": dry_run}
        return _applied(self.api.post("space-io", _named(source), "port", "apply", body=body))


def _named(source: str | None) -> str:
    if source is None:
        raise BadInput("this is not inside a space (no agent answers): name the source space first, or set KNOT_AGENT_SOCKET")
    return source


def _body(answer: Any, *fields: str) -> Body:
    """An answer that has these fields; raises KnotError for any other."""
    if not isinstance(answer, dict) or not answer.keys() >= set(fields):
        raise KnotError("the answer makes no sense: is that a knot server, or agent, of this version?")
    return answer


FORWARD = ("local_port", "bind", "origin", "space", "remote_port", "persistent", "mode", "state", "reason", "counters", "link")
"""Fields of a forward."""


def _listing(answer: Any) -> Body:
    body = _body(answer, "forwards", "file_error")
    for forward in body["forwards"]:
        _body(forward, *FORWARD)
    return body


def _applied(answer: Any) -> Body:
    body = _body(answer, "applied", "stopped", "errors")
    for forward in (*body["applied"], *body["stopped"]):
        _body(forward, "local_port", "space", "remote_port", "persistent")
    for error in body["errors"]:
        _body(error, "local_port", "error", "code")
    return body
