"""The snippets of the user documentation, word for word, in a system of four spaces with loopbacks of their own.

The copies in tests/resources/documentation are verbatim; in the `curl` command alone the host and the id of the space are
put in. In the spaces nothing is configured; on the desktop `knot login` was run.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.networks import network, reason_without_networks
from tests.support.placed import SERVER, PlacedAgent, PlacedSystem
from tests.support.services import answering, ask, is_refused, serving
from tests.support.waiting import until

SNIPPETS = Path(__file__).parents[1] / "resources" / "documentation"
SECONDS = 60
SERVICES = {"backend-api": 3000, "database": 5432, "old-service": 8080}
API = {"local_port": 8080, "space": "backend-api", "remote_port": 3000, "persistent": False}
DATABASE = {"local_port": 5432, "space": "database", "remote_port": 5432, "persistent": False}
OLD = {"local_port": 9090, "space": "old-service", "remote_port": 8080, "persistent": False}


@dataclass(frozen=True, slots=True)
class Context:
    """Where somebody types: a place of the network, and a home folder that says who they are."""

    system: PlacedSystem
    place: str
    home: Path

    def run(self, command: list[str], **variables: str) -> str:
        """What a command says that goes well."""
        outside = self.system.environment({"HOME": str(self.home)})
        path = f"{Path(sys.executable).parent}:{outside['PATH']}"
        env = {name: value for name, value in outside.items() if not name.startswith("XDG_")} | {"PATH": path} | variables
        with self.system.network[self.place].inside():
            result = subprocess.run(
                command, env=env, cwd=self.home, capture_output=True, text=True, timeout=SECONDS, check=False
            )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@dataclass(frozen=True, slots=True)
class Spaces:
    """frontend, and the spaces it may want."""

    system: PlacedSystem
    frontend: PlacedAgent
    inside: Context
    desktop: Context

    def ask(self, port: int) -> bytes:
        """What answers at a port of frontend."""
        with self.frontend.place.inside():
            return ask(port)

    def is_refused(self, port: int) -> bool:
        with self.frontend.place.inside():
            return is_refused(port)

    def have(self, *forwards: dict[str, object]) -> None:
        """Give frontend these forwards and no others."""
        self.system.api("alice").post("space-io", "frontend", "port", "apply", body={"forwards": list(forwards)})

    def has(self) -> list[dict[str, object]]:
        """The forwards of frontend."""
        listing = self.system.api("alice").get("space-io", "frontend", "port", "list")["forwards"]
        return [{name: entry[name] for name in API} for entry in listing]


@pytest.fixture(scope="module")
def spaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spaces]:
    """The system, each space with its service."""
    reason = reason_without_networks()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("documentation")
    with network(SERVER, "frontend", *SERVICES) as net, contextlib.ExitStack() as stack:
        system = PlacedSystem(folder, net)
        stack.callback(system.close)
        system.start()
        home = folder / "frontend"
        frontend = PlacedAgent(system, "frontend", "alice", {}, folder)
        frontend.folder = home / ".local" / "share" / "knot" / "agent"
        frontend.folder.parent.mkdir(parents=True)
        frontend.start()
        for name, port in SERVICES.items():
            agent = PlacedAgent(system, name, "alice", {}, folder)
            agent.start()
            with agent.place.inside():
                stack.enter_context(serving(answering(name.encode()), port=port))
        desktop = Context(system, SERVER, folder / "desktop")
        desktop.home.mkdir()
        desktop.run(["knot", "login", "--server", system.url, "--token", system.user("alice")])
        yield Spaces(system, frontend, Context(system, "frontend", home), desktop)


@pytest.fixture
def clean(spaces: Spaces) -> Spaces:
    """The same, with no forwards."""
    spaces.have()
    return spaces


@pytest.mark.parametrize("where", ["in-space", "desktop"])
def test_three_commands(clean: Spaces, where: str) -> None:
    """Forward, list and stop, as typed in a space and on the desktop, do what they say, in the words they promise."""
    forward, listing, stop = (SNIPPETS / f"{where}.sh").read_text().splitlines()
    context = clean.inside if where == "in-space" else clean.desktop
    source, space = ("", "") if where == "in-space" else ("frontend:", " in space 'frontend'")
    assert context.run(["bash", "-c", forward]) == f"Port forward established: {source}8080 -> backend-api:3000\n"
    assert clean.ask(8080) == b"backend-api"
    until(lambda: "(direct)" in context.run(["bash", "-c", listing]), what="the link is direct")
    shown = f"Active port forwards{space}:\n  8080 -> backend-api:3000 (direct)\n"
    assert context.run(["bash", "-c", listing]) == shown
    assert context.run(["bash", "-c", stop]) == f"Port forward on port 8080 stopped{space}.\n"
    assert clean.is_refused(8080)
    assert context.run(["bash", "-c", listing]) == f"No active port forwards{space}.\n"


@pytest.mark.parametrize("where", ["in-space", "desktop"])
def test_script(clean: Spaces, where: str) -> None:
    """The Python snippet replaces the forwards of frontend and says so, in the space and on the desktop alike."""
    clean.have(OLD)
    assert clean.ask(9090) == b"old-service"
    context = clean.inside if where == "in-space" else clean.desktop
    printed = context.run([sys.executable, "-W", "error", str(SNIPPETS / "apply.py")])
    said = re.fullmatch(r"Applied: (.*)\nStopped: (.*)\n", printed)
    assert said, printed
    assert ast.literal_eval(said[1]) == [DATABASE, API]
    assert ast.literal_eval(said[2]) == [OLD]
    assert clean.has() == [DATABASE, API]
    assert clean.ask(8080) == b"backend-api"
    assert clean.ask(5432) == b"database"
    assert clean.is_refused(9090)
    again = context.run([sys.executable, "-W", "error", str(SNIPPETS / "apply.py")])
    assert again == "Applied: []\nStopped: []\n"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_curl(clean: Spaces) -> None:
    """The `curl` command gets the response that is printed below it: what was there already is in neither list."""
    clean.have(DATABASE, OLD)
    command = (SNIPPETS / "apply.sh").read_text()
    for ours, documented in (clean.system.url, "https://knot.example.com"), (clean.frontend.id, "{space_id}"):
        assert documented in command
        command = command.replace(documented, ours)
    answer = clean.desktop.run(["bash", "-c", command], TOKEN=clean.system.user("alice"))
    assert json.loads(answer) == json.loads((SNIPPETS / "apply-response.json").read_text())
    assert clean.has() == [DATABASE, API]
    assert clean.ask(5432) == b"database"
    until(lambda: clean.is_refused(9090), what="the old forward is gone")
