"""Forwards of the settings file: what the file says, what the hub says of it, and what stands because of both."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from structlog.testing import capture_logs

from knot_agent import filed as module
from knot_agent.filed import FiledForwards
from knot_agent.forwards import Filed, Forwards
from knot_agent.memory import Memory
from knot_agent.settingsfile import SettingsFile
from knot_ssh.errors import KnotError, NotFound, OtherZone, Unavailable
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import ForwardStatus, Target
from tests.support.waiting import becomes

OWN = SpaceId.new()
WEB = "  - {local_port: 8080, space: web, remote_port: 3000}\n"
DATA = "  - {local_port: 5432, space: data, remote_port: 5432}\n"
UNKNOWN = "there is no space 'web' of yours in this zone"
NOT_SAID = "the server has not said yet which space that is"


def target(name: str, *, space_id: SpaceId | None = None, gone: bool = False, addresses: Sequence[str] = ()) -> Target:
    return Target(
        id=space_id or SpaceId.new(),
        name=SpaceName(name),
        owner=Owner("alice"),
        zone=Zone("eu"),
        addresses=list(addresses),
        running=True,
        gone=gone,
    )


class FakeForwards:
    """Notes what it is to hold."""

    def __init__(self) -> None:
        self.held: list[Filed] = []
        self.history: list[list[int]] = []
        self.unresolved: dict[Port, ForwardStatus] = {}
        self.file_error: str | None = None

    async def set_filed(self, wanted: Sequence[Filed], unresolved: Sequence[ForwardStatus] = ()) -> None:
        self.held = list(wanted)
        self.unresolved = {status.local_port: status for status in unresolved}
        self.history.append(self.ports)

    @property
    def calls(self) -> int:
        return len(self.history)

    @property
    def ports(self) -> list[int]:
        return [int(each.order.local_port) for each in self.held]

    @property
    def waiting(self) -> list[tuple[int, str, str | None]]:
        return [(int(status.local_port), status.state, status.reason) for status in self.unresolved.values()]


class FakeHub:
    """Knows spaces by name, or is away; notes what it is asked."""

    def __init__(self) -> None:
        self.spaces: dict[str, Target] = {}
        self.error: Exception | None = None
        self.asked: list[str] = []

    def add(self, name: str) -> Target:
        self.spaces[name] = target(name)
        return self.spaces[name]

    async def locate(self, name: str) -> Target:
        self.asked.append(name)
        await asyncio.sleep(0)
        if self.error:
            raise self.error
        found = self.spaces.get(name) or next((space for space in self.spaces.values() if space.id == name), None)
        if found is None:
            raise NotFound
        return found


class Scene:
    """A file, a hub, a memory, and what is to stand."""

    def __init__(self, folder: Path, text: str, hub: FakeHub) -> None:
        self.path = folder / "agent.yaml"
        self.path.write_text(text)
        self.hub = hub
        self.forwards = FakeForwards()
        self.memory = Memory(folder, OWN)
        file = SettingsFile.open(self.path)
        self.filed = FiledForwards(file, OWN, cast("Forwards", self.forwards), self.memory, hub.locate)

    def write(self, text: str) -> None:
        draft = self.path.with_suffix(".new")
        draft.write_text(text)
        draft.rename(self.path)

    async def holds(self, *ports: int) -> None:
        await becomes(lambda: self.forwards.ports == list(ports), what=f"{ports} are held, not {self.forwards.ports}")

    async def says(self, words: str) -> None:
        await becomes(lambda: words in (self.forwards.file_error or ""), what=f"{words}, not {self.forwards.file_error}")

    async def is_good(self) -> None:
        await becomes(lambda: self.forwards.file_error is None, what="the file is good")


@asynccontextmanager
async def scene(folder: Path, text: str, *names: str, error: Exception | None = None) -> AsyncIterator[Scene]:
    """One that is started, with a hub that knows these spaces."""
    hub = FakeHub()
    hub.error = error
    for name in names:
        hub.add(name)
    made = Scene(folder, text, hub)
    await made.filed.start()
    try:
        yield made
    finally:
        await made.filed.close()
        assert len(asyncio.all_tasks()) == 1


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_WAIT", 0.05)


def forwards(*lines: str) -> str:
    return "forwards:\n" + "".join(lines) if lines else "forwards: []\n"


AWAY = Unavailable("away")


# What the names mean


async def test_names_become_targets(tmp_path: Path) -> None:
    """Each name is asked once, however many forwards have it, and then they stand."""
    many = [f"  - {{local_port: {port}, space: {'web' if port % 2 else 'data'}, remote_port: 1}}\n" for port in range(1, 101)]
    async with scene(tmp_path, forwards(*many), "web", "data") as stage:
        await stage.holds(*range(1, 101))
        assert sorted(stage.hub.asked) == ["data", "web"]
        assert stage.forwards.waiting == []
        first = stage.forwards.held[0]
        assert (first.order.target, first.order.persistent, first.bind) == (stage.hub.spaces["web"], False, "127.0.0.1")


async def test_address_to_bind(tmp_path: Path) -> None:
    """The address to bind goes with the forward."""
    text = "allow_remote_bind: true\n" + forwards("  - {local_port: 80, space: web, remote_port: 3000, bind: '::1'}\n")
    async with scene(tmp_path, text, "web") as stage:
        await stage.holds(80)
        assert stage.forwards.held[0].bind == "::1"


async def test_hub_away(tmp_path: Path) -> None:
    """Without the hub a forward waits, and stands as soon as the hub is back."""
    async with scene(tmp_path, forwards(WEB), "web", error=AWAY) as stage:
        await becomes(lambda: stage.hub.asked)
        assert stage.forwards.waiting == [(8080, "waiting", NOT_SAID)]
        [shown] = stage.forwards.unresolved.values()
        assert (shown.origin, shown.space, shown.space_id, shown.persistent) == ("file", "web", None, False)
        stage.hub.error = None
        stage.filed.ask_again()
        await stage.holds(8080)
        assert stage.forwards.waiting == []


@pytest.mark.parametrize("error", [NotFound("no"), OtherZone("no")])
async def test_unknown_space(tmp_path: Path, error: KnotError) -> None:
    """A space that the hub does not know fails its forwards alone, is said once, and is asked for until it is there."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB, DATA), "data") as stage:
            await stage.holds(5432)
            assert stage.forwards.waiting == [(8080, "failed", UNKNOWN)]
            await becomes(lambda: stage.hub.asked.count("web") > 3)
            assert stage.hub.asked.count("data") == 1
            stage.hub.add("web")
            await stage.holds(8080, 5432)
            assert stage.forwards.waiting == []
            asked = len(stage.hub.asked)
            stage.filed.ask_again()
            await becomes(lambda: len(stage.hub.asked) == asked + 2)
    assert [line["reason"] for line in logs if "failed" in line["event"]] == [UNKNOWN]


