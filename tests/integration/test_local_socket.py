"""Who may use the agent's socket on the same machine."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.system import AgentOf

NOBODY = pwd.getpwnam("nobody")
NOBODYS_GROUP = grp.getgrgid(NOBODY.pw_gid).gr_name

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

ASK = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[3]))
sock = socket.socket(socket.AF_UNIX); sock.settimeout(10)
sock.connect(sys.argv[1])
sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"port.list","params":{}}\\n')
sys.stdout.write(sock.makefile().readline())
"""


def ask_as_nobody(agent: AgentOf) -> subprocess.CompletedProcess[str]:
    """List the forwards as the user nobody, from a process that gives root up first."""
    path = str(agent.folder / "agent.sock")
    command = [sys.executable, "-I", "-c", ASK, path, str(NOBODY.pw_gid), str(NOBODY.pw_uid)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def started(pair: Pair, folder: Path, name: str, config: str) -> AgentOf:
    """An agent with this configuration, in a folder whose parents anybody may pass."""
    for parent in (pair.system.folder, *pair.system.folder.parents):
        if parent.stat().st_uid == 0 and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    (folder / "agent.yaml").write_text(config)
    agent = pair.system.space(name, run=False)
    agent.folder.parent.mkdir(exist_ok=True)
    agent.folder.parent.chmod(0o711)
    token = pair.system.knot("space", "token", name, user="alice")
    agent.start(token, options=("--config", str(folder / "agent.yaml")))
    return agent


@pytest.mark.threat(14, "another user connects to the socket", "refused by folder and socket")
def test_other_users_are_refused(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """Without configuration folder and socket are the agent's own, and another user gets nothing."""
    agent = started(pair, tmp_path, "closed", "")
    assert stat.S_IMODE(agent.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((agent.folder / "agent.sock").stat().st_mode) == 0o600
    result = ask_as_nobody(agent)
    figure("PermissionError, nothing read")
    assert "PermissionError" in result.stderr
    assert result.stdout == ""


@pytest.mark.threat(14, "the same where folder and socket were opened to all", "refused by uid")
def test_uid_is_checked_even_where_files_are_open(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """Open file modes alone let nobody in: the kernel's word on the peer decides."""
    agent = started(pair, tmp_path, "opened", "")
    agent.folder.chmod(0o711)
    (agent.folder / "agent.sock").chmod(0o666)
    result = ask_as_nobody(agent)
    assert result.stdout == ""
    assert agent.running is not None
    figure(agent.running.wait_for("local user refused").split(" ", 2)[2])


@pytest.mark.parametrize("config", ["socket_users: [nobody]\n", f"socket_group: {NOBODYS_GROUP}\n"])
def test_configured_users_are_served(pair: Pair, tmp_path: Path, config: str) -> None:
    """A configured user, or a member of a configured group, is served; keys stay private."""
    agent = started(pair, tmp_path, "shared-" + config[7:12].strip(), config)
    assert '"forwards":[]' in ask_as_nobody(agent).stdout
    for path in agent.folder.iterdir():
        if path.suffix not in {".pub", ".sock"}:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
