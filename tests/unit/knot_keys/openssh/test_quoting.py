"""Paths in OpenSSH's configuration: what is let through means the same to every reader, by the word of ssh itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from knot_keys.openssh.quoting import UNFIT, encoded, quoted, quoted_command
from knot_ssh.errors import BadInput

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
FIT = [
    "plain",
    "a b",
    "a  b",
    "a#b",
    "# a",
    "a~b",
    "~root",
    "a!b",
    "a;b&c|d",
    "(a)",
    "<a>",
    "a=b,c",
    "é",
    "`id`",
    "a{b}c",
    "-x",
    "^a",
]


@pytest.mark.parametrize("char", [*sorted(UNFIT), "\n", "\r", "\t", "\0", "\x7f"])
def test_unfit_characters_are_refused(char: str) -> None:
    """A character that some reader of a path takes for more than itself is refused, in paths and in commands."""
    with pytest.raises(BadInput, match="which OpenSSH's configuration cannot hold"):
        quoted(Path(f"/home/a{char}b"))
    with pytest.raises(BadInput):
        quoted_command(["/bin/true", f"a{char}b"])


def test_error_is_one_printable_line() -> None:
    """What is wrong with the path is said without letting it speak to the terminal."""
    with pytest.raises(BadInput) as caught:
        quoted(Path("/a\x1b[31m\nb"))
    assert str(caught.value).isprintable()


@needs_ssh
@pytest.mark.parametrize("name", FIT)
def test_fit_paths_mean_themselves(tmp_path: Path, name: str) -> None:
    """Include, the file settings and Match exec all take the path as it is."""
    folder = tmp_path / name
    folder.mkdir()
    program = folder / "run"
    program.write_text('#!/bin/sh\nprintf \'%s\' "$1" > "$0.ran"\n')
    program.chmod(0o755)
    (folder / "included").write_text("User found\n")
    settings = ["IdentityFile", "CertificateFile", "UserKnownHostsFile", "RevokedHostKeys"]
    lines = [f"Match exec {quoted_command([str(program), name])}", "Match all", f"Include {quoted(folder / 'included')}"]
    config = tmp_path / "config"
    config.write_bytes(encoded("\n".join([*lines, *(f"{setting} {quoted(folder / setting)}" for setting in settings), ""])))
    said = subprocess.run(["ssh", "-F", str(config), "-G", "host"], capture_output=True, check=True, timeout=20).stdout.decode()
    assert "user found\n" in said
    for setting in settings:
        assert f"{setting.lower()} {folder / setting}\n" in said
    assert Path(f"{program}.ran").read_text() == name
