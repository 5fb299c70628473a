"""docs/limits.md names every bound, with its default, and no other."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import ModuleType

import pytest

from knot_agent import endpoint
from knot_agent.settings import AgentSettings
from knot_keys import bounds, entrance, turns, waitingroom
from knot_server.hub import doorkeeper, plain, relay
from knot_server.settings import ServerSettings
from knot_server.usecases import enrolment
from knot_ssh import rpc, wire, yamlfile
from knot_ssh.dataplane import connection, limits, plane

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
ROWS = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
NAMED = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}
SETTABLE = set(re.findall(r"`((?:max|login)_\w+)`", PAGE))
MODULES = [
    bounds,
    connection,
    doorkeeper,
    endpoint,
    enrolment,
    entrance,
    limits,
    plain,
    plane,
    relay,
    rpc,
    turns,
    waitingroom,
    wire,
]
WHOLE = [bounds, entrance, turns]
"""Of these every number is a bound."""


def numbers(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if name.isupper() and isinstance(value, int | float)}


@pytest.mark.parametrize("module", WHOLE, ids=lambda module: str(module.__name__))
def test_every_bound_on_strangers_is_documented(module: ModuleType) -> None:
    """Each constant of what strangers may take has its row."""
    assert numbers(module) <= NAMED


def test_every_bound_of_the_data_path_that_can_be_set_is_documented() -> None:
    """Each of the limits that can be set has its row."""
    fields = {field.name for field in dataclasses.fields(limits.Limits)}
    assert fields <= NAMED


def test_every_setting_is_a_bound_that_stands_here() -> None:
    """Each setting that bounds something is named beside its bound, and each that is named exists."""
    known = {*ServerSettings.model_fields, *AgentSettings.model_fields}
    bounding = {name for name in known if name.startswith(("max_", "login_"))}
    assert bounding == SETTABLE


def test_every_name_is_a_constant() -> None:
    """What the page names is there, under this name."""
    there = {name for module in (*MODULES, yamlfile) for name in vars(module)}
    assert {name for name in NAMED if name.isupper()} <= there
    assert {name for name in NAMED if name.islower()} <= {field.name for field in dataclasses.fields(limits.Limits)}
