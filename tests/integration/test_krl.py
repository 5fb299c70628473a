"""GET /api/krl of a running server: a deleted space's certificates are in it at once, and `ssh-keygen` says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import urllib3

from tests.support.system import System, running_system


def ask(system: System, user: str = "alice") -> urllib3.BaseHTTPResponse:
    headers = {"Authorization": f"Bearer {system.user(user)}"}
    return urllib3.request("GET", system.url + "/api/krl", headers=headers, retries=False)


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH's ssh-keygen is not installed")
def test_deleted_space(system: System, tmp_path: Path) -> None:
    """Client and host certificate of a deleted space are revoked; those of another one of the same owner are not."""
    kept, deleted = system.space("krl-kept"), system.space("krl-deleted")
    shown = {}
    for agent in (kept, deleted):
        for what, file in (("client", agent.identity()[1]), ("host", agent.folder / "host_key-cert.pub")):
            shown[agent, what] = tmp_path / f"{agent.name}-{what}.pub"
            shutil.copy(file, shown[agent, what])
    system.knot("space", "delete", deleted.name, user="alice")
    response = ask(system)
    assert (response.status, response.headers["Content-Type"]) == (200, "application/octet-stream")
    (tmp_path / "krl").write_bytes(response.data)
    for (agent, what), file in shown.items():
        query = ["ssh-keygen", "-Q", "-f", str(tmp_path / "krl"), str(file)]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout
        assert ("REVOKED" in said) == (agent is deleted), (agent.name, what, said)
    kept.stop()


def test_token_is_needed(system: System) -> None:
    """Who has no token learns nothing."""
    response = urllib3.request("GET", system.url + "/api/krl", retries=False)
    assert (response.status, response.json()["code"]) == (401, "not_authenticated")


def test_server_without_ssh_keygen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has no ssh-keygen says so, and goes on."""
    (tmp_path / "programs").mkdir()
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path / "programs"))
    with running_system(tmp_path) as system:
        response = ask(system)
        assert (response.status, response.json()["code"]) == (503, "krl_unavailable")
        assert "ssh-keygen" in response.json()["error"]
        assert system.spaces("alice") == []
