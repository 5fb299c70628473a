"""Forwards through either door: the agent's socket inside a space, or the HTTP API from anywhere.

Both speak the same bodies, so a caller need not know which it has. A source of None means the space of the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from knot_ssh.errors import BadInput

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
        return _body(self.agent.call("port.forward", {"source": source, "forward": forward}))

    def list(self, source: str | None) -> Body:
        return _body(self.agent.call("port.list", {"source": source}))

    def stop(self, source: str | None, local_port: int, *, drain: bool = False) -> Body:
        return _body(self.agent.call("port.stop", {"source": source, "local_port": local_port, "drain": drain}))

    def apply(self, source: str | None, forwards: Sequence[Body], *, dry_run: bool = False) -> Body:
        request = {"forwards": list(forwards), "dry_run": dry_run}
        return _body(self.agent.call("port.apply", {"source": source, "request": request}))


@dataclass(frozen=True, slots=True)
class PortsOfServer:
    """Through the HTTP API."""

    api: Api

    def forward(self, source: str | None, forward: Body) -> Body:
        return _body(self.api.post("space-io", _named(source), "port", "forward", body=forward))

    def list(self, source: str | None) -> Body:
        return _body(self.api.get("space-io", _named(source), "port", "list"))

    def stop(self, source: str | None, local_port: int, *, drain: bool = False) -> Body:
        body = {"local_port": local_port, "drain": drain}
        return _body(self.api.post("space-io", _named(source), "port", "stop", body=body))

    def apply(self, source: str | None, forwards: Sequence[Body], *, dry_run: bool = False) -> Body:
        body = {"forwards": list(forwards), "dry_run": dry_run}
        return _body(self.api.post("space-io", _named(source), "port", "apply", body=body))


def _named(source: str | None) -> str:
    if source is None:
        raise BadInput("this is not inside a space (no agent answers): name the source space first, or set KNOT_AGENT_SOCKET")
    return source


def _body(answer: Any) -> Body:
    assert isinstance(answer, dict)
    return answer
