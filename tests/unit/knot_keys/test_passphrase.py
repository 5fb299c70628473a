"""The CAs' passphrase: where it comes from, what it opens, and how it is changed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from knot_keys import recoding
from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE, Authority
from knot_keys.keyfiles import create_key, load_key, public_line
from knot_keys.passphrase import CREDENTIAL, Passphrase, PassphraseRefused, find_passphrase
from knot_keys.recoding import change_passphrase, finish_change
from knot_ssh.errors import KnotError, LooseFile
from knot_ssh.files import replace_file

pytestmark = pytest.mark.filterwarnings("ignore:Warning. bcrypt.kdf")  # that a guess is too cheap
OLD, NEW, OTHER = Passphrase(b"old one"), Passphrase(b"new one"), Passphrase(b"another")
FILES = (USER_CA_FILE, HOST_CA_FILE)


class Torn(Exception):
    """The process was killed here."""


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes a private file with this in it."""

    def make(data: bytes) -> Path:
        path = tmp_path / "passphrase"
        path.write_bytes(data)
        path.chmod(0o600)
        return path

    return make


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """One guess need not cost half a second here."""
    monkeypatch.setattr("knot_keys.keyfiles.KDF_ROUNDS", 1)


@pytest.mark.parametrize(
    ("data", "secret"), [(b"a b\n", b"a b"), (b"x", b"x"), (b"x\r\n", b"x"), (b" x \n", b" x "), (b"\xff", b"\xff")]
)
def test_line_without_its_end(secret_file: Callable[[bytes], Path], data: bytes, secret: bytes) -> None:
    """The passphrase is the file's one line; white space that is not its end belongs to it."""
    assert Passphrase.read(secret_file(data)).secret == secret


@pytest.mark.parametrize("data", [b"", b"\n", b"\r\n", b"two\nlines\n", b"a\0b", b"x" * 1001])
def test_no_passphrase(secret_file: Callable[[bytes], Path], data: bytes) -> None:
    """An empty file, several lines, or a file given by mistake is refused by name."""
    path = secret_file(data)
    with pytest.raises(PassphraseRefused, match=str(path)):
        Passphrase.read(path)


def test_loose_passphrase(secret_file: Callable[[bytes], Path]) -> None:
    """A passphrase that others can read is refused, and so is one that is missing."""
    path = secret_file(b"x")
    path.chmod(0o640)
    with pytest.raises(LooseFile, match=f"chmod 600 {path}"):
        Passphrase.read(path)
    path.unlink()
    with pytest.raises(KnotError, match=f"cannot read {path}"):
        Passphrase.read(path)


