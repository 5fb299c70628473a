"""`knot ssh`, with a real server and stock ssh: from a person's empty home folder and back to it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Pair
from tests.support.services import answering, serving
from tests.support.system import System, knot_command, running_system

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
TIMEOUT = 60


class Person:
    """Somebody at a desktop, with a home folder of their own."""

    def __init__(self, system: System, home: Path, user: str = "alice") -> None:
        home.mkdir(exist_ok=True)
        self.system = system
        self.home = home
        self.user = user
        self.env = {"HOME": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
        self.config = home / ".ssh" / "config"
        self.folder = home / ".ssh" / "knot"

    def knot(self, *words: str, code: int = 0) -> str:
        """`knot ssh …`; gives stdout, or the one line on stderr when it is to fail."""
        return self.system.knot("ssh", *words, user=self.user, env=self.env, code=code)

    def ssh(self, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Stock ssh, reading this home's config (it takes the home folder from the passwd entry)."""
        return subprocess.run(
            ["ssh", "-F", str(self.config), *words],
            env=self.system.as_user(self.user, self.env | (env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=cwd or self.home,
        )

    def reaches(self, host: str, **options: Any) -> bool:
        """Whether `ssh -W` by this name reaches a service behind the space's endpoint."""
        with serving(answering(b"reached")) as port:
            return self.ssh("-W", f"localhost:{port}", host, **options).stdout == "reached"

    def change_state(self, **changes: Any) -> None:
        """Make what is remembered something else."""
        path = self.folder / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "state.json").read_text())
        return found

    def files(self) -> set[str]:
        return {str(path.relative_to(self.home)) for path in self.home.rglob("*")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A system of its own: here it matters which users there are, and which spaces and zones they have."""
    with running_system(tmp_path_factory.mktemp("knot")) as system:
        yield Pair(system, system.space("frontend"), system.space("backend-api"))


@pytest.fixture
def alice(pair: Pair, tmp_path: Path) -> Person:
    """alice, set up."""
    person = Person(pair.system, tmp_path / "home")
    person.knot("setup", "--yes")
    return person


@pytest.mark.parametrize("name", ["backend-api.knot", "backend-api.alice.eu.knot"])
def test_space_is_reached_by_its_names(alice: Person, name: str) -> None:
    """After one command `ssh` reaches a space by either name, with nothing else on its command line."""
    assert alice.reaches(name)


def test_names_that_lead_nowhere(alice: Person) -> None:
    """A name that no space has, and another user's space, are refused by the hub."""
    alice.system.space("secret", "bob", run=False)
    for name in ("nobody.knot", "secret.knot", "secret.bob.eu.knot"):
        assert "no space of yours" in alice.ssh("-W", "localhost:1", name).stderr


def test_hub_as_a_spaces_name(alice: Person) -> None:
    """A space may be called `hub`: that is what `hub.knot` then reaches."""
    alice.system.space("hub")
    assert alice.reaches("hub.knot")


def test_new_space_is_found_at_once(alice: Person) -> None:
    """A space that is made after the setup is reached without a command in between."""
    alice.system.space("late")
    assert "late" not in (alice.folder / "spaces").read_text()
    assert alice.reaches("late.knot")
    assert "late" in (alice.folder / "spaces").read_text()


def test_renamed_space(alice: Person) -> None:
    """The new name is found at once; the old one means the same space until the next refresh, and then nothing."""
    alice.system.space("before")
    alice.knot("refresh")
    alice.system.knot("space", "rename", "before", "after", user="alice")
    assert alice.reaches("before.knot")
    assert alice.reaches("after.knot")
    assert not alice.reaches("before.knot")


def test_made_anew_under_the_same_name(alice: Person) -> None:
    """A space that took the name of a deleted one is not taken for it; a refresh makes the name mean the new one."""
    alice.system.space("twice", run=False)
    alice.knot("refresh")
    alice.system.knot("space", "delete", "twice", user="alice")
    alice.system.space("twice")
    assert "no space of yours" in alice.ssh("-W", "localhost:1", "twice.knot").stderr
    alice.knot("refresh")
    assert alice.reaches("twice.knot")


def test_due_certificate_is_renewed_by_ssh(alice: Person) -> None:
    """ssh renews what is due before it connects, and leaves alone what is not."""
    before = (alice.folder / "id-cert.pub").read_bytes()
    assert alice.reaches("backend-api.knot")
    assert (alice.folder / "id-cert.pub").read_bytes() == before
    alice.change_state(valid_after=1, valid_before=3, renew_after=2)
    assert alice.reaches("backend-api.knot")
    assert (alice.folder / "id-cert.pub").read_bytes() != before


def test_missing_files_are_made_anew_by_ssh(alice: Person) -> None:
    """Each file that ssh was told of and that is gone is there again when it is needed."""
    for name in ("id-cert.pub", "known_hosts", "krl"):
        (alice.folder / name).unlink()
        assert alice.reaches("backend-api.knot"), name


def test_lifetime(pair: Pair, tmp_path: Path) -> None:
    """The lifetime that was asked for is that of the certificate, also after a refresh."""
    person = Person(pair.system, tmp_path / "home")
    person.knot("setup", "--yes", "--lifetime", "120")
    for _ in range(2):
        found = json.loads(person.knot("status", "--json"))
        assert found["valid_before"] - found["valid_after"] == 180
        person.knot("refresh")


def test_status(pair: Pair, alice: Person) -> None:
    """What is held is said from the files, for people and as JSON."""
    found = json.loads(alice.knot("status", "--json"))
    key = subprocess.run(["ssh-keygen", "-l", "-f", found["identity"]], capture_output=True, text=True, check=True).stdout
    assert found["fingerprint"] == key.split()[1]
    assert (found["server"], found["hub"]) == (alice.system.url, alice.system.hub)
    assert (found["principals"], found["valid"]) == (["alice@eu"], True)
    assert found["valid_after"] <= time.time() < found["valid_before"]
    assert {"name": "backend-api", "full_name": "backend-api.alice.eu.knot", "id": pair.backend.id} in found["spaces"]
    text = alice.knot("status")
    assert f"server      {alice.system.url}\n" in text
    assert "space       backend-api.knot, backend-api.alice.eu.knot" in text
    assert "not valid now" not in text


def test_not_set_up(pair: Pair, tmp_path: Path) -> None:
    """Without a setup, status and refresh say so in one line, and there is nothing to remove."""
    person = Person(pair.system, tmp_path / "home")
    for words in (["status"], ["refresh"], ["refresh", "--if-due", "--quiet"]):
        assert "run `knot ssh setup`" in person.knot(*words, code=1)
    assert "Nothing to remove" in person.knot("setup", "--remove")
    assert person.files() == set()


def test_user_without_a_space(pair: Pair, tmp_path: Path) -> None:
    """Who owns no space is told so in one line, and nothing is left behind."""
    person = Person(pair.system, tmp_path / "home", "carol")
    assert "you own no space yet" in person.knot("setup", "--yes", code=1)
    assert person.files() == set()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["setup"], "there is no terminal to ask on"),
        (["setup", "--yes", "--lifetime", "59"], "not in the range"),
        (["setup", "--remove", "--identity", "x"], "--remove takes neither"),
        (["setup", "--yes", "--identity", "/nowhere"], "cannot read the public key /nowhere.pub"),
        (["setup", "--yes", "--server", "nowhere"], "is not a URL"),
    ],
)
def test_wrong_usage(pair: Pair, tmp_path: Path, words: list[str], complaint: str) -> None:
    """What cannot be meant is exit code 2 and one line, and nothing is written."""
    person = Person(pair.system, tmp_path / "home")
    assert complaint in person.knot(*words, code=2)
    assert person.files() == set()


