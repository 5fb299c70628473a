"""Every door that a request for a forward may come in by, and what each can tell of the outcome.

A door answers facts by name; no door knows all of them. `expected_facts` knows all that a result implies.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import urllib3

from knot import space
from knot_ssh.cli.main import main
from knot_ssh.errors import KnotError
from tests.support.forwardtable import APPLIED, ENTRY, STORED, WHOLE, Result

Facts = dict[str, object]

ZONE, FAR_ZONE = "eu", "us"
"""Where spaces are, and where those are that are out of their reach."""
NOTHING = "Nothing to change.\n"
"""What `apply` says of a list that is there already."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A forward as somebody asks for it; spaces are named as they are typed."""

    source: str
    local_port: int
    target: str
    remote_port: int
    persistent: bool = False
    force: bool = False

    @property
    def body(self) -> space.ForwardEntry:
        return {
            "local_port": self.local_port,
            "space": self.target,
            "remote_port": self.remote_port,
            "persistent": self.persistent,
            "force": self.force,
        }

    @property
    def arrow(self) -> str:
        return f"{self.local_port} -> {self.target}:{self.remote_port}"

    @property
    def made(self) -> dict[str, object]:
        """The forward as every answer has it."""
        return {name: value for name, value in self.body.items() if name != "force"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a command has said."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody asks: an environment. `within` names the space whose own agent answers there, if it is the source's."""

    name: str
    environment: Mapping[str, str]
    folder: Path
    within: str = ""

    def words(self, wish: Wish) -> list[str]:
        """The source as it is typed here: not at all in the source itself."""
        return [] if wish.source == self.within else [wish.source]

    def run(self, *words: str) -> Said:
        """Run a command here, in this process."""
        stdout, stderr = io.StringIO(), io.StringIO()
        code: object = 0
        with (
            self.entered(),
            mock.patch.object(sys, "argv", ["knot", *words]),
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            try:
                main()
            except SystemExit as end:
                code = end.code
        assert isinstance(code, int)
        return Said(code, stdout.getvalue(), stderr.getvalue())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be here."""
        with mock.patch.dict(os.environ, self.environment, clear=True):
            yield


Way = Callable[[Place, Wish], Facts]


@dataclass(frozen=True, slots=True)
class Door:
    """A way of asking at a place."""

    place: Place
    way: Way

    def __str__(self) -> str:
        return f"{self.way.__name__} {self.place.name}"

    @property
    def is_apply(self) -> bool:
        return self.way in {command_apply, script_apply, http_apply}

    def ask(self, wish: Wish) -> Facts:
        return self.way(self.place, wish)


def forward_words(place: Place, wish: Wish) -> list[str]:
    """What is typed to forward."""
    flags = ["--persistent"] * wish.persistent + ["--force"] * wish.force
    return ["port", "forward", *place.words(wish), str(wish.local_port), wish.target, str(wish.remote_port), *flags]


def apply_words(place: Place, wish: Wish) -> list[str]:
    """What is typed to apply a file that has this forward alone."""
    file = place.folder / "forwards.yaml"
    lines = [f"{name}: {json.dumps(value)}" for name, value in wish.body.items()]
    file.write_text("forwards:\n  - " + "\n    ".join(lines) + "\n")
    return ["port", "apply", *place.words(wish), "-f", str(file)]


def command_forward(place: Place, wish: Wish) -> Facts:
    """`knot port forward`"""
    return _of_command(place, wish, place.run(*forward_words(place, wish)))


def command_apply(place: Place, wish: Wish) -> Facts:
    """`knot port apply -f FILE`"""
    return _of_command(place, wish, place.run(*apply_words(place, wish)))


def script_forward(place: Place, wish: Wish) -> Facts:
    """`knot.space.port_forward`"""
    try:
        with place.entered():
            made = space.port_forward(
                wish.source, wish.local_port, wish.target, wish.remote_port, persistent=wish.persistent, force=wish.force
            )
    except KnotError as error:
        return _of_error(error)
    return _of_forward(dict(made))


def script_apply(place: Place, wish: Wish) -> Facts:
    """`knot.space.port_apply`"""
    try:
        with place.entered():
            applied = space.port_apply(wish.source, [wish.body])
    except KnotError as error:
        return _of_error(error) | {"in_apply": WHOLE}
    return _of_applied(dict(applied))


def http_forward(place: Place, wish: Wish) -> Facts:
    """`POST …/port/forward`"""
    status, body = _post(place, wish, "forward", dict(wish.body))
    return {"status": status} | (_of_forward(body) if status == 200 else _of_problem(body))


def http_apply(place: Place, wish: Wish) -> Facts:
    """`POST …/port/apply`, first as a dry run, which must answer the same."""
    would = _post(place, wish, "apply", {"forwards": [wish.body], "dry_run": True})
    status, body = _post(place, wish, "apply", {"forwards": [wish.body]})
    assert would == (status, body)
    return {"status": status} | (_of_applied(body) if status == 200 else _of_problem(body) | {"in_apply": WHOLE})


def expected_facts(door: Door, wish: Wish, result: Result) -> Facts:
    """All that a door could tell of this result."""
    is_entry = door.is_apply and result.in_apply == ENTRY
    facts: Facts = {"exit_code": result.exit_code, "status": 200 if is_entry else result.status}
    if result.in_apply == APPLIED:
        source = "".join(f"{word}:" for word in door.place.words(wish))
        verb = "stored for when the space runs" if result is STORED else "established"
        line = f"Port forward {verb}: {source}{wish.arrow}\n"
        return facts | {"line": line, "forward": wish.made, "is_stopped": result is STORED, "stopped": []}
    sentence = result.sentence.format(
        source=wish.source,
        target=wish.target,
        local_port=wish.local_port,
        remote_port=wish.remote_port,
        zone=ZONE,
        target_zone=FAR_ZONE,
    )
    return facts | {"line": "", "code": result.code, "sentence": sentence, "in_apply": result.in_apply}


def _of_command(place: Place, wish: Wish, said: Said) -> Facts:
    facts: Facts = {"exit_code": said.code, "line": said.stdout}
    if said.code == 0:
        return facts
    [line] = [line for line in said.stderr.splitlines() if not line.startswith("Left alone")]
    assert line.startswith("knot: "), line
    return facts | {"sentence": line.removeprefix("knot: ").removeprefix(f"{wish.arrow}: ")}


def _of_error(error: KnotError) -> Facts:
    return {"status": error.http_status, "exit_code": error.exit_code, "code": error.code, "sentence": str(error)}


def _of_problem(body: dict[str, Any]) -> Facts:
    assert body == {"success": False, "error": body["error"], "code": body["code"]}
    return {"code": body["code"], "sentence": body["error"]}


def _of_forward(body: dict[str, Any]) -> Facts:
    names = ("local_port", "space", "remote_port", "persistent")
    return {"forward": {name: body[name] for name in names}, "is_stopped": body["state"] == "stopped"}


def _of_applied(body: dict[str, Any]) -> Facts:
    assert set(body) == {"applied", "stopped", "errors"}
    if not (body["applied"] or body["errors"]):
        return {"line": NOTHING, "stopped": body["stopped"]}
    if not body["errors"]:
        [made] = body["applied"]
        return {"forward": made, "stopped": body["stopped"]}
    [error] = body["errors"]
    assert (body["applied"], set(error)) == ([], {"local_port", "error", "code"})
    return {"code": error["code"], "sentence": error["error"], "in_apply": ENTRY}


def _post(place: Place, wish: Wish, what: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    environment = place.environment
    url = f"{environment['KNOT_SERVER']}/space-io/{wish.source}/port/{what}"
    headers = {"Authorization": f"Bearer {environment['KNOT_TOKEN']}"}
    with urllib3.PoolManager(retries=False) as pool:
        response = pool.request("POST", url, json=body, headers=headers)
    answer: dict[str, Any] = response.json()
    return response.status, answer
