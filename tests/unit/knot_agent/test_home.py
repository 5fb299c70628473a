"""The agent's folder: one agent at a time, and a join that was cut short is taken up again."""

from __future__ import annotations

import contextlib
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_agent.home import HOST_KEY_FILE, NEXT_HOST_KEY_FILE, STATE_FILE, Home
from knot_keys.keyfiles import new_key, public_line
from knot_ssh.errors import Conflict, KnotError, LooseFile
from knot_ssh.files import LOCK_FILE
from tests.unit.knot_agent.conftest import Office

ONE, TWO = "00112233445566aa", "00112233445566bb"

HOLDER = """
import sys
from pathlib import Path
from knot_agent.home import Home

home = Home(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Home]:
    """The folder as a new agent finds it."""
    with contextlib.closing(Home(folder)) as home:
        yield home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "agent"


@pytest.mark.usefixtures("loose_umask")
def test_everything_is_private(folder: Path, office: Office) -> None:
    """The folder is 0700 and every file in it 0600, under any umask."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(home.identity().key, home.host().key))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}
    assert {STATE_FILE, LOCK_FILE, HOST_KEY_FILE, f"identity-{ONE}"} < set(modes)


def test_new_folder_is_of_nobody(folder: Path) -> None:
    """An agent that has not joined has no membership, and no identity to show."""
    with opened(folder) as home:
        assert (home.membership, home.token_id) == (None, None)
        with pytest.raises(KnotError, match="has not joined"):
            home.identity()


def test_join_cut_short_uses_the_same_key(folder: Path) -> None:
    """An agent that died before it had its answer comes back to the same token with the same key."""
    with opened(folder) as home:
        key = home.key_for(ONE)
    with opened(folder) as home:
        assert home.key_for(ONE) == key
        assert home.membership is None


def test_each_token_has_a_key_of_its_own(folder: Path) -> None:
    """Another token gets another key; the first one's is still there."""
    with opened(folder) as home:
        first = home.key_for(ONE)
        assert home.key_for(TWO) != first
        assert home.key_for(ONE) == first


def test_membership_is_remembered(folder: Path, office: Office) -> None:
    """What was joined is known after a restart, with the key that was enrolled."""
    with opened(folder) as home:
        key = home.key_for(ONE)
        home.joined(ONE, office.membership())
    with opened(folder) as home:
        assert (home.membership, home.token_id) == (office.membership(), ONE)
        assert home.identity().key == key


def test_second_join_cut_short_changes_nothing(folder: Path, office: Office) -> None:
    """Until another token has been answered, the agent is what it was, with its key and certificates."""
    with opened(folder) as home:
        key = home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(key, home.host().key))
        home.key_for(TWO)
    with opened(folder) as home:
        assert home.token_id == ONE
        assert (home.identity().key, home.identity().certificate is not None) == (key, True)


def test_joining_again_switches(folder: Path, office: Office) -> None:
    """A second join puts key and membership in place of the old ones, which leave nothing behind."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(home.identity().key, home.host().key))
        key = home.key_for(TWO)
        home.joined(TWO, office.membership("other"))
        assert home.membership == office.membership("other")
        assert (home.identity().key, home.identity().certificate, home.host().certificate) == (key, None, None)
    assert not [path.name for path in folder.iterdir() if ONE in path.name]


def test_joining_again_keeps_the_host_key(folder: Path, office: Office) -> None:
    """Joining again keeps the host key but drops its certificate: the hub revokes that and not the key."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        before = home.host().key
        home.keep(office.certificates(home.identity().key, before))
        assert home.host().certificate
        home.key_for(TWO)
        home.joined(TWO, office.membership())
        assert (home.host().key, home.host().certificate) == (before, None)
    with opened(folder) as home:
        assert (home.host().key, home.host().certificate) == (before, None)


def test_same_answer_again_keeps_the_certificates(folder: Path, office: Office) -> None:
    """The same token's answer, heard again, changes neither keys nor certificates."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(home.identity().key, home.host().key))
        host = home.host().key
        home.joined(ONE, office.membership())
        assert home.identity().certificate
        assert home.host().certificate
        assert home.host().key == host


def test_certificates_are_kept(folder: Path, office: Office) -> None:
    """Certificates are there again after a restart, beside their keys."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        issued = office.certificates(home.identity().key, home.host().key)
        home.keep(issued)
    with opened(folder) as home:
        for credential, line in ((home.identity(), issued.client), (home.host(), issued.host)):
            assert credential.certificate
            assert credential.certificate.export_certificate().decode().split()[1] == line.split()[1]


