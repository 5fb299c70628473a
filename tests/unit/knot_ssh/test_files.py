"""Files with secrets are private from the first instant, and whole or not there."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from knot_ssh.errors import KnotError, LooseFile, Unavailable
from knot_ssh.files import (
    WRITABLE_BITS,
    check_folder,
    check_private_file,
    create_private_file,
    locked,
    make_private_folder,
    read_secret,
    replace_contents,
    replace_file,
)
from tests.support.noroom import no_room

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def mode(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("loose_umask")
def test_created_private(tmp_path: Path) -> None:
    """A new secret file is 0600 under any umask."""
    create_private_file(tmp_path / "secret", b"x")
    assert mode(tmp_path / "secret") == 0o600


@pytest.mark.parametrize("write", [create_private_file, replace_file])
def test_written_under_a_strict_umask(tmp_path: Path, write: Callable[[Path, bytes], None]) -> None:
    """A umask that takes everything away leaves the file readable for its owner, and so is the lock beside it."""
    before = os.umask(0o777)
    try:
        write(tmp_path / "secret", b"x")
        with locked(tmp_path / "lock", 1):
            pass
    finally:
        os.umask(before)
    assert (mode(tmp_path / "secret"), mode(tmp_path / "lock")) == (0o600, 0o600)


def test_created_once(tmp_path: Path) -> None:
    """A file that exists is never written over."""
    path = tmp_path / "secret"
    create_private_file(path, b"first")
    with pytest.raises(FileExistsError):
        create_private_file(path, b"second")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"first", [path])


def test_created_with_nothing_beside_it(tmp_path: Path) -> None:
    """A new file is the one name of its contents: no draft stays behind, not even as a second name."""
    path = tmp_path / "secret"
    create_private_file(path, b"x")
    assert (list(tmp_path.iterdir()), path.stat().st_nlink) == ([path], 1)


def test_file_in_the_way_is_named(tmp_path: Path) -> None:
    """The error names the file that is in the way, and no other."""
    path = tmp_path / "secret"
    path.write_bytes(b"first")
    with pytest.raises(FileExistsError) as caught:
        create_private_file(path, b"second")
    assert Path(caught.value.filename) == path


def test_one_of_many_creates_it(tmp_path: Path) -> None:
    """Of many who create a file at the same time one succeeds, and its contents are whole."""
    path, start = tmp_path / "secret", threading.Barrier(8)

    def create(number: int) -> bool:
        start.wait()
        try:
            create_private_file(path, bytes([number]) * 10_000)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    assert made.count(True) == 1
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (bytes([made.index(True)]) * 10_000, [path])


def test_not_created_through_a_link(tmp_path: Path) -> None:
    """A symbolic link that somebody put there is not followed."""
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        create_private_file(tmp_path / "secret", b"x")
    assert not (tmp_path / "elsewhere").exists()


def test_not_created_on_a_full_disk(tmp_path: Path) -> None:
    """Where there is no room, no half-written file stays behind."""
    with no_room(), pytest.raises(OSError, match="too large"):
        create_private_file(tmp_path / "secret", b"much more than there is room for")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("loose_umask")
def test_replaced_private(tmp_path: Path) -> None:
    """A replaced file has the new contents, is 0600 whatever it was before, and leaves nothing beside it."""
    path = tmp_path / "state"
    path.write_bytes(b"old")
    replace_file(path, b"new")
    assert (path.read_bytes(), mode(path), list(tmp_path.iterdir())) == (b"new", 0o600, [path])


def test_replaced_where_nothing_was(tmp_path: Path) -> None:
    """There need be no file to replace."""
    replace_file(tmp_path / "state", b"new")
    assert (tmp_path / "state").read_bytes() == b"new"


def test_not_replaced_on_a_full_disk(tmp_path: Path) -> None:
    """Where there is no room, the old contents stay, and nothing beside them."""
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with no_room(), pytest.raises(OSError, match="too large"):
        replace_file(path, b"much more than there is room for")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])


def test_not_replaced_where_a_folder_is(tmp_path: Path) -> None:
    """When the last step fails, no draft stays behind."""
    (tmp_path / "state").mkdir()
    with pytest.raises(OSError, match="director"):
        replace_file(tmp_path / "state", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_reader_sees_old_or_new(tmp_path: Path) -> None:
    """Who has the file open while it is replaced reads the old contents to the end."""
    path = tmp_path / "state"
    replace_file(path, b"old")
    with path.open("rb") as file:
        replace_file(path, b"newer")
        assert file.read() == b"old"


@pytest.mark.usefixtures("loose_umask")
def test_folder_made_private(tmp_path: Path) -> None:
    """A new data folder is 0700 under any umask."""
    make_private_folder(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o700


@pytest.mark.usefixtures("loose_umask")
def test_parents_made_private(tmp_path: Path) -> None:
    """Folders made on the way to it are writable by nobody else, who could put another folder in its place."""
    make_private_folder(tmp_path / "share" / "knot" / "data")
    assert not any(mode(path) & 0o022 for path in (tmp_path / "share", tmp_path / "share" / "knot"))


def test_folder_made_under_a_strict_umask(tmp_path: Path) -> None:
    """A umask that takes everything away leaves the folder usable."""
    before = os.umask(0o777)
    try:
        make_private_folder(tmp_path / "data")
    finally:
        os.umask(before)
    assert mode(tmp_path / "data") == 0o700


def test_folder_that_exists_stays(tmp_path: Path) -> None:
    """A folder that is there keeps its permissions: somebody chose them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o750)
    make_private_folder(tmp_path / "data")
    assert mode(tmp_path / "data") == 0o750


