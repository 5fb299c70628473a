"""What the agent remembers: kept at once, whole or not at all, and never a reason not to start."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knot_agent.memory import MEMORY_FILE, Memory
from knot_ssh.forwardsfile import FiledForward
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import ForwardOrder, Revoked, StoppedForward, Target

BACKEND = Target(
    id=SpaceId.new(),
    name=SpaceName("backend"),
    owner=Owner("alice"),
    zone=Zone("eu"),
    addresses=["10.0.0.7:2022"],
    running=True,
)
OWN = SpaceId.new()
"""The space whose agent this is."""
OTHER = BACKEND.model_copy(update={"id": SpaceId.new(), "name": SpaceName("other"), "addresses": ["10.0.0.8:2022"]})
AWAY = BACKEND.model_copy(update={"addresses": [], "running": False})
NOTHING = Revoked(serials=[], keys=[])
VOID = Revoked(serials=[1, 2**63], keys=["SHA256:x"])
MIB = 1024 * 1024


def remembered(folder: Path, space_id: SpaceId = OWN) -> Memory:
    """What an agent remembers that starts in this folder."""
    return Memory(folder, space_id)


def order(port: int = 8080, target: Target = BACKEND, remote_port: int = 3000) -> ForwardOrder:
    return ForwardOrder(local_port=Port(port), target=target, remote_port=Port(remote_port), persistent=True)


def content(memory: Memory) -> tuple[list[ForwardOrder], list[StoppedForward], Revoked]:
    return memory.forwards, memory.stopped, memory.revoked


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / MEMORY_FILE


def test_nothing_yet(tmp_path: Path, path: Path) -> None:
    """A new agent remembers nothing, and makes no file of that."""
    assert content(remembered(tmp_path)) == ([], [], NOTHING)
    assert not path.exists()


def test_kept(tmp_path: Path) -> None:
    """Forwards, what was revoked and what was stopped are there again after a start."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order(), order(8081, OTHER)])
    memory.keep_revoked(VOID)
    memory.note_stopped(order(8081, OTHER))
    stopped = StoppedForward(local_port=Port(8081), target_id=OTHER.id, remote_port=Port(3000))
    assert content(memory) == content(remembered(tmp_path)) == ([order()], [stopped], VOID)


def test_filed(tmp_path: Path) -> None:
    """Forwards of the settings file are kept with their targets, and where these are now."""
    memory = remembered(tmp_path)
    filed = [FiledForward(local_port=Port(80), space=name, remote_port=Port(3000), bind="::1") for name in ("a", "b")]
    memory.keep_filed(filed, {"a": BACKEND, "b": OTHER})
    assert (remembered(tmp_path).filed, remembered(tmp_path).filed_targets) == (filed, {"a": BACKEND, "b": OTHER})
    moved = BACKEND.model_copy(update={"addresses": ["10.0.0.9:2022"]})
    memory.keep_target(moved)
    assert remembered(tmp_path).filed_targets == {"a": moved, "b": OTHER}
    memory.keep_filed(filed, {"a": AWAY})
    assert remembered(tmp_path).filed_targets == {"a": moved.model_copy(update={"running": False})}
    memory.keep_filed([], {})
    assert (remembered(tmp_path).filed, remembered(tmp_path).filed_targets) == ([], {})


def test_kept_at_once(tmp_path: Path) -> None:
    """Every change is on disk when it returns."""
    memory = remembered(tmp_path)
    changes: list[Callable[[], None]] = [
        lambda: memory.keep_forwards([order()]),
        lambda: memory.keep_revoked(VOID),
        lambda: memory.keep_target(BACKEND.model_copy(update={"addresses": ["10.0.0.9:2022"]})),
        lambda: memory.note_stopped(order()),
        lambda: memory.told(memory.stopped),
    ]
    for change in changes:
        before = content(memory)
        change()
        assert before != content(memory) == content(remembered(tmp_path))


