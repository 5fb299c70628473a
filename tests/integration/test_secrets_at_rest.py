"""Secrets on the disk and in memory: nobody else can read them, whatever the umask, and who finds them loose says so."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.system import AgentOf, System, running_system


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A system whose processes were all started with umask 000."""
    before = os.umask(0)
    try:
        with running_system(tmp_path_factory.mktemp("loose")) as system:
            yield system
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def agent(loose: System) -> AgentOf:
    return loose.space("frontend")


def private(folder: Path) -> list[Path]:
    """Everything below a folder of ours but public halves; fails for what others can read or write, or enter."""
    found = [path for path in folder.rglob("*") if path.suffix != ".pub"]
    for path in (folder, *found):
        assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, f"{path} {path.lstat().st_mode:o}"
    return found


def test_server(loose: System, agent: AgentOf) -> None:
    """Keys, store and the files that SQLite puts beside it."""
    assert agent.is_running()
    names = {path.name for path in private(loose.folder / "server")}
    assert {"user_ca", "host_ca", "hub_key", "store.db", "store.db-wal", "store.db-shm"} <= names


def test_agent(agent: AgentOf) -> None:
    """Keys, what it is a member of, and its socket."""
    names = {path.name.partition("-")[0] for path in private(agent.folder)}
    assert {"agent.json", "identity", "host_key", "agent.sock", "lock"} <= names


def test_login_and_ssh_setup(loose: System) -> None:
    """The kept login, and the key that ssh is given."""
    token = loose.user("alice")
    loose.knot("login", "--server", loose.url, "--token", "-", stdin=token)
    loose.knot("ssh", "setup", "--yes")
    home = loose.folder / "home"
    assert [path.name for path in private(home / ".config" / "knot")] == ["config.yaml"]
    assert "id_ed25519" in {path.name for path in private(home / ".ssh" / "knot")}


@pytest.mark.parametrize("name", ["user_ca", "host_ca", "hub_key", "store.db", "store.db-wal"])
def test_loose_file_of_the_server(tmp_path: Path, name: str) -> None:
    """A server whose secret others could read does not start, and says which file it is and how to mend it."""
    system = System(tmp_path)
    data = tmp_path / "server"
    system.knot("server", "init", "--data", str(data))
    (data / name).touch()
    (data / name).chmod(0o644)
    said = system.knot("server", "run", "--data", str(data), code=1)
    assert f"chmod 600 {data / name}" in said


def test_loose_folder_of_the_server(tmp_path: Path) -> None:
    """Nor does one into whose folder others can write, or where a link has taken a key's place."""
    system = System(tmp_path)
    data = tmp_path / "server"
    system.knot("server", "init", "--data", str(data))
    data.chmod(0o777)
    assert f"chmod go-w {data}" in system.knot("server", "run", "--data", str(data), code=1)
    data.chmod(0o700)
    (data / "hub_key").rename(tmp_path / "hub_key")
    (data / "hub_key").symlink_to(tmp_path / "hub_key")
    assert "symbolic link" in system.knot("server", "run", "--data", str(data), code=1)


@pytest.mark.parametrize(("name", "mode"), [("agent.json", 0o644), ("host_key", 0o640), ("memory.json", 0o666), (".", 0o777)])
def test_loose_file_of_the_agent(tmp_path: Path, name: str, mode: int) -> None:
    """An agent whose folder others can write into, or whose files they can read, does not start."""
    folder = tmp_path / "agent"
    folder.mkdir(0o700)
    path = folder / name
    if name != ".":
        path.write_text("{}")
    path.chmod(mode)
    said = System(tmp_path).knot("agent", "run", "--data", str(folder), "--server", "127.0.0.1:1", code=1)
    assert "by others" in said or "others can write" in said
    assert "chmod" in said


def test_no_core_dumps(loose: System, agent: AgentOf) -> None:
    """The kernel writes no core of server or agent, which hold keys in the clear."""
    assert loose.server
    assert agent.running
    for running in (loose.server, agent.running):
        assert resource.prlimit(running.process.pid, resource.RLIMIT_CORE) == (0, 0)
        if os.geteuid() == 0:
            assert Path(f"/proc/{running.process.pid}/environ").stat().st_uid == 0


class TestPassphrase:
    """A server whose CA keys are encrypted."""

    def test_whole_life(self, tmp_path: Path) -> None:
        """Made with a passphrase, the server starts with it alone; it can be changed and removed while the server is down,
        the agents keep their certificates, and it is seen nowhere."""
        old, new = passphrase(tmp_path / "old", "correct horse"), passphrase(tmp_path / "new", "battery staple")
        data = str(tmp_path / "server")
        system = System(tmp_path, ("--ca-passphrase-file", old))
        (tmp_path / "home").mkdir()
        system.tokens["admin"] = system.knot("server", "init", "--data", data, "--ca-passphrase-file", old)
        assert not readable(tmp_path / "server" / "user_ca")
        for without in ((), ("--ca-passphrase-file", new)):
            said = system.knot("server", "run", "--data", data, *without, code=1)
            assert "user_ca" in said
            assert "battery" not in said
        try:
            self.change_while_running(system, data, old, new)
        finally:
            system.close()

    def change_while_running(self, system: System, data: str, old: str, new: str) -> None:
        system.start()
        space = system.space("frontend")
        assert system.server
        said = system.knot("server", "passphrase", "--data", data, "--ca-passphrase-file", old, "--remove", code=1)
        assert "another server is running" in said
        assert b"correct" not in Path(f"/proc/{system.server.process.pid}/cmdline").read_bytes()
        assert "correct horse" not in system.server.log.read_text()
        system.server.stop()
        said = system.knot("server", "passphrase", "--data", data, "--ca-passphrase-file", new, "--remove", code=1)
        assert "nothing was changed" in said or "is not that of" in said
        system.knot("server", "passphrase", "--data", data, "--ca-passphrase-file", old, "--new-passphrase-file", new)
        assert not readable(Path(data) / "user_ca")
        system.options = ()
        system.knot("server", "passphrase", "--data", data, "--remove", env={"KNOT_CA_PASSPHRASE": "battery staple"})
        assert readable(Path(data) / "user_ca")
        system.start()
        assert space.running
        space.running.wait_for("hub connected")

    def test_wrong_usage(self, tmp_path: Path) -> None:
        """Neither or both of what a passphrase may become is wrong usage; a folder without a server is named."""
        system = System(tmp_path)
        new = passphrase(tmp_path / "new", "x")
        for words in ((), ("--remove", "--new-passphrase-file", new)):
            assert "either" in system.knot("server", "passphrase", "--data", str(tmp_path), *words, code=2)
        assert "there is no server" in system.knot("server", "passphrase", "--data", str(tmp_path), "--remove", code=1)

    @pytest.mark.parametrize("bad", ["", "loose"])
    def test_init_refuses(self, tmp_path: Path, bad: str) -> None:
        """An empty or loose passphrase file makes no server at all."""
        file = Path(passphrase(tmp_path / "bad", bad))
        file.chmod(0o644 if bad else 0o600)
        data = tmp_path / "server"
        said = System(tmp_path).knot("server", "init", "--data", str(data), "--ca-passphrase-file", str(file), code=1)
        assert str(file) in said
        assert not data.exists()


def passphrase(path: Path, text: str) -> str:
    """A private file with this passphrase; gives its name."""
    path.touch(0o600)
    path.write_text(f"{text}\n")
    return str(path)


def readable(key: Path) -> bool:
    """Whether ssh-keygen opens this key without a passphrase."""
    return subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", key], capture_output=True, check=False).returncode == 0
