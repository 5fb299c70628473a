"""A ring of keys: three steps round, each of which has taken place or has not, whenever the process is killed."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from knot_keys.keyfiles import fingerprint, parse_public_key, public_line
from knot_keys.keyring import DISTRUSTED, DISTRUSTED_MAX, NEXT, OLD, KeyRing, Phase, Step
from knot_ssh.errors import Conflict, KnotError, LooseFile

NAME = "user_ca"
ROUND = [Step.PREPARE, Step.ACTIVATE, Step.RETIRE]
PHASES = [Phase.PREPARED, Phase.ACTIVATED, Phase.STABLE]


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing.create(tmp_path, NAME, "a CA")


def at(ring: KeyRing, phase: Phase) -> KeyRing:
    """The same, moved on to this phase."""
    while ring.phase is not phase:
        ring.take(ROUND[(PHASES.index(ring.phase) + 1) % 3])
    return ring


def held(ring: KeyRing) -> tuple[str, ...]:
    """The phase, and what is trusted."""
    return str(ring.phase), *ring.keys.lines


def test_a_round(ring: KeyRing, tmp_path: Path) -> None:
    """Prepare, activate, retire: the next key is trusted, then used, then alone; what is loaded is what was made."""
    first = ring.keys.lines[0]
    ring.take(Step.PREPARE)
    assert ring.keys.lines[0] == first
    second = ring.keys.lines[1]
    assert held(KeyRing.load(tmp_path, NAME)) == ("prepared", first, second)
    ring.take(Step.ACTIVATE)
    assert held(ring) == held(KeyRing.load(tmp_path, NAME)) == ("activated", second, first)
    ring.take(Step.RETIRE)
    assert held(ring) == held(KeyRing.load(tmp_path, NAME)) == ("stable", second)


@pytest.mark.usefixtures("loose_umask")
def test_every_key_is_private(ring: KeyRing, tmp_path: Path) -> None:
    """In every phase each private key is 0600, and the public one beside it is its own; after a round no other is left."""
    for phase in PHASES:
        at(ring, phase)
        private = [path for path in tmp_path.iterdir() if path.suffix != ".pub"]
        assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
        assert parse_public_key((tmp_path / "user_ca.pub").read_text()) == ring.keys.trusted[0]
    assert {path.name for path in tmp_path.iterdir()} == {NAME, f"{NAME}.pub"}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("step", Step)
def test_only_the_step_that_is_due(ring: KeyRing, phase: Phase, step: Step) -> None:
    """Every other step is refused by name, and changes nothing."""
    at(ring, phase)
    if ROUND[(PHASES.index(phase) + 1) % 3] is step:
        return ring.take(step)
    before = held(ring)
    with pytest.raises(Conflict, match=f"the {NAME.replace('_', '-')} is {phase}: the next step is .*, not {step}"):
        ring.take(step)
    assert held(ring) == before


@pytest.mark.parametrize("phase", Phase)
def test_kill_at_any_call(ring: KeyRing, tmp_path: Path, phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before any change of a file, the ring loads in the phase before or the one after, and goes on from there."""
    at(ring, phase)
    step = ROUND[(PHASES.index(phase) + 1) % 3]
    after = PHASES[ROUND.index(step)]
    for moment in range(20):
        before = held(KeyRing.load(tmp_path, NAME))
        done = killed_at(moment, lambda: KeyRing.load(tmp_path, NAME).take(step, distrust=True), monkeypatch)
        loaded = KeyRing.load(tmp_path, NAME)
        assert held(loaded) == before or loaded.phase is after
        assert set(loaded.distrusted).isdisjoint(loaded.keys.names)
        if done:
            break
        at(loaded, phase)
    assert done
    assert moment >= (1 if step is Step.RETIRE else 2)


def killed_at(moment: int, work: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Do it, and be killed before the change of a file with this number; gives whether it came to its end."""
    calls = iter(range(100))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **options: object) -> object:
            if next(calls) == moment:
                raise Killed
            return function(*words, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("os.link", counted(__import__("os").link))
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            work()
        except Killed:
            return False
    return True


def test_retired_by_force(ring: KeyRing, tmp_path: Path) -> None:
    """A key that is retired by force is remembered by its fingerprint, over restarts; in an orderly round none is."""
    at(at(ring, Phase.ACTIVATED), Phase.STABLE)
    assert ring.distrusted == []
    at(ring, Phase.ACTIVATED)
    assert ring.keys.old
    old = fingerprint(ring.keys.old)
    ring.take(Step.RETIRE, distrust=True)
    assert ring.distrusted == KeyRing.load(tmp_path, NAME).distrusted == [old]


def test_not_all_are_remembered(ring: KeyRing, tmp_path: Path) -> None:
    """The list of what was given up has an end."""
    for _ in range(DISTRUSTED_MAX + 2):
        at(ring, Phase.ACTIVATED).take(Step.RETIRE, distrust=True)
    assert len((tmp_path / f"{NAME}{DISTRUSTED}").read_text().split()) == DISTRUSTED_MAX


def test_two_others_are_one_too_many(ring: KeyRing, tmp_path: Path) -> None:
    """A next and an old key together, as copied from two backups, are refused with both names: neither is chosen in silence."""
    at(ring, Phase.PREPARED)
    KeyRing.create(tmp_path, f"{NAME}{OLD}", "another")
    with pytest.raises(KnotError, match=rf"{NAME}\.next and .*{NAME}\.old cannot both be there"):
        KeyRing.load(tmp_path, NAME)


def test_loose_or_damaged_is_refused(ring: KeyRing, tmp_path: Path) -> None:
    """A next key that others can read, or that is none, is refused with its name and stays as it is."""
    path = tmp_path / f"{NAME}{NEXT}"
    at(ring, Phase.PREPARED)
    path.chmod(0o640)
    with pytest.raises(LooseFile, match=f"{NAME}.next"):
        KeyRing.load(tmp_path, NAME)
    path.chmod(0o600)
    path.write_bytes(b"")
    with pytest.raises(KnotError, match=f"{NAME}.next"):
        KeyRing.load(tmp_path, NAME)
    assert path.read_bytes() == b""


def test_a_key_in_the_way(ring: KeyRing, tmp_path: Path) -> None:
    """What stands where the next key is to be is not replaced, and the ring is as it was."""
    (tmp_path / f"{NAME}{NEXT}").write_bytes(b"precious")
    with pytest.raises(KnotError, match=r"user_ca is as it was: .*File exists"):
        ring.take(Step.PREPARE)
    assert (tmp_path / f"{NAME}{NEXT}").read_bytes() == b"precious"
    assert ring.phase is Phase.STABLE


def test_no_private_key_is_printed(ring: KeyRing) -> None:
    """A repr, which may get into a log, has no private key."""
    assert public_line(ring.keys.active) not in repr(ring.keys)
    assert "PRIVATE" not in repr(ring.keys)