def test_only_changes_are_written(tmp_path: Path, path: Path) -> None:
    """What is known already costs no write."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    memory.keep_revoked(VOID)
    path.unlink()
    memory.keep_forwards([order()])
    memory.keep_revoked(VOID)
    memory.keep_target(BACKEND)
    memory.keep_target(OTHER)
    memory.told(memory.stopped)
    assert not path.exists()


def test_private(tmp_path: Path, path: Path, loose_umask: None) -> None:
    """The file is its owner's alone, whatever the umask."""
    remembered(tmp_path).keep_forwards([order()])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    remembered(tmp_path).keep_forwards([])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_replaced_as_a_whole(tmp_path: Path, path: Path) -> None:
    """A change puts a new file in place of the old one, which is never written to; and leaves no other behind."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    with path.open("rb") as old:
        before = old.read()
        memory.keep_forwards([order(8081)])
        old.seek(0)
        assert old.read() == before
        assert os.fstat(old.fileno()).st_nlink == 0
    assert list(tmp_path.iterdir()) == [path]


def test_target_has_moved(tmp_path: Path) -> None:
    """Where a target is now is remembered with every forward to it, and with no other."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order(), order(8081), order(8082, OTHER)])
    moved = BACKEND.model_copy(update={"addresses": ["10.0.0.9:2022"]})
    memory.keep_target(moved)
    assert [kept.target for kept in remembered(tmp_path).forwards] == [moved, moved, OTHER]


def test_target_of_nothing_remembered(tmp_path: Path) -> None:
    """Of targets that no persistent forward points to, nothing is kept."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    memory.keep_target(OTHER)
    assert memory.forwards == [order()]


def test_addresses_outlast_an_absence(tmp_path: Path) -> None:
    """An order for a target that is away keeps the addresses that are known, and takes over everything else."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    memory.keep_forwards([order(8081, AWAY, 3001), order(8082, OTHER)])
    kept = remembered(tmp_path).forwards
    assert [(one.local_port, one.remote_port, one.target.addresses, one.target.running) for one in kept] == [
        (8081, 3001, ["10.0.0.7:2022"], False),
        (8082, 3000, ["10.0.0.8:2022"], True),
    ]


def test_unknown_target_without_addresses(tmp_path: Path) -> None:
    """A target of which no address was ever known is kept without."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order(8082, OTHER)])
    memory.keep_forwards([order(8081, AWAY)])
    assert memory.forwards == [order(8081, AWAY)]


def test_stopped_alone(tmp_path: Path) -> None:
    """A forward that was stopped without the server is gone from here, and noted until the server knows."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order(), order(8081)])
    memory.note_stopped(order())
    memory = remembered(tmp_path)
    assert memory.forwards == [order(8081)]
    assert [(gone.local_port, gone.target_id, gone.remote_port) for gone in memory.stopped] == [(8080, BACKEND.id, 3000)]
    said = memory.stopped
    memory.note_stopped(order(8081))
    assert [int(gone.local_port) for gone in memory.stopped] == [8080, 8081]
    memory.told(said)
    assert [int(gone.local_port) for gone in remembered(tmp_path).stopped] == [8081]
    memory.told(memory.stopped)
    assert content(remembered(tmp_path)) == ([], [], NOTHING)


def test_another_space(tmp_path: Path) -> None:
    """An agent that has joined another space in the same folder remembers nothing of the first."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    memory.keep_revoked(VOID)
    other = SpaceId.new()
    assert content(remembered(tmp_path, other)) == ([], [], NOTHING)
    remembered(tmp_path, other).keep_forwards([order(8081)])
    assert content(remembered(tmp_path)) == ([], [], NOTHING)


def test_what_is_given_out_is_a_copy(tmp_path: Path) -> None:
    """Whoever changes the lists they were given changes nothing that is remembered."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    memory.forwards.clear()
    memory.stopped.append(StoppedForward(local_port=Port(1), target_id=BACKEND.id, remote_port=Port(1)))
    assert (memory.forwards, memory.stopped) == ([order()], [])


# Damage


def is_forgotten_and_made_anew(folder: Path) -> None:
    """A file that cannot be read counts as none, and the next change replaces it."""
    memory = remembered(folder)
    assert content(memory) == ([], [], NOTHING)
    memory.keep_forwards([order()])
    assert content(remembered(folder)) == ([order()], [], NOTHING)