async def test_unforeseen_error(tmp_path: Path) -> None:
    """What nobody foresaw is logged and tried again."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB), "web", error=RuntimeError("bug")) as stage:
            await becomes(lambda: len(stage.hub.asked) > 2)
            stage.hub.error = None
            await stage.holds(8080)
    assert any("unforeseen" in line["event"] for line in logs)


async def test_own_space(tmp_path: Path) -> None:
    """A space does not forward to itself."""
    async with scene(tmp_path, forwards(WEB), error=AWAY) as stage:
        stage.hub.spaces["web"] = target("web", space_id=OWN)
        stage.hub.error = None
        reason = "a space cannot forward to itself: use port 3000 directly"
        await becomes(lambda: stage.forwards.waiting == [(8080, "failed", reason)])
        assert stage.forwards.held == []


async def test_recreated_space_is_followed(tmp_path: Path) -> None:
    """The file holds names: when the hub is back, another space of the same name is what is meant."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await stage.holds(8080)
        again = stage.hub.add("web")
        stage.filed.ask_again()
        await becomes(lambda: stage.forwards.held[0].order.target == again)


async def test_renamed_target(tmp_path: Path) -> None:
    """A space that has another name now is still what is meant, also after a restart, until another has the old name."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB), "web") as stage:
            await stage.holds(8080)
            before = stage.hub.spaces.pop("web")
            stage.hub.spaces["shop"] = before.model_copy(update={"name": SpaceName("shop")})
            stage.filed.heard(stage.hub.spaces["shop"])
            await becomes(lambda: stage.hub.asked == ["web", "web", before.id])
            await becomes(lambda: stage.forwards.held[0].order.target.name == "shop")
            assert (stage.forwards.ports, stage.forwards.waiting) == ([8080], [])
            other = stage.hub.add("web")
            stage.filed.ask_again()
            await becomes(lambda: stage.forwards.held[0].order.target == other)
    assert [entry["now"] for entry in logs if "old name" in entry["event"]] == ["shop"]


@pytest.mark.parametrize("news", [{"gone": True}, None])
async def test_news_of_a_target(tmp_path: Path, news: dict[str, object] | None) -> None:
    """A space that is deleted is not what is meant; one made in its place is."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await stage.holds(8080)
        before = stage.hub.spaces.pop("web")
        if news:
            stage.filed.heard(before.model_copy(update=news))
        else:
            stage.filed.missed(before.id)
        await stage.holds()
        assert stage.forwards.waiting == [(8080, "failed", UNKNOWN)]
        stage.hub.add("web")
        await stage.holds(8080)


