"""--server and --token: taken at every level of a command, and what they lead to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from knot_ssh import doors

if TYPE_CHECKING:
    from knot_ssh.api import Api

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def server_options(command: Decorated) -> Decorated:
    """Add --server and --token. They stand on every level of a command, so that they may be typed anywhere."""
    for name, text in (
        ("token", "API token.  [env var: KNOT_TOKEN]"),
        ("server", "URL of the server.  [env var: KNOT_SERVER or KNOT_URL]"),
    ):
        option = click.option(f"--{name}", help=text, expose_value=False, callback=_remember)
        command = option(command)
    return command


def given(context: click.Context) -> doors.Given:
    """What was said, wherever it stood; flags beat the environment."""
    said = context.find_root().ensure_object(dict)
    return doors.given(said.get("server"), said.get("token"))


def api(context: click.Context) -> Api:
    """A client of the server that was named; raises BadInput or NotAuthenticated when something is missing."""
    return doors.api(given(context))


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_root().ensure_object(dict)[parameter.name] = value