def test_certificate_of_another_key_is_not_used(folder: Path, office: Office) -> None:
    """A certificate that is not for the key beside it is as good as none."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(home.key_for(TWO), home.key_for(TWO)))
        assert home.identity().certificate is None
        assert home.host().certificate is None


def test_news_of_the_membership_are_kept(folder: Path, office: Office) -> None:
    """What the hub says of the space now is remembered, and the key stays."""
    with opened(folder) as home:
        key = home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.update(office.membership("renamed"))
    with opened(folder) as home:
        assert home.membership
        assert (home.membership.space, home.identity().key) == ("renamed", key)


def test_two_agents_in_one_folder(folder: Path) -> None:
    """A second agent is refused while the first runs, and let in when it has ended."""
    with opened(folder), pytest.raises(KnotError, match=f"another agent is running in {folder}"):
        Home(folder)
    with opened(folder):
        pass


def test_agent_that_was_killed_frees_the_folder(folder: Path) -> None:
    """Another process's agent keeps the folder while it lives, and a killed one leaves no lock behind."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(KnotError, match="another agent is running"):
            Home(folder)
        holder.kill()
    with opened(folder) as home:
        assert home.membership is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"token_id": "x"}', b"\xff", b"null"])
def test_damaged_state(folder: Path, data: bytes) -> None:
    """A damaged state is an error that says what to do, leaves the file as it is, and gives the folder free again."""
    with opened(folder):
        pass
    (folder / STATE_FILE).write_bytes(data)
    (folder / STATE_FILE).chmod(0o600)
    for _ in range(2):
        with pytest.raises(KnotError, match=f"{STATE_FILE} is damaged: "):
            Home(folder)
    assert (folder / STATE_FILE).read_bytes() == data


def test_loose_state(folder: Path, office: Office) -> None:
    """A state that others can change is refused: it says whom to trust."""
    with opened(folder) as home:
        home.joined(ONE, office.membership())
    (folder / STATE_FILE).chmod(0o622)
    with pytest.raises(LooseFile):
        Home(folder)


def test_loose_key(folder: Path) -> None:
    """A key that others can read is refused, not replaced."""
    with opened(folder) as home:
        home.key_for(ONE)
        (folder / f"identity-{ONE}").chmod(0o644)
        with pytest.raises(LooseFile):
            home.key_for(ONE)


def test_torn_certificate(folder: Path, office: Office) -> None:
    """A certificate file that makes no sense is as good as none: the hub gives a new one."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        home.keep(office.certificates(home.identity().key, home.host().key))
        for data in (b"", b"nonsense", b"\xff"):
            (folder / f"identity-{ONE}-cert.pub").write_bytes(data)
            assert home.identity().certificate is None


def test_membership_of_the_version_before(folder: Path, office: Office) -> None:
    """An agent.json that names one CA of each kind is read as one that trusts these alone."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
    document = json.loads((folder / STATE_FILE).read_text())
    for kind in ("user_ca", "host_ca"):
        [document["membership"][kind]] = document["membership"].pop(f"{kind}s")
    del document["membership"]["distrusted"]
    (folder / STATE_FILE).write_text(json.dumps(document))
    with opened(folder) as home:
        assert home.membership == office.membership()


@pytest.mark.usefixtures("loose_umask")
def test_next_host_key(folder: Path, office: Office) -> None:
    """The next host key is made once, 0600, and shown when it is activated; its certificate is not that of the former one."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        first = public_line(home.host().key)
        home.keep(office.certificates(home.identity().key, home.host().key))
        line = home.prepare_host_key()
        assert home.prepare_host_key() == line != first
        assert stat.S_IMODE((folder / NEXT_HOST_KEY_FILE).stat().st_mode) == 0o600
        assert (public_line(home.host().key), home.host().certificate is None) == (first, False)
        for _ in range(2):  # whoever asks twice may not have heard the first answer
            home.activate_host_key(line)
            assert (public_line(home.host().key), home.host().certificate) == (line, None)
        assert (folder / f"{HOST_KEY_FILE}.pub").read_text().split()[:2] == line.split()
        assert not list(folder.glob(f"{NEXT_HOST_KEY_FILE}*"))


def test_other_host_key_is_not_activated(folder: Path, office: Office) -> None:
    """A host key that this agent has not prepared is refused, and the one in use stays."""
    with opened(folder) as home:
        home.key_for(ONE)
        home.joined(ONE, office.membership())
        before = public_line(home.host().key)
        for prepare in (False, True):
            if prepare:
                home.prepare_host_key()
            with pytest.raises(Conflict, match="prepare another"):
                home.activate_host_key(public_line(new_key("another")))
        assert public_line(home.host().key) == before