async def test_other_news(tmp_path: Path) -> None:
    """That a target comes or goes, or that another space does anything, is no reason to ask."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await stage.holds(8080)
        stage.filed.heard(stage.hub.spaces["web"].model_copy(update={"running": False}))
        stage.filed.heard(target("other", gone=True))
        stage.filed.missed(SpaceId.new())
        stage.write(forwards(WEB, DATA))
        stage.hub.add("data")
        await stage.holds(8080, 5432)
        assert stage.hub.asked.count("web") == 1


async def test_named_by_id(tmp_path: Path) -> None:
    """An entry may name a space by its id, and keeps to it whatever the name."""
    identity = SpaceId.new()
    async with scene(tmp_path, forwards(WEB.replace("web", identity)), error=AWAY) as stage:
        stage.hub.spaces[identity] = target("web", space_id=identity)
        stage.hub.error = None
        await stage.holds(8080)
        asked = len(stage.hub.asked)
        stage.filed.heard(target("renamed", space_id=identity))
        stage.write(forwards())
        await stage.holds()
        assert len(stage.hub.asked) == asked


async def test_asked_while_asking(tmp_path: Path) -> None:
    """What is doubted while the hub is being asked is asked again."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await becomes(lambda: stage.hub.asked)
        stage.filed.ask_again()
        await becomes(lambda: len(stage.hub.asked) == 2)
        await stage.holds(8080)


# What is remembered


async def test_start_without_the_hub(tmp_path: Path) -> None:
    """Targets that were known before are used at once, at the addresses where they were last."""
    async with scene(tmp_path, forwards(WEB), error=AWAY) as stage:
        stage.hub.spaces["web"] = target("web", addresses=["10.0.0.7:2022"])
        stage.hub.error = None
        await stage.holds(8080)
        moved = stage.hub.spaces["web"].model_copy(update={"addresses": ["10.0.0.8:2022"]})
        stage.memory.keep_target(moved)
    async with scene(tmp_path, forwards(WEB, DATA), error=AWAY) as stage:
        await stage.holds(8080)
        assert stage.forwards.held[0].order.target == moved
        assert stage.forwards.waiting == [(5432, "waiting", NOT_SAID)]


async def test_known_addresses_stay(tmp_path: Path) -> None:
    """A target that is away when the hub is asked is remembered with the addresses it had."""
    async with scene(tmp_path, forwards(WEB), error=AWAY) as stage:
        known = stage.hub.spaces["web"] = target("web", addresses=["10.0.0.7:2022"])
        stage.hub.error = None
        await stage.holds(8080)
        stage.hub.spaces["web"] = known.model_copy(update={"addresses": [], "running": False})
        stage.filed.ask_again()
        await becomes(lambda: not stage.memory.filed_targets["web"].running)
        assert stage.memory.filed_targets["web"].addresses == ["10.0.0.7:2022"]


async def test_forgotten_with_its_entry(tmp_path: Path) -> None:
    """What the file does not name any more is not remembered."""
    async with scene(tmp_path, forwards(WEB, DATA), "web", "data") as stage:
        await stage.holds(8080, 5432)
        assert stage.memory.filed_targets.keys() == {"web", "data"}
        stage.write(forwards(DATA))
        await stage.holds(5432)
        assert stage.memory.filed_targets.keys() == {"data"}
        assert [entry.space for entry in stage.memory.filed] == ["data"]


