"""As many forwards as a space may have, in one call. `python -m benchmarks.forwards` measures what they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from knot_ssh.errors import BadInput, Conflict
from knot_ssh.ports import Body, PortsOfServer
from knot_ssh.wire import FORWARDS_MAX
from tests.support.services import answering, ask, serving
from tests.support.system import running_system

FIRST = 20_000
PORTS = range(FIRST, FIRST + FORWARDS_MAX)
"""Below the ports that the kernel gives out by itself."""


def test_as_many_as_there_may_be(tmp_path: Path) -> None:
    """All are made in one call and carry bytes, one change touches one; one more is refused; all are back after a kill."""
    with running_system(tmp_path) as system, serving(answering(b"here")) as service:
        frontend, _backend = system.space("frontend"), system.space("backend-api")
        doors = PortsOfServer(system.api("alice"))
        wanted: list[Body] = [
            {"local_port": port, "space": "backend-api", "remote_port": service, "persistent": True} for port in PORTS
        ]
        made = doors.apply("frontend", wanted)
        assert [entry["local_port"] for entry in made["applied"]] == list(PORTS)
        assert (made["stopped"], made["errors"]) == ([], [])
        assert doors.apply("frontend", wanted) == {"applied": [], "stopped": [], "errors": []}
        for port in (PORTS[0], PORTS[500], PORTS[-1]):
            assert ask(port) == b"here"
        since = {entry["local_port"]: entry["counters"]["since"] for entry in frontend.forwards()}
        wanted[500]["remote_port"] = service + 1 if service < 65535 else service - 1
        [changed] = doors.apply("frontend", wanted)["applied"]
        assert changed["local_port"] == PORTS[500]
        assert {entry["local_port"]: entry["counters"]["since"] for entry in frontend.forwards()} == since
        one_more = wanted[0] | {"local_port": FIRST - 1}
        with pytest.raises(Conflict, match=str(FORWARDS_MAX)):
            doors.forward("frontend", one_more)
        with pytest.raises(BadInput, match="forwards"):
            doors.apply("frontend", [*wanted, one_more])
        frontend.kill()
        frontend.start()
        assert len(frontend.forwards()) == FORWARDS_MAX
        assert ask(PORTS[-1]) == b"here"
