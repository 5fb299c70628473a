"""The documentation names everything there is."""

from __future__ import annotations

import inspect
import re
import textwrap
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest

import knot
import knot.space
import knot_agent.cli
import knot_server.http.app  # noqa: F401  (errors are found by their classes)
from knot_agent.settings import AgentSettings
from knot_server.settings import ServerSettings
from knot_server.usecases.audit import Event
from knot_ssh.errors import KnotError
from knot_ssh.wire import Applied, ForwardList, ForwardStatus, Message

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def commands(group: click.Command, path: str) -> list[tuple[str, click.Command]]:
    """Every command below this one, with the words that call it."""
    if not isinstance(group, click.Group):
        return [(path, group)]
    return [found for name, child in group.commands.items() for found in commands(child, f"{path} {name}")]


def all_commands() -> list[tuple[str, click.Command]]:
    return [found for point in entry_points(group="knot.commands") for found in commands(point.load(), f"knot {point.name}")]


@pytest.mark.parametrize("name", AgentSettings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    """Each setting of the agent stands in the table of docs/cli.md."""
    assert f"| `{name}` |" in (DOCS / "cli.md").read_text()


@pytest.mark.parametrize("name", ServerSettings.model_fields)
def test_every_setting_of_the_server_is_documented(name: str) -> None:
    """Each setting of the server stands in docs/cli.md."""
    assert f"| `{name}` |" in (DOCS / "cli.md").read_text()


@pytest.mark.parametrize(("words", "command"), all_commands())
def test_every_command_and_option_is_documented(words: str, command: click.Command) -> None:
    """Each command stands in docs/cli.md, and so does each of its options."""
    text = (DOCS / "cli.md").read_text()
    assert words in text or all(word in text for word in words.split()), words
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ServerSettings.model_fields:
            assert any(option in text for option in parameter.opts), f"{words} {parameter.opts}"


ANSWERED = {400, 401, 408, 409, 413, 415, 429, 503}
DENIED = {"forbidden", "out_of_scope", "host_refused", "origin_refused", "not_found"}


def answered_by_the_api() -> list[type[KnotError]]:
    """The errors that a request over HTTP can meet."""

    def below(kind: type[KnotError]) -> list[type[KnotError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    return [kind for kind in below(KnotError) if kind.http_status in ANSWERED or kind.code in DENIED]


@pytest.mark.parametrize("kind", answered_by_the_api())
def test_every_error_code_is_documented(kind: type[KnotError]) -> None:
    """Each error code that the API answers with stands in docs/http.md, in the row of its status."""
    row = next(line for line in (DOCS / "http.md").read_text().splitlines() if line.startswith(f"| {kind.http_status} |"))
    assert f"`{kind.code}`" in row


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link in the documentation leads to a file."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_agent_command_takes_what_the_table_says() -> None:
    """Settings with a flag have that flag."""
    options = {option for parameter in knot_agent.cli.run.params for option in parameter.opts}
    assert {"--server", "--listen"} <= options


@pytest.mark.parametrize("message", [ForwardStatus, ForwardList, Applied], ids=lambda message: message.__name__)
def test_every_field_of_a_forward_is_documented(message: type[Message]) -> None:
    """What lists and `apply` answer stands in docs/http.md, field by field, with every word that a field may hold."""
    section = (DOCS / "http.md").read_text().partition("## Forwards\n")[2].partition("\n## ")[0]
    for name, field in message.model_fields.items():
        assert f"`{name}`" in section or f'"{name}":' in section, name
        words = re.findall(r"'(\w+)'", str(field.annotation)) if "Literal" in str(field.annotation) else []
        for choice in words:
            assert f"`{choice}`" in section, choice


def test_scripting_is_documented() -> None:
    """Each call stands in docs/scripting.md with its parameters, and so does each error; the example is the known one."""
    text = (DOCS / "scripting.md").read_text()
    for name, call in inspect.getmembers(knot.space, inspect.isfunction):
        if name.startswith("port_"):
            signature = inspect.signature(call)
            plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
            assert f"`{name}{signature.replace(parameters=plain, return_annotation=signature.empty)}`" in text
    for name in set(knot.__all__) - {"Forbidden"}:
        assert name in text, name
    example = (ROOT / "tests" / "resources" / "documentation" / "apply.py").read_text()
    assert textwrap.indent(example, "    ") in text


@pytest.mark.parametrize("event", Event)
def test_every_event_is_documented(event: Event) -> None:
    """Each event of the audit record has a row in docs/audit.md, and no other has one."""
    rows = re.findall(r"^\| `([a-z ]+)` \|.*\|.*\|$", (DOCS / "audit.md").read_text().partition("| event |")[2], re.MULTILINE)
    assert rows.count(str(event)) == 1
    assert len(rows) == len(Event)
