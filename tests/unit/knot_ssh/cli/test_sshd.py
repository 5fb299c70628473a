"""The script of `knot space sshd`: every value is in it, checked; no server can write a line of it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest

from knot_ssh.cli.sshd import SshdScript
from knot_ssh.errors import KnotError

SPACE = {"id": "0b5f2c1e-8a44-4d6e-9d0a-3f1f7c1a2b3c", "name": "db", "owner": "alice", "zone": "eu", "running": False}
CA = {f"{kind}_ca": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{letter * 43}" for kind, letter in (("user", "U"), ("host", "H"))}
INVITATION = {"join_token": "knotjoin_" + "a-_Z" * 24, "hub": "knot.example.com:2222"}
ANSWERS: tuple[dict[str, Any], ...] = (SPACE, INVITATION, CA)


def test_every_value_stands_in_it() -> None:
    """The script has all values in single quotes, and no place is left open."""
    text = SshdScript.of(*ANSWERS).text()
    values = [SPACE["id"], "alice@eu", "knot.example.com", "2222", *CA.values(), INVITATION["join_token"]]
    assert all(f"='{value}'" in text for value in values)
    assert "db.alice.eu.knot" in text.splitlines()[1]
    assert "@SPACE_ID@" not in text
    assert text.endswith("\nmain\n")


@pytest.mark.parametrize("hub", ["10.0.0.1:22", "[2001:db8::1]:2222"])
def test_hub_by_address(hub: str) -> None:
    """An IPv6 address stands without its brackets, as ssh's HostName wants it."""
    text = SshdScript.of(SPACE, {**INVITATION, "hub": hub}, CA).text()
    assert f"HUB_HOST='{hub.rpartition(':')[0].strip('[]')}'" in text


EVIL: list[object] = ["'; id; '", "x\ny", "x\n", "$(id)", "`id`", "a b", "%h", "\x1b[2J", "", None, 7, [], "@TOKEN@"]


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize(
    ("which", "key"),
    [(0, "id"), (0, "name"), (0, "owner"), (0, "zone"), (1, "join_token"), (1, "hub"), (2, "user_ca"), (2, "host_ca")],
)
def test_nothing_else_comes_in(which: int, key: str, value: object) -> None:
    """A server that answers anything but what belongs there is told of in one line, and there is no script."""
    answers = [dict(answer) for answer in ANSWERS]
    good = answers[which][key]
    for wrong in (value, f"{good}{value}" if value and isinstance(value, str) else None):
        answers[which][key] = wrong
        with pytest.raises(KnotError, match="no script can be made of"):
            SshdScript.of(*answers)
    del answers[which][key]
    with pytest.raises(KnotError, match="no script can be made of"):
        SshdScript.of(*answers)


def test_token_stays_out_of_the_repr() -> None:
    """Whoever prints the value shows no secret."""
    assert INVITATION["join_token"] not in repr(SshdScript.of(*ANSWERS))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck(tmp_path: Any) -> None:
    """shellcheck finds nothing in the script, nor in the one that it writes."""
    script = SshdScript.of(*ANSWERS).text()
    written = subprocess.run(["sh"], input=_functions(script), capture_output=True, text=True, check=True).stdout
    for text in (script, written):
        found = subprocess.run(["shellcheck", "-s", "sh", "-"], input=text, capture_output=True, text=True, check=False)
        assert found.stdout == ""


def _functions(script: str) -> str:
    return script.rpartition("\nmain\n")[0] + "\nHOST_KEY=/etc/ssh/ssh_host_ed25519_key\nwrite_refresh\n"
