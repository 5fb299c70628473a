"""What is to be revoked, as people name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from knot_ssh.cli.revoke import _holder, _serial
from knot_ssh.errors import BadInput


def test_neither_a_serial_nor_a_file(tmp_path: Path) -> None:
    """What is no serial, and no file that is there, is said to be neither; a file with something else in it is named."""
    assert _serial("12345") == "12345"
    with pytest.raises(BadInput, match="neither a serial nor a file"):
        _serial("nonsense")
    file = tmp_path / "key.pub"
    file.write_text("ssh-ed25519 AAAA")
    with pytest.raises(BadInput, match="is not an OpenSSH certificate"):
        _serial(str(file))


@pytest.mark.parametrize(
    ("key_id", "shown"),
    [("agent/alice/eu/backend/0-1", "agent backend"), ("person/alice/eu,us/-/-", "person"), ("", "-")],
)
def test_whose_a_certificate_is(key_id: str, shown: str) -> None:
    """A key id in short; a key that is revoked has none."""
    assert _holder(key_id) == shown