def test_refresh_for_another_server(alice: Person) -> None:
    """A refresh is for the server of the setup; another one needs a setup."""
    assert "run `knot ssh setup --server URL`" in alice.knot("refresh", "--server", "http://127.0.0.1:1", code=2)


def asked_on_a_terminal(person: Person, answer: bytes) -> tuple[int, str]:
    """Run a setup on a terminal and answer its question; gives the exit code and what was shown."""
    ours, theirs = pty.openpty()
    with contextlib.closing(os.fdopen(ours, "r+b", buffering=0)) as terminal:
        os.write(ours, answer)
        process = subprocess.run(
            knot_command("ssh", "setup"),
            env=person.system.as_user(person.user, person.env),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        os.close(theirs)
        terminal.flush()
    return process.returncode, process.stderr


def test_lines_are_shown_and_asked_about(pair: Pair, tmp_path: Path) -> None:
    """On a terminal the lines are shown first; without a yes nothing changes, and what is unchanged is not asked again."""
    person = Person(pair.system, tmp_path / "home")
    person.config.parent.mkdir(mode=0o700)
    person.config.write_text("Host a\n")
    code, said = asked_on_a_terminal(person, b"n\n")
    assert (code, person.config.read_text()) == (1, "Host a\n")
    assert f'Include "{person.folder}/ssh_config"' in said
    assert said.endswith("knot: nothing was changed\n")
    assert asked_on_a_terminal(person, b"y\n")[0] == 0
    assert person.config.read_text().endswith("Host a\n")
    person.knot("setup")


def test_kept_login_serves_ssh(pair: Pair, tmp_path: Path) -> None:
    """With a kept login ssh needs nothing in its environment; without one setup says what will be missing."""
    system, person = pair.system, Person(pair.system, tmp_path / "home")
    assert "no login is kept" in system.run("ssh", "setup", "--yes", user="alice", env=person.env).stderr
    system.knot("login", "--server", system.url, "--token", system.user("alice"), env=person.env)
    person.user = ""
    assert "no login" not in system.run("ssh", "setup", "--yes", env=person.env).stderr
    person.change_state(renew_after=1)
    assert person.reaches("backend-api.knot")
    assert person.state()["renew_after"] > time.time()


def test_no_login_for_the_refresh(alice: Person) -> None:
    """Where neither a login is kept nor a token given, ssh says so and goes on with the certificate it has."""
    alice.change_state(renew_after=1)
    alice.user = ""
    result = alice.ssh("-W", "localhost:1", "backend-api.knot")
    assert "knot: no API token was given" in result.stderr
    assert "connection refused" in result.stderr


@pytest.fixture
def agent_socket(tmp_path: Path) -> Iterator[str]:
    """An ssh-agent's socket."""
    socket = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.PIPE)
    try:
        assert process.stdout
        process.stdout.readline()
        yield str(socket)
    finally:
        process.terminate()
        process.communicate()


