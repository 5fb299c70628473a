"""The audit record of a real system: each act stands there once, by whoever did it, and stays there."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.services import free_port, serving
from tests.support.system import System, running_system
from tests.support.waiting import until


def records(system: System, *words: str, user: str = "admin") -> list[dict[str, Any]]:
    """What `knot audit` says."""
    return [json.loads(line) for line in system.knot("audit", "--json", "--since", "1h", *words, user=user).splitlines()]


def test_play(tmp_path: Path) -> None:
    with running_system(tmp_path) as system:
        frontend, backend = system.space("frontend"), system.space("backend-api")
        port = free_port()
        frontend.knot("port", "forward", str(port), "backend-api", "3000")
        system.knot("port", "stop", "frontend", str(port), user="alice")
        until(lambda: records(system, "--event", "link-opened"), 10)
        print(system.knot("audit", "--since", "1h", user="admin"))
        print(system.knot("audit", "--json", "--limit", "3", user="alice"))
        assert 0
