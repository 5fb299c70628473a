"""What is said of what ssh has been given."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

import pytest

from knot_keys.openssh.places import Places
from knot_keys.openssh.settingup import Wanted, set_up
from knot_keys.openssh.status import report, table
from knot_ssh import doors
from knot_ssh.errors import KnotError
from tests.support.saying_api import SayingApi


@pytest.fixture
def held(places: Places) -> Places:
    set_up(places, Wanted(doors.given(), None, None), lambda _lines: None)
    return places


@pytest.mark.parametrize(("later", "valid"), [(0, True), (3500, True), (3700, False), (-7200, False)])
def test_valid_or_not(held: Places, later: int, valid: bool) -> None:
    """A certificate that has run out, or has not begun, is shown as not valid."""
    found = report(held, time.time() + later)
    assert found["valid"] is valid
    assert ("(not valid now)" in table(found)) is not valid


def test_revocation_list_or_none(held: Places) -> None:
    """Whether there is a list of what is revoked is said."""
    assert report(held, 0)["krl"] == str(held.krl)
    held.krl.unlink()
    assert report(held, 0)["krl"] is None
    assert "no list" in table(report(held, 0))


def test_files_alone(held: Places, server: SayingApi) -> None:
    """No server is asked."""
    server.answers.clear()
    server.asked.clear()
    report(held, 0)
    assert server.asked == []


@pytest.mark.parametrize("text", [None, b"", b"\xff", b"ssh-ed25519 AAAA\n"])
def test_certificate_that_is_gone_or_damaged(held: Places, text: bytes | None) -> None:
    """A certificate that cannot be read is one line."""
    if text is None:
        held.certificate.unlink()
    else:
        held.certificate.write_bytes(text)
    with pytest.raises(KnotError):
        report(held, 0)


def test_home_that_ssh_reads(tmp_path: Path) -> None:
    """ssh reads the home folder of the passwd entry: told where that is another one than $HOME."""
    entry = Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert Places(tmp_path).unread_home == entry
    assert Places(entry).unread_home is None