def test_key_in_an_ssh_agent(pair: Pair, tmp_path: Path, agent_socket: str) -> None:
    """A key of the person's own serves while an ssh-agent alone has its private half; remove leaves it alone."""
    person, key = Person(pair.system, tmp_path / "home"), tmp_path / "mine"
    agent = {"SSH_AUTH_SOCK": agent_socket}
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", str(key)], check=True)
    subprocess.run(["ssh-add", "-q", str(key)], env=os.environ | agent, check=True)
    key.unlink()
    person.knot("setup", "--yes", "--identity", str(key))
    assert person.reaches("backend-api.knot", env=agent)
    assert not person.reaches("backend-api.knot")
    person.knot("setup", "--remove")
    assert key.with_name("mine.pub").exists()


def test_folder_of_ssh_is_not_searched(alice: Person, tmp_path: Path) -> None:
    """What lies in the folder where somebody runs ssh is not run by it."""
    package = tmp_path / "repository" / "knot_ssh"
    package.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (package / name).write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert alice.reaches("backend-api.knot", cwd=package.parent)
    assert not (tmp_path / "owned").exists()
    subprocess.run([sys.executable, "-m", "knot_ssh"], cwd=package.parent, check=False)
    assert (tmp_path / "owned").exists(), "without care it would be run"


def test_server_away(tmp_path: Path) -> None:
    """Away, the server is missed only by who needs it: what is held stays, ssh is told nothing until it has run out, and
    a removal needs nobody."""
    (tmp_path / "system").mkdir()
    with running_system(tmp_path / "system") as system:
        system.space("frontend", run=False)
        person = Person(system, tmp_path / "home")
        person.knot("setup", "--yes")
        assert system.server
        system.server.stop()
        held = {path: path.read_bytes() for path in person.folder.iterdir()}
        assert "did not answer" in person.knot("refresh", code=1)
        assert system.run("ssh", "refresh", "--if-due", "--quiet", user="alice", env=person.env).returncode == 0
        assert {path: path.read_bytes() for path in held} == held
        person.change_state(renew_after=1)
        quiet = system.run("ssh", "refresh", "--if-due", "--quiet", user="alice", env=person.env)
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (1, "", "")
        person.change_state(valid_before=2)
        said = person.knot("refresh", "--if-due", "--quiet", code=1)
        assert "has run out" in said
        person.knot("setup", "--remove")
        assert person.files() == set()