def test_torn_anywhere(tmp_path: Path, path: Path) -> None:
    """However much of the file is there, it is read as it was or counts as none: never as a part."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order(), order(8081, OTHER)])
    memory.keep_revoked(VOID)
    memory.note_stopped(order(8082))
    whole, known = path.read_bytes(), content(memory)
    for length in (*range(0, len(whole), 5), len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert content(remembered(tmp_path)) in (([], [], NOTHING), known)
    path.write_bytes(whole[: len(whole) // 2])
    is_forgotten_and_made_anew(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"null",
        b"[]",
        b"17",
        b'"forwards"',
        b'{"forwards": null}',
        b'{"forwards": {}}',
        b'{"forwards": [{}]}',
        b'{"revoked": {"serials": ["x"], "keys": []}}',
        b'{"revoked": {"serials": [], "keys": []}, "stopped": [{"local_port": 0}]}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"forwards": [' + b"9" * 10_000 + b"]}",
    ],
)
def test_damaged(tmp_path: Path, path: Path, data: bytes) -> None:
    """A file that makes no sense is as good as none, and never an error."""
    path.write_bytes(data.replace(b'{"', b'{"space_id": "%s", "' % str(OWN).encode(), 1) if data.endswith(b"}") else data)
    is_forgotten_and_made_anew(tmp_path)


@given(data=st.binary(max_size=200), at=st.integers(0, 400))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_in_it(tmp_path: Path, data: bytes, at: int) -> None:
    """Garbage anywhere in the file is no error either, and what is read can be kept again."""
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    path = tmp_path / MEMORY_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + data + whole[at + len(data) :])
    memory = remembered(tmp_path)
    memory.keep_forwards([*memory.forwards[:1], order(9000)])
    assert remembered(tmp_path).forwards == memory.forwards


def test_bad_ports_and_names_do_not_come_in(tmp_path: Path, path: Path) -> None:
    """What is in the file obeys the rules for what comes over the wire."""
    remembered(tmp_path).keep_forwards([order()])
    good = json.loads(path.read_text())
    for key, bad in (("local_port", 0), ("local_port", 65536), ("remote_port", "22"), ("target", {"name": "../x"})):
        forward = good["forwards"][0] | {key: good["forwards"][0]["target"] | bad if isinstance(bad, dict) else bad}
        path.write_text(json.dumps(good | {"forwards": [forward]}))
        assert remembered(tmp_path).forwards == []


def test_huge(tmp_path: Path, path: Path) -> None:
    """A file that is huge for no good reason is no reason not to start."""
    path.write_bytes(b'{"surplus": "' + b"x" * 32 * MIB + b'"')
    is_forgotten_and_made_anew(tmp_path)


def test_surplus_is_ignored(tmp_path: Path, path: Path) -> None:
    """What a later version has added does not make an earlier one forget the rest."""
    remembered(tmp_path).keep_forwards([order()])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surplus": [1]}))
    assert remembered(tmp_path).forwards == [order()]


def test_every_port(tmp_path: Path) -> None:
    """As many forwards as there are ports can be remembered."""
    many = [order(port) for port in range(1, 65536, 16)]
    remembered(tmp_path).keep_forwards(many)
    assert remembered(tmp_path).forwards == many


def test_folder_instead_of_a_file(tmp_path: Path, path: Path) -> None:
    """What cannot be read or replaced is said in the log, and the agent goes on with what it knows."""
    path.mkdir()
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    assert memory.forwards == [order()]
    assert list(tmp_path.iterdir()) == [path]


def test_disk_that_fails_for_a_while(tmp_path: Path, path: Path) -> None:
    """What could not be written is written when it is to be kept again, though it has not changed since."""
    path.mkdir()
    memory = remembered(tmp_path)
    memory.keep_forwards([order()])
    path.rmdir()
    memory.keep_forwards([order()])
    assert remembered(tmp_path).forwards == [order()]
