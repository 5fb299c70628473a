"""The command line: what it prints, what it imports, and how it completes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import Pair
from tests.support.services import free_port
from tests.support.system import knot_command


def test_texts_inside_a_space(pair: Pair) -> None:
    """Inside, the wording names port and target."""
    space = pair.system.space("talker")
    local = free_port()
    assert space.knot("port", "list") == "No active port forwards."
    made = space.knot("port", "forward", str(local), "backend-api", "3000", "--persistent")
    assert made == f"Port forward established: {local} -> backend-api:3000"
    lines = space.knot("port", "list").splitlines()
    assert lines[0] == "Active port forwards:"
    assert lines[1].startswith(f"  {local} -> backend-api:3000 (persistent")
    assert space.knot("port", "stop", str(local)) == f"Port forward on port {local} stopped."


def test_texts_from_the_desktop(pair: Pair) -> None:
    """From the desktop, the wording names the source too, and login keeps server and token."""
    pair.system.space("desk")
    local = str(free_port())
    token = pair.system.user("alice")
    pair.system.knot("login", "--server", pair.system.url, "--token", token)
    try:
        made = pair.system.knot("port", "forward", "desk", local, "backend-api", "3000")
        assert made == f"Port forward established: desk:{local} -> backend-api:3000"
        assert pair.system.knot("port", "list", "desk").splitlines()[0] == "Active port forwards in space 'desk':"
        assert pair.system.knot("port", "stop", "desk", local) == f"Port forward on port {local} stopped in space 'desk'."
        assert pair.system.knot("port", "list", "desk") == "No active port forwards in space 'desk'."
    finally:
        (pair.system.folder / "home" / ".config" / "knot" / "config.yaml").unlink()


def test_login_reads_the_token_from_standard_input(pair: Pair) -> None:
    """`--token -` keeps the token out of process lists; a wrong one is not kept."""
    config = pair.system.folder / "home" / ".config" / "knot" / "config.yaml"
    words = ("login", "--server", pair.system.url, "--token", "-")
    assert "API token is not accepted" in pair.system.knot(*words, stdin="knot_a_b\n", code=1)
    assert not config.exists()
    pair.system.knot(*words, stdin=pair.system.user("alice") + "\n")
    assert config.stat().st_mode & 0o777 == 0o600
    config.unlink()


def test_server_and_token_may_stand_anywhere(pair: Pair) -> None:
    """--server and --token are taken before, between and after the command's words."""
    server, token = ("--server", pair.system.url), ("--token", pair.system.user("alice"))
    words = [
        (*server, *token, "port", "list", "frontend"),
        ("port", *server, "list", *token, "frontend"),
        ("port", "list", "frontend", *server, *token),
    ]
    for form in words:
        assert "port forwards" in pair.system.knot(*form)


def test_flags_beat_the_environment(pair: Pair) -> None:
    """A flag is stronger than the variable of the same meaning."""
    env = {"KNOT_SERVER": "http://127.0.0.1:1", "KNOT_TOKEN": "knot_a_b"}
    words = ("--server", pair.system.url, "--token", pair.system.user("alice"))
    assert "frontend" in pair.system.knot("space", "list", *words, env=env)


def test_lists_are_json_on_request(pair: Pair) -> None:
    """Every list has a JSON form with the API's own fields."""
    spaces = json.loads(pair.system.knot("space", "list", "--json", user="alice"))["spaces"]
    fields = {"id", "name", "owner", "zone", "running", "agentless", "host_key", "host_keys", "created_at", "last_seen"}
    assert all(set(space) == fields for space in spaces)
    assert json.loads(pair.system.knot("user", "list", "--json", user="admin"))["users"]
    local = str(free_port())
    pair.frontend.knot("port", "forward", local, "backend-api", "3000")
    forward = next(entry for entry in pair.frontend.forwards() if entry["local_port"] == int(local))
    assert {"local_port", "space", "remote_port", "persistent", "mode", "state"} <= set(forward)
    inside = pair.frontend.knot("port", "list", "--json")
    assert json.loads(inside) == json.loads(pair.system.knot("port", "list", "frontend", "--json", user="alice"))


def test_tokens_stand_alone_on_stdout(pair: Pair) -> None:
    """Commands that print a secret print it alone on stdout, so that `$(…)` takes just that."""
    assert pair.system.user("dora").startswith("knot_")
    assert len(pair.system.user("dora").splitlines()) == 1
    token = pair.system.knot("space", "create", "hers", "--zone", "eu", user="dora")
    assert token.startswith("knotjoin_")
    assert len(token.splitlines()) == 1


def test_port_list_in_a_space_imports_little() -> None:
    """Inside a space the command line loads no web framework, no SSH, no YAML, no validation."""
    code = (
        "import sys, knot_ssh.cli.main, knot_ssh.cli.port, knot_ssh.local;"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"fastapi", "starlette", "uvicorn", "sqlalchemy", "asyncssh", "cryptography", "pydantic", "yaml", "urllib3"}
    assert not heavy & set(loaded)
    assert not {"asyncio", "rich", "structlog", "knot_server", "knot_agent", "knot_keys"} & set(loaded)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    """Each shell gets its script."""
    result = subprocess.run(knot_command("completion", shell), capture_output=True, text=True, check=True)
    assert "_KNOT_COMPLETE" in result.stdout


def test_completion_completes(pair: Pair) -> None:
    """The shell is offered the commands."""
    env = {"_KNOT_COMPLETE": "bash_complete", "COMP_WORDS": "knot po", "COMP_CWORD": "1"}
    assert pair.system.knot(env=env) == "plain,port"


def test_version(pair: Pair) -> None:
    """`--version` names the program and its version."""
    from knot_ssh import __version__

    assert pair.system.knot("--version") == f"knot {__version__}"


def test_kept_token_goes_to_the_kept_server_alone(pair: Pair) -> None:
    """The token that `login` kept is never sent to a server that only a flag or a variable names."""
    pair.system.knot("login", "--server", pair.system.url, "--token", pair.system.user("alice"))
    try:
        assert "frontend" in pair.system.knot("space", "list", "--server", pair.system.url + "/")
        other = pair.system.url.replace("127.0.0.1", "localhost")
        assert "is for " + pair.system.url in pair.system.knot("space", "list", "--server", other, code=1)
    finally:
        (pair.system.folder / "home" / ".config" / "knot" / "config.yaml").unlink()
