"""Setup and removal over real files, with a server that a test can turn against them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_keys.openssh.identities import named_identity
from knot_keys.openssh.keeping import this_command
from knot_keys.openssh.places import Places
from knot_keys.openssh.settingup import Wanted, remove, set_up
from knot_keys.openssh.state import read_state
from knot_ssh import doors
from knot_ssh.errors import BadInput, Conflict, KnotError, LooseFile
from tests.support.saying_api import SayingApi, Status
from tests.unit.knot_keys.openssh.setups import disagree, do_refresh, do_setup, tree


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_everything_is_private(places: Places) -> None:
    """Folders are 0700 and files 0600, under any umask."""
    do_setup(places)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in places.ssh_folder.rglob("*")}
    assert modes.pop("knot") == 0o700
    assert len(modes) == 10
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(places.ssh_folder.stat().st_mode) == 0o700


def test_what_ssh_keygen_says(places: Places) -> None:
    """Key and certificate belong together, by the word of ssh-keygen."""
    do_setup(places)
    said = [
        subprocess.run(["ssh-keygen", "-l", "-f", str(path)], capture_output=True, text=True, check=True).stdout.split()[1]
        for path in (places.key, places.certificate)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("config", [None, b"", b"Host *\n  User me", b"\xff\r\n\0"])
def test_remove_undoes_setup(places: Places, config: bytes | None) -> None:
    """After setup, refresh, setup again and remove, the home folder is what it was, byte for byte and mode by mode."""
    if config is not None:
        places.ssh_folder.mkdir()
        places.user_config.write_bytes(config)
        places.user_config.chmod(0o644)
    before = tree(places.home)
    do_setup(places)
    do_refresh(places)
    do_setup(places, lifetime=600)
    assert places.user_config in remove(places)
    assert tree(places.home) == before
    assert remove(places) == []


def test_files_of_others_stay(places: Places) -> None:
    """What somebody has put beside our files, or behind our lines, is there after a removal."""
    do_setup(places)
    (places.folder / "notes").write_text("mine")
    places.user_config.write_bytes(places.user_config.read_bytes() + b"Host a\n")
    remove(places)
    assert set(tree(places.home)) == {".ssh", ".ssh/config", ".ssh/knot", ".ssh/knot/notes"}
    assert places.user_config.read_bytes() == b"Host a\n"


def test_drafts_of_a_killed_process_go(places: Places) -> None:
    """What a killed process has left half written is removed with the rest."""
    do_setup(places)
    (places.folder / ".id_ed25519.0a1b2c3d").write_text("secret")
    remove(places)
    assert tree(places.home) == {}


def own_key(folder: Path, *options: str) -> Path:
    """A key of the person's own."""
    subprocess.run(
        ["ssh-keygen", "-q", "-N", "secret", "-f", str(folder / "mine"), *(options or ("-t", "ed25519"))], check=True
    )
    return folder / "mine"