def test_where_it_comes_from(secret_file: Callable[[bytes], Path], tmp_path: Path) -> None:
    """A named file beats the environment, which beats a credential; and it stays in the environment in no case."""
    (tmp_path / CREDENTIAL).write_bytes(b"credential\n")
    (tmp_path / CREDENTIAL).chmod(0o440)
    environment = {"KNOT_CA_PASSPHRASE": "said", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    given = [find_passphrase(secret_file(b"filed"), dict(environment)), find_passphrase(None, environment)]
    given.append(find_passphrase(None, environment))
    assert given == [Passphrase(b"filed"), Passphrase(b"said"), Passphrase(b"credential")]
    assert "KNOT_CA_PASSPHRASE" not in environment
    assert find_passphrase(None, {}) is None
    assert find_passphrase(None, {"CREDENTIALS_DIRECTORY": "/nonexistent"}) is None
    taken = {"KNOT_CA_PASSPHRASE": "said"}
    find_passphrase(secret_file(b"filed"), taken)
    assert taken == {}
    with pytest.raises(PassphraseRefused, match="KNOT_CA_PASSPHRASE: the passphrase is empty"):
        find_passphrase(None, {"KNOT_CA_PASSPHRASE": ""})


def test_shows_itself_nowhere(tmp_path: Path) -> None:
    """Neither it nor an authority that holds it shows it when printed."""
    assert "old" not in repr(OLD) + str(OLD) + f"{OLD!r}"
    made = Authority.create(tmp_path, OLD)
    assert "old one" not in repr(made)


def test_encrypted_file(tmp_path: Path) -> None:
    """What is written is encrypted such that ssh-keygen opens it with the passphrase, and with no other."""
    key = create_key(tmp_path / "key", "test", OLD)
    assert load_key(tmp_path / "key", OLD) == key
    command = ["ssh-keygen", "-y", "-f", str(tmp_path / "key"), "-P"]
    derived = subprocess.run([*command, "old one"], capture_output=True, text=True, check=True).stdout
    assert derived.split()[:2] == public_line(key).split()
    assert subprocess.run([*command, ""], capture_output=True, check=False).returncode != 0
    for wrong, said in ((None, "its passphrase is needed, from --ca-passphrase-file"), (OTHER, "is not that of")):
        with pytest.raises(PassphraseRefused, match=said) as caught:
            load_key(tmp_path / "key", wrong)
        assert str(tmp_path / "key") in str(caught.value)
        assert "another" not in str(caught.value)


def test_passphrase_that_is_not_needed(tmp_path: Path) -> None:
    """A key that is not encrypted is read whatever passphrase there is."""
    key = create_key(tmp_path / "key", "test")
    assert load_key(tmp_path / "key", OLD) == key


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("old", "new"), [(None, NEW), (OLD, NEW), (OLD, None)], ids=["first", "other", "none"])
def test_changed(tmp_path: Path, old: Passphrase | None, new: Passphrase | None) -> None:
    """Every CA's file is encrypted anew, those of a rotation under way included; the keys stay, and so do files of others."""
    made = Authority.create(tmp_path, old)
    coming = create_key(tmp_path / "user_ca.next", "next", old)
    (tmp_path / "store.db").write_bytes(b"store")
    changed = change_passphrase(tmp_path, old, new)
    assert [path.name for path in changed] == ["host_ca", "user_ca", "user_ca.next"]
    loaded = Authority.load(tmp_path, new)
    assert (loaded.user_ca, loaded.host_ca) == (made.user_ca, made.host_ca)
    assert loaded.users.keys.next == coming
    assert load_key(tmp_path / "user_ca.next", new) == coming
    assert not list(tmp_path.glob("*.recoded"))
    assert all(path.stat().st_mode & 0o77 == 0 for path in changed)
    if new:
        with pytest.raises(PassphraseRefused):
            Authority.load(tmp_path, old)


@pytest.mark.usefixtures("cheap")
def test_wrong_passphrase_changes_nothing(tmp_path: Path) -> None:
    """With a wrong passphrase every file stays as it is."""
    Authority.create(tmp_path, OLD)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for wrong in (None, OTHER):
        with pytest.raises(PassphraseRefused):
            change_passphrase(tmp_path, wrong, NEW)
        with pytest.raises(PassphraseRefused):
            change_passphrase(tmp_path, wrong, None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("old", "new"), [(None, NEW), (OLD, NEW), (OLD, None)], ids=["first", "other", "none"])
@pytest.mark.parametrize("steps", range(4))
def test_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: Passphrase | None, new: Passphrase | None, steps: int
) -> None:
    """Wherever a change was cut short, one of the two passphrases opens all CAs; made again, it comes to its end."""
    made = Authority.create(tmp_path, old)
    left = [steps]

    def step() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Torn

    replace, rename = replace_file, Path.replace

    def torn_replace(path: Path, data: bytes) -> None:
        step()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", rename)
            replace(path, data)

    def torn_rename(path: Path, target: Path) -> Path:
        step()
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(recoding, "replace_file", torn_replace)
        patch.setattr(Path, "replace", torn_rename)
        with pytest.raises(Torn):
            change_passphrase(tmp_path, old, new)
    opened = [one for one in (old, new) if opens(tmp_path, one)]
    assert opened
    if steps % 2:
        finish_change(tmp_path, opened[0])
        assert not list(tmp_path.glob("*.recoded"))
    for path in tmp_path.iterdir():
        assert path.suffix == ".pub" or not path.stat().st_mode & 0o77
    change_passphrase(tmp_path, old, new)
    assert Authority.load(tmp_path, new).ca_keys == made.ca_keys
    assert not list(tmp_path.glob("*.recoded"))


def opens(folder: Path, passphrase: Passphrase | None) -> bool:
    try:
        Authority.load(folder, passphrase)
    except PassphraseRefused:
        return False
    return True


def test_environment_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children inherit no passphrase."""
    monkeypatch.setenv("KNOT_CA_PASSPHRASE", "said")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert find_passphrase(None) == Passphrase(b"said")
    assert "KNOT_CA_PASSPHRASE" not in os.environ
