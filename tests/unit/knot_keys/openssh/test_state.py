"""What is remembered, when a refresh is due, and what finding that out costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from knot_keys.openssh.places import Places
from knot_keys.openssh.state import RETRY_SECONDS, NotSetUp, State, has_just_failed, is_due, read_state, write_state
from knot_ssh.errors import KnotError

STATE = State(
    server="http://127.0.0.1:3000",
    identity="/home/alice/.ssh/id",
    lifetime=600,
    made_key=True,
    made_config=True,
    made_folder=True,
    host_cas=["ssh-ed25519 AAAA", "ssh-ed25519 BBBB"],
    hub="127.0.0.1:2222",
    valid_after=1000,
    valid_before=2000,
    renew_after=1500,
    has_krl=True,
    spaces={"frontend.alice.eu.knot": "11111111-2222-3333-4444-555555555555"},
)


def fill(places: Places) -> None:
    """All files that ssh needs, and what is remembered."""
    places.folder.mkdir(parents=True)
    for piece in (*places.pieces, places.krl):
        piece.touch()
    write_state(places, STATE)


def test_round_trip(places: Places) -> None:
    """What is written is what is read; every field of the sample is filled."""
    assert all(getattr(STATE, name) for name in State.__slots__)
    fill(places)
    assert read_state(places) == STATE
    assert places.state.stat().st_mode & 0o777 == 0o600


def test_written_by_the_version_before(places: Places) -> None:
    """A file that names one host CA is read as one that pins it alone."""
    fill(places)
    document = json.loads(places.state.read_text())
    del document["host_cas"]
    places.state.write_text(json.dumps(document | {"host_ca": "ssh-ed25519 AAAA"}))
    assert read_state(places).host_cas == ["ssh-ed25519 AAAA"]


@pytest.mark.parametrize("cas", [[], [1], "ssh-ed25519 AAAA", None])
def test_damaged_list_of_cas(places: Places, cas: object) -> None:
    """A list of CAs that is none is refused: no CA would be no check."""
    fill(places)
    places.state.write_text(json.dumps(json.loads(places.state.read_text()) | {"host_cas": cas}))
    with pytest.raises(KnotError, match=r"state\.json is damaged"):
        read_state(places)


def test_nothing_there(places: Places) -> None:
    """Where nothing is set up, the error says what to do."""
    with pytest.raises(NotSetUp, match="run `knot ssh setup`"):
        read_state(places)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\xff", "[" * 100_000, '{"server": 1}', "null"])
def test_damaged(places: Places, text: str) -> None:
    """A file that is not ours is refused by name, whatever it holds."""
    fill(places)
    places.state.write_text(text, "latin-1")
    with pytest.raises(KnotError, match=r"state\.json is damaged: run `knot ssh setup` again"):
        read_state(places)


def test_other_types_are_damage(places: Places) -> None:
    """Each field has its type."""
    fill(places)
    good = places.state.read_text()
    for old, new in (("1500", '"1500"'), ("true", "1"), ("600", "[]"), ('"valid_after"', '"x"')):
        places.state.write_text(good.replace(old, new, 1))
        with pytest.raises(KnotError, match="damaged"):
            read_state(places)


@pytest.mark.parametrize(("now", "due"), [(999, True), (1000, False), (1499, False), (1500, True), (2001, True), (1e12, True)])
def test_due_by_the_clock(places: Places, now: float, due: bool) -> None:
    """Half of the life over makes a certificate due, and so does a clock that says it has not begun."""
    fill(places)
    assert is_due(places, STATE, now) is due


@pytest.mark.parametrize("name", ["certificate", "known_hosts", "ssh_config", "spaces", "krl"])
def test_due_without_a_piece(places: Places, name: str) -> None:
    """A file that is gone is fetched anew."""
    fill(places)
    getattr(places, name).unlink()
    assert is_due(places, STATE, 1200)


def test_just_failed(places: Places) -> None:
    """For some seconds after a failure nothing is tried by itself; a failure in the future is none."""
    fill(places)
    assert not has_just_failed(places, 1200)
    places.failed.touch()
    os.utime(places.failed, (1200, 1200))
    assert has_just_failed(places, 1200 + RETRY_SECONDS - 1)
    assert not has_just_failed(places, 1200 + RETRY_SECONDS)
    assert not has_just_failed(places, 1199)


def test_refresh_that_is_not_due_loads_little(places: Places) -> None:
    """Before every connection ssh waits for this: neither asyncssh, pydantic nor the HTTP client is loaded."""
    fill(places)
    moment = int(time.time())
    text = places.state.read_text().replace("1000", str(moment - 60)).replace("1500", str(moment + 600))
    places.state.write_text(text.replace("2000", str(moment + 900)))
    program = (
        "import sys\nfrom knot_ssh.cli.main import main\n"
        "sys.argv = ['knot', 'ssh', 'refresh', '--if-due', '--quiet']\nmain()\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "click" in loaded
    assert not {"asyncssh", "cryptography", "pydantic", "urllib3", "yaml", "asyncio"} & set(loaded)