@pytest.mark.parametrize("home", ["", ".", "alice"])
def test_home_without_a_place(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty or relative HOME is refused: what it means depends on where one stands."""
    monkeypatch.setenv("HOME", home)
    with pytest.raises(KnotError, match="HOME is not an absolute path"):
        Places.here()


def test_named_identity_is_never_read(places: Places) -> None:
    """Of a key with a passphrase the public half is enough; the key itself may be elsewhere, and is never removed."""
    key = own_key(places.home)
    private = key.read_bytes()
    key.unlink()
    assert do_setup(places, identity=named_identity(str(key))).identity == str(key)
    assert not places.key.exists()
    assert f'IdentityFile "{key}"\n' in places.ssh_config.read_text()
    do_refresh(places)
    key.write_bytes(private)
    remove(places)
    assert set(tree(places.home)) == {"mine", "mine.pub"}


def test_identity_by_its_public_half() -> None:
    """A missing public half is told with its name."""
    with pytest.raises(BadInput, match=r"cannot read the public key /nowhere/id\.pub: No such file"):
        named_identity("/nowhere/id.pub")


def test_setup_again_keeps_identity_and_lifetime(places: Places) -> None:
    """What an earlier setup was told holds until a later one is told otherwise."""
    key = own_key(places.home)
    do_setup(places, identity=key, lifetime=600)
    again = do_setup(places)
    assert (again.identity, again.lifetime) == (str(key), 600)


def test_own_key_by_its_name(places: Places) -> None:
    """Whoever names our key means it: it is no key of theirs that would stay."""
    do_setup(places)
    assert do_setup(places, identity=named_identity(str(places.key))).identity is None
    remove(places)
    assert tree(places.home) == {}


def test_home_that_moved(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder under another path needs a setup again, and no more."""
    do_setup(places)
    moved = tmp_path / "moved"
    moved.mkdir()
    places.ssh_folder.rename(moved / ".ssh")
    monkeypatch.setenv("HOME", str(moved))
    do_setup(Places.here())
    for name in ("config", "knot/ssh_config"):
        text = (moved / ".ssh" / name).read_text()
        assert f'"{moved}/.ssh/knot/' in text
        assert f'"{places.home}/.ssh/' not in text


@pytest.mark.parametrize("options", [("-t", "rsa", "-b", "1024"), ("-t", "dsa")])
def test_weak_identity_is_refused(places: Places, options: tuple[str, ...]) -> None:
    """A key that the server would not certify is refused before it is asked."""
    key = own_key(places.home, *options)
    with pytest.raises(BadInput, match="cannot be certified"):
        named_identity(str(key))


@pytest.mark.parametrize("text", ["", "hello", "ssh-ed25519 AAAA x", "-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_no_identity(places: Places, text: str) -> None:
    """A file that holds no public key is refused by name."""
    (places.home / "id.pub").write_text(text)
    with pytest.raises(BadInput, match=r"id\.pub is not an OpenSSH public key"):
        named_identity(str(places.home / "id"))


def test_certificate_as_identity_is_refused(places: Places) -> None:
    """A certificate in the place of the public key is told from one."""
    do_setup(places)
    (places.home / "id.pub").write_bytes(places.certificate.read_bytes())
    with pytest.raises(BadInput):
        named_identity(str(places.home / "id"))


def test_key_that_others_can_read_is_refused(places: Places) -> None:
    """A key of ours that has become readable for others is not certified again."""
    do_setup(places)
    places.key.chmod(0o644)
    with pytest.raises(LooseFile):
        do_setup(places)


def test_folder_that_others_can_write_is_made_private(places: Places) -> None:
    """Who can write in our folder says whom ssh trusts."""
    places.folder.mkdir(parents=True)
    places.folder.chmod(0o777)
    do_setup(places)
    assert stat.S_IMODE(places.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("path", ["/api/ca", "/api/certificates", "/api/spaces", "/api/krl"])
def test_setup_that_is_refused_leaves_nothing(places: Places, server: SayingApi, path: str) -> None:
    """Whichever answer is a refusal, as for who owns no space: the home folder stays as it was."""
    server.answers[path] = lambda _: Status(409, {"success": False, "error": "you own no space yet", "code": "conflict"})
    with pytest.raises(Conflict, match="no space yet"):
        do_setup(places)
    assert tree(places.home) == {}


def test_setup_that_is_declined_leaves_nothing(places: Places, server: SayingApi) -> None:
    """Without the person's word nothing is asked and nothing is written."""
    with pytest.raises(KnotError, match="no"):
        set_up(places, Wanted(doors.given(), None, None), disagree)
    assert (tree(places.home), server.asked) == ({}, [])


def test_setup_that_fails_late_leaves_nothing(places: Places) -> None:
    """When the last step fails, everything before it is undone."""
    places.ssh_folder.mkdir()
    places.user_config.write_bytes(b"Host a\n")
    before = tree(places.home)

    def meanwhile(_lines: bytes) -> None:
        places.user_config.write_bytes(b"# END knot ssh\n")

    with pytest.raises(KnotError, match="line 1"):
        set_up(places, Wanted(doors.given(), None, None), meanwhile)
    places.user_config.write_bytes(b"Host a\n")
    assert tree(places.home) == before


def test_damaged_lines_stop_everything(places: Places, server: SayingApi) -> None:
    """With damaged lines in the config neither setup nor remove changes anything."""
    do_setup(places)
    places.user_config.write_bytes(places.user_config.read_bytes() * 2)
    before = tree(places.home)
    asked = len(server.asked)
    for change in (do_setup, remove):
        with pytest.raises(KnotError, match="line 5: a second mark"):
            change(places)
    assert tree(places.home) == before
    assert len(server.asked) == asked


def test_damaged_state(places: Places) -> None:
    """What cannot be read is set up again; until then remove takes away all but the key and an empty config."""
    do_setup(places)
    places.state.write_text("{")
    with pytest.raises(KnotError, match="damaged"):
        do_refresh(places)
    key = places.key.read_bytes()
    do_setup(places)
    assert places.key.read_bytes() == key
    places.state.write_text("{")
    remove(places)
    assert set(tree(places.folder)) == {"id_ed25519", "id_ed25519.pub"}


def test_setup_that_is_overtaken(places: Places) -> None:
    """Of two first setups at once the later one stops, and takes nothing of the other's away."""

    def meanwhile(_lines: bytes) -> None:
        do_setup(places)

    with pytest.raises(KnotError, match="at the same time"):
        set_up(places, Wanted(doors.given(), None, None), meanwhile)
    assert read_state(places).made_key
    assert places.key.exists()


def test_home_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `sudo -E` files would be made in somebody else's home: refused."""
    monkeypatch.setenv("HOME", "/proc/1" if os.geteuid() else "/var/cache/man")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(KnotError, match="belongs to another user"):
        Places.here()


@pytest.mark.parametrize("name", ["a%b", "a'b", "a*b"])
def test_home_that_ssh_cannot_be_told_of(tmp_path: Path, server: SayingApi, places: Places, name: str) -> None:
    """A home folder that OpenSSH would read as another is refused before the server is asked."""
    home = tmp_path / name
    home.mkdir()
    with pytest.raises(BadInput, match="OpenSSH's configuration cannot hold"):
        do_setup(Places(home))
    assert (tree(home), server.asked) == ({}, [])


def test_this_command_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ssh is told of the program that runs, by its absolute path; of Python's module where there is no such program."""
    program = tmp_path / "knot"
    program.write_text("")
    monkeypatch.chdir(tmp_path)
    module = [sys.executable, "-P", "-m", "knot_ssh"]
    for argument in ("knot", "missing", "__main__.py", "-c", ""):
        monkeypatch.setattr(sys, "argv", [argument])
        assert this_command() == module
    program.chmod(0o755)
    for argument in ("knot", "./knot", str(program)):
        monkeypatch.setattr(sys, "argv", [argument])
        assert this_command() == [str(program)]


def with_ssh(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program in the place of ssh."""
    folder.mkdir()
    (folder / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (
            "echo 'ssh_config line 18: Bad configuration option: knownhostscommand' >&2; exit 255",
            r"8\.5 or later .*line 18: Bad",
        ),
        ("printf '\\033[31m' >&2; exit 1", r"x1b\[31m"),
    ],
)
def test_ssh_that_refuses_the_configuration(
    places: Places, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, script: str, complaint: str
) -> None:
    """An ssh that is too old would refuse every host once its config led to ours: it is asked first, and nothing is left."""
    with_ssh(tmp_path_factory.mktemp("old") / "bin", script, monkeypatch)
    with pytest.raises(KnotError, match=complaint):
        do_setup(places)
    assert tree(places.home) == {}


def test_machine_without_ssh(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ssh is missing the files are made for when it is there."""
    monkeypatch.setenv("PATH", "/nowhere")
    do_setup(places)
    assert places.user_config.exists()