async def test_no_file(tmp_path: Path) -> None:
    """An agent that is started without a file has no forwards of one, and forgets those it had."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await stage.holds(8080)
    none = FiledForwards(None, OWN, cast("Forwards", FakeForwards()), stage.memory, stage.hub.locate)
    await none.start()
    none.ask_again()
    none.heard(target("web"))
    await none.close()
    assert (stage.memory.filed, stage.memory.filed_targets) == ([], {})


# What the file says


async def test_edits(tmp_path: Path) -> None:
    """Each content that is good takes the place of the one before, without a question for what is known."""
    async with scene(tmp_path, forwards(WEB), "web", "data") as stage:
        await stage.holds(8080)
        stage.write(forwards(DATA, WEB))
        await stage.holds(5432, 8080)
        stage.write(forwards())
        await stage.holds()
        stage.write("connect_timeout: 10\n" + forwards(WEB))
        await stage.holds(8080)
        assert sorted(stage.hub.asked) == ["data", "web", "web"]  # what it had forgotten it asks for


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "wrong entry": (forwards(WEB, "  - {local_port: 0, space: web, remote_port: 1}\n"), ":3: forwards.1.local_port: must be"),
    "twice": (forwards(WEB, WEB), ":3: local port 8080 stands on line 2 already"),
    "wrong setting": ("listen: nonsense\n" + forwards(WEB), ":1: listen: "),
    "unknown key": (forwards(WEB) + "surprise: 1\n", ":3: surprise: is not known here"),
    "cut off": ("forwards:\n  - {local_port: 80", ":2: "),
    "nothing": ("", ":1: the file is empty; write `forwards: []` to have none"),
    "a remark": ("# forwards:\n", ":1: the file is empty; write `forwards: []` to have none"),
    "no value": ("forwards:\n", ":1: forwards: must be a list"),
    "NULs": (b"\0" * 100, ":1: a character that YAML does not allow"),
    "not text": (b"forwards: []\n\xff\xfe", ":2: it is not UTF-8"),
    "open to all": (forwards(WEB.replace("3000", "3000, bind: 0.0.0.0")), ":2: 0.0.0.0 needs `allow_remote_bind: true`"),
}


async def test_pipe(tmp_path: Path) -> None:
    """What comes by a pipe is read once, and holds."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = asyncio.create_task(asyncio.to_thread(path.write_text, forwards(WEB)))
    file = await asyncio.to_thread(SettingsFile.open, path)
    await writing
    assert file.understand(file.look()).forwards == file.understand(file.look()).forwards
    hub, held = FakeHub(), FakeForwards()
    hub.add("web")
    filed = FiledForwards(file, OWN, cast("Forwards", held), Memory(tmp_path, OWN), hub.locate)
    await filed.start()
    await becomes(lambda: held.ports == [8080])
    await filed.close()


async def test_remote_bind_withdrawn(tmp_path: Path) -> None:
    """Without the word that allows it nothing stays bound where others reach it, now and after a restart; the rest stays."""
    text = forwards(WEB, DATA.replace("}", ", bind: 0.0.0.0}"))
    async with scene(tmp_path, "allow_remote_bind: true\n" + text, "web", "data") as stage:
        await stage.holds(8080, 5432)
        stage.write(text)
        await stage.says(":3: 0.0.0.0 needs `allow_remote_bind: true`")
        await stage.holds(8080)
        assert [entry.local_port for entry in Memory(tmp_path, OWN).filed] == [8080]
        stage.write("allow_remote_bind: true\n" + text)
        await stage.holds(8080, 5432)


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN.keys())
async def test_broken_file(tmp_path: Path, content: str | bytes, words: str) -> None:
    """A file that is broken leaves what stands, is logged once and shown with its line, until it is good again."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB), "web") as stage:
            await stage.holds(8080)
            calls = stage.forwards.calls
            stage.path.write_bytes(content if isinstance(content, bytes) else content.encode())
            await stage.says(words)
            assert stage.forwards.file_error
            assert stage.forwards.file_error.startswith(f"{stage.path}{words}")
            (tmp_path / "other").write_text("")
            assert (stage.forwards.ports, stage.forwards.calls) == ([8080], calls)
            assert [entry.space for entry in stage.memory.filed] == ["web"]
            stage.write(forwards(WEB))
            await stage.is_good()
            assert stage.forwards.ports == [8080]
    assert len([line for line in logs if line["event"] == "forwards of the file stay as they were"]) == 1


async def test_file_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there while the file is being written is not taken for what it says, though it may make sense."""
    async with scene(tmp_path, forwards(WEB), "web", "data") as stage:
        await stage.holds(8080)
        calls = stage.forwards.calls
        pieces = [forwards(), forwards(DATA), forwards(DATA, WEB)]
        read = iter(pieces)
        monkeypatch.setattr(SettingsFile, "look", lambda _file: next(read, pieces[-1]).encode())
        await becomes(lambda: stage.forwards.calls > calls)
        assert stage.forwards.history[calls:][0] == [8080]  # the other's name is not known yet
        await stage.holds(5432, 8080)


