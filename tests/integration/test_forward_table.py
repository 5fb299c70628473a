"""The table of docs/forwards.md, through every door: `forward` and `apply`, typed, scripted and over HTTP, on the desktop,
in the source and in another space. And what becomes of a forward that stands already.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from knot import space
from knot.space import ForwardEntry
from knot_ssh.errors import HeldByFile
from tests.support.configured import ConfiguredAgent
from tests.support.forwarddoors import (
    FAR_ZONE,
    NOTHING,
    Door,
    Facts,
    Place,
    Said,
    Way,
    Wish,
    apply_words,
    command_apply,
    command_forward,
    expected_facts,
    forward_words,
    http_apply,
    http_forward,
    script_apply,
    script_forward,
)
from tests.support.forwardtable import (
    ANOTHERS,
    APPLIED,
    CELLS,
    DELETED,
    DOWN,
    FAR,
    HELD,
    ITSELF,
    KEPT,
    MADE,
    NO_SOURCE,
    NONE,
    PORT_TAKEN,
    REMADE,
    RUNS,
    SELF,
    SOURCE_DOWN,
    STORED,
    TARGET_DOWN,
    Cell,
    Result,
)
from tests.support.ports import free_ports
from tests.support.services import answering, ask, connect, echo, free_port, is_free, read_all, serving
from tests.support.system import System, running_system
from tests.support.waiting import until

HERE: list[Way] = [command_forward, command_apply, script_forward, script_apply]
DESKTOP, IN_SOURCE, IN_OTHER = "on the desktop", "in the source", "in another space"
PLACES = [*((DESKTOP, way) for way in (*HERE, http_forward, http_apply)), *((IN_SOURCE, way) for way in HERE),
          *((IN_OTHER, way) for way in HERE)]  # fmt: skip
ALICE, BOB = "alice", "bob"


class World:
    """alice's spaces, one for each word of the table, and what stands on the sources."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        system.user(ALICE)
        system.user(BOB)
        with ThreadPoolExecutor() as pool:
            frontend, neighbour, asleep, *_ = pool.map(
                lambda made: system.space(*made),
                [("frontend",), ("neighbour",), ("asleep",), ("backend-api",), ("far", ALICE, FAR_ZONE), ("secret", BOB)],
            )
        asleep.stop()
        system.space("dormant", run=False)
        deleted = system.space("remade", run=False).id
        self._api = system.api(ALICE)
        self.remake("remade")
        self.sources = {RUNS: "frontend", DOWN: "dormant", NONE: "nowhere", ANOTHERS: "secret"}
        self.targets = {RUNS: "backend-api", DOWN: "asleep", REMADE: "remade", DELETED: deleted, NONE: "nobody",
                        ANOTHERS: "secret", FAR: "far"}  # fmt: skip
        self.places = {
            DESKTOP: Place(DESKTOP, system.as_user(ALICE), folder),
            IN_SOURCE: Place(IN_SOURCE, system.environment(frontend.variables), folder, within="frontend"),
            IN_OTHER: Place(IN_OTHER, system.environment(neighbour.variables), folder, within="neighbour"),
        }
        self._store = sqlite3.connect(system.folder / "server" / "store.db")

    def close(self) -> None:
        self._store.close()
        self._api.close()

    def remake(self, name: str) -> None:
        """Delete a space and make another of its name."""
        self._api.delete("api", "spaces", name)
        self.system.space(name, run=False)
        self.know_ids()

    def know_ids(self) -> None:
        self.ids = {space["name"]: space["id"] for space in self._api.get("api", "spaces")["spaces"]}

    def doors(self, source: str) -> list[Door]:
        """All that lead to this source: in a space that does not run nobody asks."""
        return [Door(self.places[place], way) for place, way in PLACES if place != IN_SOURCE or source == RUNS]

    def wish(self, cell: Cell, remote_port: int) -> Wish:
        source = self.sources[cell.source]
        target = source if cell.target == SELF else self.targets[cell.target]
        return Wish(source, free_port(), target, remote_port, cell.persistent, cell.force)

    # What stands

    def listed(self, source: str) -> list[dict[str, Any]]:
        forwards: list[dict[str, Any]] = self._api.get("space-io", source, "port", "list")["forwards"]
        return forwards

    def stored(self, source: str) -> list[tuple[object, ...]]:
        """The source's forwards in the store itself."""
        query = "SELECT local_port, target_id, remote_port FROM forwards WHERE space_id = ? ORDER BY local_port"
        return self._store.execute(query, (self.ids[source],)).fetchall()

    def clear(self, source: str) -> None:
        """Stop every forward, and have none left anywhere."""
        self._api.post("space-io", source, "port", "apply", body={"forwards": []})
        assert (self.listed(source), self.stored(source)) == ([], [])

    def standing(self, wish: Wish) -> Facts:
        """What stands on the source, and whether the port is bound."""
        entries = self.listed(wish.source)
        names = ("local_port", "space", "space_id", "remote_port", "persistent", "origin")
        return {
            "listed": [{name: entry[name] for name in names} for entry in entries],
            "states": {entry["state"] for entry in entries} - {"starting", "listening", "waiting"},
            "kept": self.stored(wish.source),
            "bound": not is_free(wish.local_port),
        }

    def expected_standing(self, wish: Wish, result: Result) -> Facts:
        """The same as it is to be when the list was empty before."""
        if result.in_apply != APPLIED:
            return {"listed": [], "states": set(), "kept": [], "bound": False}
        target_id = self.ids[wish.target]
        return {
            "listed": [wish.made | {"space_id": target_id, "origin": "command"}],
            "states": {"stopped"} if result is STORED else set(),
            "kept": [(wish.local_port, target_id, wish.remote_port)] if result in (KEPT, STORED) else [],
            "bound": result is not STORED,
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with (
        running_system(tmp_path_factory.mktemp("table")) as system,
        contextlib.closing(World(system, system.folder)) as world,
    ):
        yield world
        for running in system.processes:
            assert not any("Traceback" in line or "never retrieved" in line for line in running.lines()), running.log


@pytest.fixture(scope="module")
def service() -> Iterator[int]:
    """What listens in backend-api."""
    with serving(answering(b"crossed")) as port:
        yield port


@pytest.fixture(params=PLACES, ids=lambda pair: f"{pair[1].__name__}-{pair[0]}")
def door(request: pytest.FixtureRequest, world: World) -> Iterator[Door]:
    """Every door to a source that runs."""
    place, way = request.param
    yield Door(world.places[place], way)
    world.clear("frontend")


def known_of(expected: Facts, told: Facts) -> Facts:
    """What was to be told, of all that a door does tell."""
    return {name: expected.get(name) for name in told}


def ask_for(door: Door, wish: Wish, result: Result) -> None:
    """Ask, and check all that the door tells."""
    told = door.ask(wish)
    assert told == known_of(expected_facts(door, wish, result), told), str(door)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_every_cell_through_every_door(world: World, service: int, cell: Cell) -> None:
    """One answer, one sentence and one resulting list, whichever door; where both spaces run bytes cross at once."""
    told, wanted = {}, {}
    for door in world.doors(cell.source):
        wish = world.wish(cell, service)
        name = str(door)
        told[name] = door.ask(wish)
        wanted[name] = known_of(expected_facts(door, wish, cell.result), told[name])
        if cell.result is NO_SOURCE:
            continue
        told[name] |= world.standing(wish)
        wanted[name] |= world.expected_standing(wish, cell.result)
        if (cell.source, cell.target) == (RUNS, RUNS):
            told[name]["bytes"], wanted[name]["bytes"] = ask(wish.local_port), b"crossed"
        world.clear(wish.source)
    assert told == wanted
    assert len(told) == len(PLACES) - (0 if cell.source == RUNS else len(HERE))


def test_a_space_acts_within_its_zone_alone(world: World) -> None:
    """A source in another zone is none to a script in a space; on the desktop it is a source like others."""
    for way in HERE:
        wish = Wish("far", free_port(), "backend-api", 3000)
        ask_for(Door(world.places[IN_OTHER], way), wish, NO_SOURCE)
    for way in (*HERE, http_forward, http_apply):
        wish = Wish("far", free_port(), "far", 3000)
        ask_for(Door(world.places[DESKTOP], way), wish, ITSELF)


@pytest.mark.parametrize("words_of", [forward_words, apply_words])
@pytest.mark.parametrize("where", [DESKTOP, IN_SOURCE])
@pytest.mark.parametrize("result", [MADE, TARGET_DOWN, ITSELF], ids=lambda result: result.name)
def test_a_process_says_what_the_table_was_told(
    world: World, where: str, words_of: Callable[[Place, Wish], list[str]], result: Result
) -> None:
    """The command as users run it has the exit code and the words that were had in this process."""
    place = world.places[where]
    target = {MADE: "backend-api", TARGET_DOWN: "asleep", ITSELF: "frontend"}[result]
    words = words_of(place, Wish("frontend", free_port(), target, 3000))
    here = place.run(*words)
    world.clear("frontend")
    there = world.system.run(*words, env=dict(place.environment))
    world.clear("frontend")
    assert Said(there.returncode, there.stdout, there.stderr) == here
    assert here.code == result.exit_code


def test_the_same_port_again_replaces(world: World, service: int, door: Door) -> None:
    """New connections go to the new target at once; an open one keeps its old target, which is another space, to its end."""
    with serving(echo) as old:
        first = Wish("frontend", free_port(), "neighbour", old, persistent=True)
        ask_for(Door(world.places[DESKTOP], http_forward), first, KEPT)
        with connect(first.local_port) as kept:
            kept.sendall(b"before")
            assert kept.recv(6) == b"before"
            second = Wish("frontend", first.local_port, "backend-api", service, persistent=True)
            ask_for(door, second, KEPT)
            assert world.standing(second) == world.expected_standing(second, KEPT)
            assert ask(second.local_port) == b"crossed"
            kept.sendall(b"after")
            kept.shutdown(socket.SHUT_WR)
            assert read_all(kept) == ("fin", b"after")


def test_less_persistent_is_a_change(world: World, service: int, door: Door) -> None:
    """A persistent forward that is asked for again without is kept no longer, and its open connections go on."""
    with serving(echo) as port:
        first = Wish("frontend", free_port(), "backend-api", port, persistent=True)
        ask_for(Door(world.places[DESKTOP], http_forward), first, KEPT)
        with connect(first.local_port) as open_one:
            open_one.sendall(b"a")
            assert open_one.recv(1) == b"a"
            second = Wish("frontend", first.local_port, "backend-api", port)
            ask_for(door, second, MADE)
            assert world.standing(second) == world.expected_standing(second, MADE)
            open_one.sendall(b"b")
            assert open_one.recv(1) == b"b"


def test_what_cannot_replace_leaves_the_old_one(world: World, service: int, door: Door) -> None:
    """A refused replacement changes nothing: the old forward is listed, stored and carries bytes."""
    first = Wish("frontend", free_port(), "backend-api", service, persistent=True)
    ask_for(Door(world.places[DESKTOP], http_forward), first, KEPT)
    ask_for(door, Wish("frontend", first.local_port, "asleep", 3000, persistent=True), TARGET_DOWN)
    ask_for(door, Wish("frontend", first.local_port, "frontend", 3000, force=True), ITSELF)
    assert world.standing(first) == world.expected_standing(first, KEPT)
    assert ask(first.local_port) == b"crossed"


def test_what_cannot_replace_leaves_the_stored_one(world: World) -> None:
    """The same on a source that does not run."""
    for door in world.doors(DOWN):
        first = Wish("dormant", free_port(), "backend-api", 3000, persistent=True)
        ask_for(Door(world.places[DESKTOP], http_forward), first, STORED)
        ask_for(door, Wish("dormant", first.local_port, "backend-api", 3001), SOURCE_DOWN)
        ask_for(door, Wish("dormant", first.local_port, "asleep", 3000, persistent=True), TARGET_DOWN)
        assert world.standing(first) == world.expected_standing(first, STORED)
        world.clear("dormant")


def test_a_taken_port(world: World, door: Door) -> None:
    """A port that another process has is refused, and nothing is listed or stored."""
    with serving(answering(b"other")) as taken:
        wish = Wish("frontend", taken, "backend-api", 3000, persistent=True, force=True)
        ask_for(door, wish, PORT_TAKEN)
        assert (world.listed("frontend"), world.stored("frontend")) == ([], [])
        assert ask(taken) == b"other"


def test_a_port_of_the_agents_file(world: World, service: int, tmp_path: Path) -> None:
    """What the file makes nobody else replaces or stops, and `apply` says that it was left alone."""
    local = free_port()
    agent = ConfiguredAgent(world.system, "filed", ALICE, {}, tmp_path)
    agent.rewrite(f"forwards: [{{local_port: {local}, space: backend-api, remote_port: {service}}}]\n")
    agent.start()
    until(lambda: agent.listing()["forwards"], what="the file's forward is there")
    inside = Place(IN_SOURCE, world.system.environment(agent.variables), tmp_path, within="filed")
    for place, way in PLACES:
        door = Door(inside if place == IN_SOURCE else world.places[place], way)
        ask_for(door, Wish("filed", local, "backend-api", 3000, persistent=True, force=True), HELD)
        with door.place.entered():
            assert space.port_apply("filed", []) == {"applied": [], "stopped": [], "errors": []}
            with pytest.raises(HeldByFile):
                space.port_stop("filed", local)
    (tmp_path / "none.yaml").write_text("forwards: []\n")
    said = inside.run("port", "apply", "-f", str(tmp_path / "none.yaml"))
    assert (said.code, said.stdout) == (0, NOTHING)
    assert (said.stderr.startswith("Left alone"), str(local) in said.stderr) == (True, True)
    assert [(forward["local_port"], forward["origin"]) for forward in world.listed("filed")] == [(local, "file")]
    assert ask(local) == b"crossed"


@pytest.mark.parametrize("place", [DESKTOP, IN_OTHER])
def test_apply_answers_alike_for_sources_that_run_or_not(world: World, place: str) -> None:
    """One plan and one answer, ordered by port, dry or not: what is unchanged is left out and needs no force, what
    cannot be made leaves alone what stands on its port, and an empty list stops all."""

    def entry(port: int, target: str = "backend-api", remote_port: int = 3000, force: bool = False) -> ForwardEntry:
        return {"local_port": port, "space": target, "remote_port": remote_port, "persistent": True, "force": force}

    same, waits, changed, fails, gone, new = ports = free_ports(6)
    first = [entry(port, "asleep", force=True) if port == waits else entry(port) for port in ports if port != new]
    wanted = [entry(new), entry(fails, "asleep"), entry(changed, remote_port=3001), entry(waits, "asleep"), entry(same)]
    answers = []
    for source in ("frontend", "dormant"):
        with world.places[place].entered():
            assert space.port_apply(source, first[::-1])["errors"] == []
            would = space.port_apply(source, wanted, dry_run=True)
            assert space.port_apply(source, wanted) == would
            standing = [(forward["local_port"], forward["space"], forward["remote_port"]) for forward in world.listed(source)]
            answers.append((would, standing, space.port_apply(source, [])))
        world.clear(source)
    running, stopped = answers
    assert running == stopped
    applied, standing, ended = running
    assert [made["local_port"] for made in applied["applied"]] == [changed, new]
    assert [made["local_port"] for made in applied["stopped"]] == [gone]
    assert [(error["local_port"], error["code"]) for error in applied["errors"]] == [(fails, "not_running")]
    assert standing == [
        (same, "backend-api", 3000),
        (waits, "asleep", 3000),
        (changed, "backend-api", 3001),
        (fails, "backend-api", 3000),
        (new, "backend-api", 3000),
    ]
    assert [made["local_port"] for made in ended["stopped"]] == [same, waits, changed, fails, new]


def test_an_unchanged_forward_keeps_its_connections(world: World, door: Door) -> None:
    """The same forward again, or a list that has it already, leaves alone what is open."""
    with serving(echo) as port:
        wish = Wish("frontend", free_port(), "backend-api", port)
        ask_for(Door(world.places[DESKTOP], http_forward), wish, MADE)
        with connect(wish.local_port) as kept:
            kept.sendall(b"a")
            assert kept.recv(1) == b"a"
            if door.is_apply:
                told = door.ask(wish)
                assert told == known_of({"exit_code": 0, "status": 200, "line": NOTHING, "stopped": []}, told)
            else:
                ask_for(door, wish, MADE)
            kept.sendall(b"b")
            assert kept.recv(1) == b"b"
        assert world.standing(wish) == world.expected_standing(wish, MADE)


@pytest.mark.parametrize(("source", "result"), [(RUNS, KEPT), (DOWN, STORED)], ids=[RUNS, DOWN])
def test_a_target_made_again_is_another(world: World, source: str, result: Result) -> None:
    """A forward to a deleted space says so and does not pass to a new one of the same name, until it is asked for again."""
    name = world.sources[source]
    phoenix = f"phoenix-of-{name}"
    world.system.space(phoenix, run=False)
    world.know_ids()
    for door in world.doors(source):
        wish = Wish(name, free_port(), phoenix, 3000, persistent=True, force=True)
        ask_for(door, wish, result)
        before = world.ids[phoenix]
        world.remake(phoenix)

        def stands(before: str = before) -> bool:
            [entry] = world.listed(name)
            return (entry["space_id"], entry["reason"]) == (before, "target gone")

        until(stands, what="the forward says that its target is gone")
        ask_for(door, wish, result)
        assert world.standing(wish) == world.expected_standing(wish, result)
        assert world.ids[phoenix] != before
        world.clear(name)
