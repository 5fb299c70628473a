"""A file that changes is looked at soon, however it is changed; nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from knot_agent import filewatch
from knot_agent.filewatch import looks
from tests.support.waiting import becomes, until

NEVER = 1000.0
"""Seconds after which a file is looked at anyway, in tests of what the system tells."""
ANYIO = "AnyIO worker thread"


class Watched:
    """A file, what was read of it, and how often it was looked at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.looks = 0
        self.texts: list[str] = []

    async def follow(self) -> None:
        async with contextlib.aclosing(looks(self.path)) as moments:
            async for _ in moments:
                self.looks += 1
                with contextlib.suppress(FileNotFoundError):
                    self.texts.append(self.path.read_text())

    def write(self, text: str) -> None:
        self.path.write_text(text)

    def replace(self, text: str) -> None:
        """Put another file in its place."""
        draft = self.path.parent / "draft"
        draft.write_text(text)
        draft.rename(self.path)

    async def reads(self, text: str) -> None:
        await becomes(lambda: text in self.texts, what=f"{text!r} is read, not {self.texts}")


@asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Watched]:
    """The file being watched, from the moment when changes are seen."""
    made = Watched(path)
    task = asyncio.create_task(made.follow())
    try:
        for number in range(1000):  # until the watch is there
            (path.parent / "other").write_text(str(number))
            with contextlib.suppress(AssertionError):
                await becomes(lambda: made.looks, 0.3)
                break
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(params=["told by the system", "by polling"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How changes are found. Polling alone would miss two within a second."""
    if request.param == "by polling":
        monkeypatch.setenv("WATCHFILES_FORCE_POLLING", "1")
        monkeypatch.setenv("WATCHFILES_POLL_DELAY_MS", "30")
    else:
        monkeypatch.setattr(filewatch, "LOOK_AGAIN", NEVER)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "agent.yaml").write_text("before")
    return folder / "agent.yaml"


@pytest.mark.usefixtures("way")
async def test_renamed_into_place(path: Path) -> None:
    """A file that takes the place of the one before is seen, again and again."""
    async with watched(path) as file:
        for text in ("first", "second"):
            file.replace(text)
            await file.reads(text)


@pytest.mark.usefixtures("way")
async def test_written_in_pieces(path: Path) -> None:
    """A file that is cut to nothing and written in pieces is read at its end."""
    async with watched(path) as file:
        with path.open("w") as draft:
            for piece in ("one ", "two ", "three"):
                draft.write(piece)
                draft.flush()
        await file.reads("one two three")


@pytest.mark.usefixtures("way")
async def test_deleted_and_made_anew(path: Path) -> None:
    """A file that goes and comes is seen."""
    async with watched(path) as file:
        seen = file.looks
        os.unlink(path)
        await becomes(lambda: file.looks > seen, what="the deletion is seen")
        file.write("again")
        await file.reads("again")


async def test_swapped_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes does for a ConfigMap: the file is a link through a link, and the inner one is swapped."""
    monkeypatch.setattr(filewatch, "LOOK_AGAIN", NEVER)
    for version in ("..1", "..2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "agent.yaml").write_text(version)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "agent.yaml").symlink_to("..data/agent.yaml")
    async with watched(tmp_path / "agent.yaml") as file:
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / "..1")
        await file.reads("..2")


async def test_link_to_elsewhere(tmp_path: Path, path: Path) -> None:
    """What changes behind a link that leads to another folder is found by looking."""
    link = tmp_path / "own" / "agent.yaml"
    link.parent.mkdir()
    link.symlink_to(path)
    async with watched(link) as file:
        file.write("elsewhere")
        await file.reads("elsewhere")


async def test_folder_made_anew(path: Path) -> None:
    """A folder that goes, file and all, is watched again once it is back."""
    async with watched(path) as file:
        shutil.rmtree(path.parent)
        seen = file.looks
        await becomes(lambda: file.looks > seen + 1, what="it is looked for")
        path.parent.mkdir()
        file.write("back")
        await file.reads("back")
        file.replace("and watched")
        await file.reads("and watched")


async def test_no_watch_to_be_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no watch the file is looked at each second."""

    def refused(*_paths: object, **_options: object) -> object:
        raise OSError("too many open files")

    monkeypatch.setattr(filewatch, "awatch", refused)
    monkeypatch.setattr(filewatch, "LOOK_AGAIN", 0.05)
    async with watched(path) as file:
        file.write("found")
        await file.reads("found")


def test_nothing_is_left(path: Path) -> None:
    """Neither a thread nor a descriptor outlives the loop."""

    async def watch_a_while() -> None:
        async with watched(path):
            pass

    descriptors = len(os.listdir("/proc/self/fd"))
    asyncio.run(watch_a_while())
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == ANYIO], what="its thread has ended")
    until(lambda: len(os.listdir("/proc/self/fd")) == descriptors, what="its descriptors are closed")