async def test_unforeseen_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw does not end the following of the file."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB), "web", "data") as stage:
            await stage.holds(8080)

            async def fail(_wanted: Sequence[Filed], _unresolved: Sequence[ForwardStatus]) -> None:
                monkeypatch.undo()
                raise RuntimeError("bug")

            monkeypatch.setattr(stage.forwards, "set_filed", fail)
            stage.write(forwards(WEB, DATA))
            await becomes(lambda: any("unforeseen" in line["event"] for line in logs))
            stage.write(forwards(DATA))
            await stage.holds(5432)


async def test_vanished_file(tmp_path: Path) -> None:
    """A file that is not there any more leaves what stands, and says so once."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(WEB), "web") as stage:
            await stage.holds(8080)
            stage.path.unlink()
            await stage.says(f"cannot read {stage.path}: No such file or directory")
            for number in range(3):
                (tmp_path / "other").write_text(str(number))
            assert stage.forwards.ports == [8080]
            stage.write(forwards(WEB, DATA))
            stage.hub.add("data")
            await stage.holds(8080, 5432)
            assert stage.forwards.file_error is None
    assert len([line for line in logs if line["event"] == "forwards of the file stay as they were"]) == 1


@pytest.mark.parametrize("text", [BROKEN["wrong entry"], BROKEN["twice"], BROKEN["nothing"], BROKEN["open to all"]])
async def test_start_with_broken_forwards(tmp_path: Path, text: tuple[str, str]) -> None:
    """Where only the forwards are wrong at the start, those of the last good file stand, and what is wrong is said."""
    async with scene(tmp_path, forwards(WEB), "web") as stage:
        await stage.holds(8080)
    async with scene(tmp_path, text[0], error=AWAY) as stage:
        assert stage.forwards.ports == [8080]
        assert text[1] in (stage.forwards.file_error or "")
        stage.write(forwards())
        await stage.holds()
        await stage.is_good()


async def test_empty_file_where_there_was_nothing(tmp_path: Path) -> None:
    """An empty file is nothing to complain of where it takes nothing away."""
    async with scene(tmp_path, "") as stage:
        assert (stage.forwards.ports, stage.forwards.file_error) == ([], None)
        stage.write("# nothing yet\n")
        stage.write(forwards(WEB))
        stage.hub.add("web")
        await stage.holds(8080)


async def test_changed_settings(tmp_path: Path) -> None:
    """Settings that have changed are named once, and used at the next start."""
    with capture_logs() as logs:
        async with scene(tmp_path, forwards(), "web", "data") as stage:
            stage.write("connect_timeout: 5\nallow: []\n" + forwards(WEB))
            await stage.holds(8080)
            stage.write("connect_timeout: 5\nallow: []\n" + forwards(DATA))
            await stage.holds(5432)
            stage.write(forwards(WEB))
            await stage.holds(8080)
    assert [line["changed"] for line in logs if "next start" in line["event"]] == ["allow, connect_timeout"]


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    """The settings alone decide whether the agent starts."""
    path = tmp_path / "agent.yaml"
    for text, good in (("forwards: 7\n", True), ("listen: 7\n", False), ("forwards: [\n", False)):
        path.write_text(text)
        assert opens(lambda: SettingsFile.open(path)) is good


def opens(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except KnotError:
        return False
    return True
