"""As many forwards as a space may have, in one call. `python -m benchmarks.forwards` measures what they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from knot_ssh.errors import BadInput, Conflict
from knot_ssh.ports import Body, PortsOfServer
from knot_ssh.wire import FORWARDS_MAX
from tests.support.ports import free_ports
from tests.support.services import answering, ask, serving
from tests.support.system import running_system


def test_as_many_as_there_may_be(tmp_path: Path) -> None:
    """All are made in one call and carry bytes, one change touches one; one more is refused; all are back after a kill."""
    another, *ports = free_ports(FORWARDS_MAX + 1)
    with running_system(tmp_path) as system, serving(answering(b"here")) as service:
        frontend, _backend = system.space("frontend"), system.space("backend-api")
        doors = PortsOfServer(system.api("alice"))
        wanted: list[Body] = [
            {"local_port": port, "space": "backend-api", "remote_port": service, "persistent": True} for port in ports
        ]
        made = doors.apply("frontend", wanted)
        assert [entry["local_port"] for entry in made["applied"]] == ports
        assert (made["stopped"], made["errors"]) == ([], [])
        assert doors.apply("frontend", wanted) == {"applied": [], "stopped": [], "errors": []}
        for port in (ports[0], ports[500], ports[-1]):
            assert ask(port) == b"here"
        since = {entry["local_port"]: entry["counters"]["since"] for entry in frontend.forwards()}
        wanted[500]["remote_port"] = service + 1 if service < 65535 else service - 1
        [changed] = doors.apply("frontend", wanted)["applied"]
        assert changed["local_port"] == ports[500]
        assert {entry["local_port"]: entry["counters"]["since"] for entry in frontend.forwards()} == since
        one_more = wanted[0] | {"local_port": another}
        with pytest.raises(Conflict, match=str(FORWARDS_MAX)):
            doors.forward("frontend", one_more)
        with pytest.raises(BadInput, match="forwards"):
            doors.apply("frontend", [*wanted, one_more])
        frontend.kill()
        frontend.start()
        assert len(frontend.forwards()) == FORWARDS_MAX
        assert ask(ports[-1]) == b"here"