def test_secret_read(tmp_path: Path) -> None:
    """A private file is read whole."""
    create_private_file(tmp_path / "secret", b"\0x\n")
    assert read_secret(tmp_path / "secret") == b"\0x\n"


@pytest.mark.parametrize("bits", [0o604, 0o640, 0o602, 0o620, 0o644, 0o666, 0o610, 0o601])
def test_loose_secret_refused(tmp_path: Path, bits: int) -> None:
    """A secret that anybody else could read or change is refused, with the command that mends it."""
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(bits)
    with pytest.raises(LooseFile, match=f"chmod 600 {path}"):
        read_secret(path)


@needs_root
def test_foreign_secret_refused(tmp_path: Path) -> None:
    """A secret that another user owns is refused."""
    create_private_file(tmp_path / "secret", b"x")
    os.chown(tmp_path / "secret", 54321, -1)
    with pytest.raises(LooseFile, match="uid 54321"):
        read_secret(tmp_path / "secret")


def test_missing_secret_is_named(tmp_path: Path) -> None:
    """A missing file is an error with its path."""
    with pytest.raises(KnotError, match=f"cannot read {tmp_path / 'secret'}: No such file"):
        read_secret(tmp_path / "secret")


def test_folder_is_no_secret(tmp_path: Path) -> None:
    """A folder in the place of a file is an error with its path."""
    make_private_folder(tmp_path / "secret")
    with pytest.raises(KnotError, match=str(tmp_path / "secret")):
        read_secret(tmp_path / "secret")


@pytest.mark.parametrize("bits", [0o600, 0o644, 0o400, 0o660])
def test_contents_alone_are_replaced(tmp_path: Path, bits: int) -> None:
    """Somebody's own file keeps its mode when its contents change."""
    path = tmp_path / "config"
    path.write_bytes(b"old")
    path.chmod(bits)
    replace_contents(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", bits)


@needs_root
def test_contents_are_replaced_for_their_owner(tmp_path: Path) -> None:
    """Owner and group stay, too."""
    path = tmp_path / "config"
    path.write_bytes(b"old")
    os.chown(path, 12345, 23456)
    replace_contents(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


@needs_root
def test_owner_that_cannot_be_kept() -> None:
    """Where the owner cannot be kept, nothing is changed, and no draft is left."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # that another user can reach
        path = Path(folder, "config")
        path.write_bytes(b"old")
        path.chmod(0o644)
        path.parent.chmod(0o777)
        os.seteuid(12345)
        try:
            with pytest.raises(KnotError, match="nothing was changed"):
                replace_contents(path, b"new")
        finally:
            os.seteuid(0)
        assert (path.read_bytes(), os.listdir(folder)) == (b"old", ["config"])


def test_lock_is_waited_for(tmp_path: Path) -> None:
    """Who comes second waits until the first is through."""
    order = []

    def second() -> None:
        with locked(tmp_path / "lock", 10):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "lock", 0):
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert mode(tmp_path / "lock") == 0o600


def test_lock_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    """When the first takes too long, the second is told so; afterwards the lock is free."""
    with locked(tmp_path / "lock", 0), pytest.raises(Unavailable, match="try again"), locked(tmp_path / "lock", 0.05):
        raise AssertionError("both have it")
    with locked(tmp_path / "lock", 0):
        pass


def test_link_in_the_place_of_a_secret(tmp_path: Path) -> None:
    """A symbolic link where a secret should be is refused, unless an operator has named the file."""
    create_private_file(tmp_path / "elsewhere", b"x")
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    for read in (read_secret, check_private_file):
        with pytest.raises(LooseFile, match="symbolic link"):
            read(tmp_path / "secret")
    assert read_secret(tmp_path / "secret", follow=True) == b"x"


def test_credential_of_systemd(tmp_path: Path) -> None:
    """What an access list shows as the group's permission to read is taken where it is expected, and nothing else."""
    path = tmp_path / "credential"
    create_private_file(path, b"x")
    path.chmod(0o440)
    assert read_secret(path, group_may_read=True) == b"x"
    for bits in (0o444, 0o460, 0o441):
        path.chmod(bits)
        with pytest.raises(LooseFile):
            read_secret(path, group_may_read=True)


@pytest.mark.parametrize("bits", [0o770, 0o777, 0o720, 0o702, 0o1777])
def test_folder_that_others_can_write_into(tmp_path: Path, bits: int) -> None:
    """A folder in which others could put files of their own is refused, with the command that mends it."""
    tmp_path.chmod(bits)
    with pytest.raises(LooseFile, match=f"chmod go-w {tmp_path}"):
        check_folder(tmp_path)
    tmp_path.chmod(0o755)
    check_folder(tmp_path)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """What is not there yet is no reason to refuse."""
    check_private_file(tmp_path / "missing")


@pytest.mark.parametrize(("bits", "said"), [(0o622, "written by others"), (0o602, "written by others")])
def test_file_that_others_can_write(tmp_path: Path, bits: int, said: str) -> None:
    """A file that holds no secret may be read by others, not written."""
    path = tmp_path / "memory"
    path.write_bytes(b"")
    path.chmod(0o644)
    check_private_file(path, WRITABLE_BITS)
    path.chmod(bits)
    with pytest.raises(LooseFile, match=said):
        check_private_file(path, WRITABLE_BITS)
