"""What a crash may leave of an agent's files: it starts all the same, with what was or with what is, never with half."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from knot_ssh.errors import BadInput, Unavailable
from knot_ssh.forwardsfile import check_file
from tests.faults.beds import FULL
from tests.faults.sites import PATIENCE, Site, site
from tests.support.configured import ConfiguredAgent
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.services import free_port
from tests.support.waiting import until

MEMORY = "memory.json"
"""What the agent remembers for a start without the server."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("torn"), targets=("direct",)) as made:
        yield made


TEARS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: bytes(255 - byte for byte in whole),
    "not of ours": lambda whole: b'{"forwards": [{"local_port": "8080; rm"}], "stopped": 7}\n',
    "nested": lambda whole: b"[" * 100_000,
}
"""What becomes of a file."""


@pytest.mark.fault("agent's memory torn by a crash", "starts all the same; whole again from the server")
def test_torn_memory(own: Site, figure: Figure) -> None:
    """The agent starts with a damaged file, without the server too, and has its forwards again once the server is back."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        file = own.near.folder / MEMORY
        until(lambda: str(local) in file.read_text(), what="the forward is remembered")
        own.near.kill()
        own.stop_server(kill=True)
        whole = file.read_bytes()
        known = {}
        try:
            for name, tear in TEARS.items():
                own.near.kill()
                file.write_bytes(tear(whole))
                own.start("near")
                assert own.near.running
                own.near.running.wait_for("agent ready")
                known[name] = ports(own.near)
        finally:
            own.start_server()
        line = ledger.served(local)
        figure(f"started with {', '.join(known)}; each time without forwards, and with all of them once the server was back")
        assert not any(known.values()), known
        ledger.finish([line])
        until(lambda: str(local) in file.read_text(), what="the forward is remembered again")


@pytest.mark.fault("agent killed while it writes its memory", "old or new, never half")
def test_torn_write(own: Site, figure: Figure) -> None:
    """What a write that was cut short leaves beside the file is not taken for it."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        file = own.near.folder / MEMORY
        until(lambda: str(local) in file.read_text(), what="the forward is remembered")
        own.near.kill()
        own.stop_server(kill=True)
        whole = file.read_bytes()
        for name in (f".{MEMORY}.tmp", f"{MEMORY}.tmp", f"{MEMORY}.new"):
            file.with_name(name).write_bytes(whole[: len(whole) // 2])
        try:
            own.start("near")
            line = ledger.served(local)
        finally:
            own.start_server()
        figure("the forward that was there works, without the server")
        ledger.finish([line])


def settings(local: int, remote: int) -> bytes:
    """A settings file that ends where it says so: whatever is cut off is missed."""
    return f"""\
forwards: [
  {{local_port: {local}, space: direct, remote_port: {remote}}},
]
connect_timeout: 10
""".encode()


def cut(whole: bytes, seed: int) -> bytes:
    """The file up to some byte of its forwards."""
    return whole[: random.Random(seed).randrange(1, whole.index(b"]"))]


FILE_TEARS: dict[str, Callable[[bytes], bytes]] = {
    **{f"cut {seed}": lambda whole, seed=seed: cut(whole, seed) for seed in range(8)},  # type: ignore[misc]
    "empty": lambda whole: b"",
    "zeroed": lambda whole: bytes(len(whole)),
    "half zeroed": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    "garbage": lambda whole: bytes(255 - byte for byte in whole),
    "noise": lambda whole: random.Random(1).randbytes(4096),
    "begins late": lambda whole: whole[20:],
    "a hole": lambda whole: whole[:15] + whole[40:],
    "twice": lambda whole: whole + whole,
    "one in another": lambda whole: whole[:30] + whole + whole[30:],
    "wide": lambda whole: whole.decode().encode("utf-16"),
    "half a character": lambda whole: whole + b"# caf\xc3",
    "a conflict": lambda whole: b"<<<<<<< HEAD\n" + whole + b"=======\n",
    "nested": lambda whole: b"[" * 100_000,
}
"""What becomes of the settings file. (One that is cut between two lines may be a whole file that says less: no way to tell.)"""


def vanish(file: Path) -> None:
    file.unlink()


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def lead_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.with_name("nowhere"))


ALL_DAMAGES: dict[str, Callable[[Path], object]] = {
    **{name: lambda file, tear=tear: file.write_bytes(tear(file.read_bytes())) for name, tear in FILE_TEARS.items()},  # type: ignore[misc]
    "vanished": vanish,
    "a folder": become_a_folder,
    "a link to nowhere": lead_nowhere,
}
DAMAGES = ALL_DAMAGES if FULL else dict([("empty", ALL_DAMAGES["empty"]), *list(ALL_DAMAGES.items())[::3]])


def mend(file: Path, whole: bytes) -> None:
    """Put the good file in place, whatever is there."""
    if file.is_dir():
        shutil.rmtree(file)
    draft = file.with_name("mended")
    draft.write_bytes(whole)
    draft.replace(file)


def problem(agent: ConfiguredAgent) -> str:
    """What the agent says of its file; nothing while it starts."""
    try:
        return str(agent.listing()["file_error"] or "")
    except Unavailable:
        return ""


def ports(agent: ConfiguredAgent) -> list[int]:
    return [forward["local_port"] for forward in agent.forwards()]


def names_a_line(text: str, file: Path) -> bool:
    """Whether it says where it is wrong, or that there is no file to be wrong."""
    return re.match(rf"(knot: )?({re.escape(str(file))}:\d+: |cannot read {re.escape(str(file))}: )", text) is not None


@pytest.mark.fault("agent's settings file torn while it runs", "the last good forwards go on, and it says which line is wrong")
def test_torn_settings_of_a_running_agent(own: Site, figure: Figure) -> None:
    """Whatever becomes of the file, connections go on, new ones are served, and list says file and line until it is mended."""
    own.stand_up()
    local, file = free_port(), own.near.file
    before = file.read_bytes()
    with Ledger() as ledger:
        whole = settings(local, ledger.service().port)
        mend(file, whole)
        line = ledger.served(local)
        try:
            for name, damage in DAMAGES.items():
                damage(file)
                said = until(lambda: problem(own.near), PATIENCE, f"{name} is noticed")
                assert names_a_line(said, file), (name, said)
                ledger.finish([ledger.served(local)])
                mend(file, whole)
                until(lambda: not problem(own.near), PATIENCE, f"{name} is mended")
            assert line.is_live
            ledger.finish([line])
        finally:
            mend(file, before)
        until(lambda: local not in ports(own.near), PATIENCE, "the forward is gone with its line")
    figure(f"torn in {len(DAMAGES)} ways: no connection lost, each said with file and line")


@pytest.mark.fault(
    "agent's settings file torn, then a restart", "starts with the last good forwards, or says what keeps it from it"
)
def test_torn_settings_at_a_start(own: Site, figure: Figure) -> None:
    """Where the settings can be read the agent starts with the forwards it had; else it ends at once and says file and line."""
    own.stand_up()
    local, file = free_port(), own.near.file
    before = file.read_bytes()
    started = []
    with Ledger() as ledger:
        whole = settings(local, ledger.service().port)
        mend(file, whole)
        ledger.finish([ledger.served(local)])
        try:
            for name, damage in DAMAGES.items():
                own.near.kill()
                damage(file)
                own.start("near")
                running = own.near.running
                assert running
                said = until(lambda: ended_with(own.near) or problem(own.near), PATIENCE, f"{name} is noticed")
                assert names_a_line(said, file), (name, said)
                if not ended_with(own.near):
                    ledger.finish([ledger.served(local)])
                    started.append(name)
                mend(file, whole)
            own.start("near")
            ledger.finish([ledger.served(local)])
        finally:
            mend(file, before)
            own.stand_up()
    assert "empty" in started
    figure(f"{len(started)} of {len(DAMAGES)} ways leave the settings whole, and it starts; else exit 2, with file and line")


def ended_with(agent: ConfiguredAgent) -> str:
    """The last word of an agent that has ended because of its file."""
    assert agent.running
    code = agent.running.process.poll()
    if code is None:
        return ""
    assert code == 2, agent.running.lines()
    return agent.running.lines()[-1]


def test_tears_are_tears(tmp_path: Path) -> None:
    """Each of them breaks the file."""
    file = tmp_path / "agent.yaml"
    for damage in DAMAGES.values():
        mend(file, settings(8080, 3000))
        check_file(file)
        damage(file)
        assert is_refused(file) or not file.read_bytes()


def is_refused(file: Path) -> bool:
    try:
        check_file(file)
    except BadInput:
        return True
    return False
