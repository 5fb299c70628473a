"""The marked lines in `~/.ssh/config`: first, found again, and gone without a trace."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from knot_keys.openssh import userconfig
from knot_keys.openssh.userconfig import BEGIN, END, DamagedBlock, block, with_block, without_block
from knot_ssh.errors import BadInput, KnotError

LINES = block(Path("/home/alice/.ssh/knot/ssh_config"))
OTHER = block(Path("/elsewhere/.ssh/knot/ssh_config"))
PIECES = st.sampled_from(
    [BEGIN, END, BEGIN + b"\n", END + b"\n", END + b"\r\n", b"Include x\n", b"Host a\n", b"\r\n", b"\n", LINES]
)
FILES = st.one_of(st.binary(max_size=200), st.lists(st.one_of(PIECES, st.binary(max_size=5)), max_size=8).map(b"".join))


@given(FILES)
@example(b"\xef\xbb\xbfHost a\r\n\tPort 1")
@example(b"\r")
@example(b"\0\xff")
def test_setup_then_remove_is_the_identity(text: bytes) -> None:
    """Whatever a file holds, setup and then remove give it back byte for byte, or refuse it as damaged."""
    try:
        bare = without_block(text)
    except DamagedBlock:
        with pytest.raises(DamagedBlock):
            with_block(text, LINES)
        return
    assert without_block(with_block(text, LINES)) == bare
    assert (bare == text) == (BEGIN not in [line.strip() for line in text.split(b"\n")])


@given(FILES)
def test_setup_again_updates_in_place(text: bytes) -> None:
    """A second setup replaces the lines where they stand, and the same lines change nothing."""
    try:
        first = with_block(text, LINES)
    except DamagedBlock:
        return
    assert with_block(first, LINES) == first
    assert with_block(with_block(first, OTHER), LINES) == first


@given(st.binary(max_size=100))
def test_lines_stand_first(text: bytes) -> None:
    """The Include goes before everything else, or it would belong to the block above it."""
    if BEGIN not in text and END not in text:
        assert with_block(text, LINES) == LINES + text


def test_one_include(tmp_path: Path) -> None:
    """The block is one quoted Include for all hosts, between two comments."""
    begin, match, include, end, rest = block(tmp_path / "a b" / "ssh_config").decode().split("\n")
    assert (begin[0], end[0], rest) == ("#", "#", "")
    assert match == "Match all"
    assert include == f'Include "{tmp_path}/a b/ssh_config"'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"Host a\n" + BEGIN + b"\nMatch all\nInclude x\n", 2),
        (b"\n\n" + END + b"\n", 3),
        (BEGIN + b"\n" + BEGIN + b"\n" + END, 2),
        (LINES + b"Host a\n" + LINES, 6),
        (LINES + END, 5),
        (BEGIN + b"\nMatch all\nInclude x\nHost mine\n" + END + b"\n", 4),
        (BEGIN + b"\nMatch all\nInclude x\nInclude mine\n" + END + b"\n", 4),
        (BEGIN + b"\nInclude x\n" + END + b"\n", 2),
    ],
    ids=[
        "no end",
        "no beginning",
        "two beginnings",
        "two blocks",
        "two ends",
        "somebody's line inside",
        "somebody's Include",
        "one line missing",
    ],
)
def test_damaged_lines_are_refused_with_their_number(text: bytes, line: int) -> None:
    """Marks that do not fit are nothing to guess about: the error names the line, and nothing is changed."""
    for change in (without_block, lambda text: with_block(text, LINES)):
        with pytest.raises(DamagedBlock, match=rf"~/.ssh/config, line {line}: "):
            change(text)


def test_paths_that_ssh_would_misread_are_refused() -> None:
    """An Include is a pattern: a folder named like one is refused before anything is written."""
    with pytest.raises(BadInput, match=r"has '\*' in it"):
        block(Path("/home/*/.ssh/knot/ssh_config"))


def test_missing_file_is_made_private(tmp_path: Path) -> None:
    """A config that was not there is 0600."""
    path = tmp_path / "config"
    assert userconfig.read(path) is None
    userconfig.write(path, LINES)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert userconfig.read(path) == LINES


def test_link_is_followed_and_mode_stays(tmp_path: Path) -> None:
    """Dotfiles that are linked stay links; the file behind keeps its mode."""
    (tmp_path / "dotfiles").mkdir()
    target, path = tmp_path / "dotfiles" / "ssh", tmp_path / "config"
    target.write_bytes(b"Host a\n")
    target.chmod(0o640)
    path.symlink_to("dotfiles/ssh")
    userconfig.write(path, LINES)
    assert path.is_symlink()
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (LINES, 0o640)
    assert sorted(os.listdir(target.parent)) == ["ssh"]


def test_link_to_nothing_yet(tmp_path: Path) -> None:
    """A link whose file is missing gets its file; the link stays."""
    path = tmp_path / "config"
    path.symlink_to(tmp_path / "missing")
    assert userconfig.read(path) is None
    userconfig.write(path, LINES)
    assert path.is_symlink()
    assert (tmp_path / "missing").read_bytes() == LINES


@pytest.mark.parametrize("target", ["/dev/null", "/"])
def test_what_is_no_file_is_left_alone(tmp_path: Path, target: str) -> None:
    """A config that is linked to a device or a folder is refused."""
    path = tmp_path / "config"
    path.symlink_to(target)
    with pytest.raises(KnotError, match="not a regular file"):
        userconfig.read(path)
