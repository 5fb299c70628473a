"""`knot agent …`."""

from __future__ import annotations

import contextlib
import os
import pwd
from pathlib import Path
from typing import Any

import click

from knot_ssh.addresses import Address
from knot_ssh.cli.params import ADDRESS, FOLDER
from knot_ssh.errors import BadInput


@click.group()
def agent() -> None:
    """Run the agent of a space."""


@agent.command()
@click.option("--data", type=FOLDER, help="Folder for keys and socket.  [default: the user's data folder]")
@click.option("--server", type=ADDRESS, envvar="KNOT_HUB", help="The hub.  [env var: KNOT_HUB]")
@click.option("--token", envvar="KNOT_JOIN_TOKEN", help="Join token, for the first start.  [env var: KNOT_JOIN_TOKEN]")
@click.option("--token-file", type=click.Path(path_type=Path), help="File that holds the join token.")
@click.option("--listen", type=ADDRESS, help="Where the endpoint listens.  [default: 0.0.0.0:2022]")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file with settings and forwards.")
def run(
    data: Path | None,
    server: Address | None,
    token: str | None,
    token_file: Path | None,
    listen: Address | None,
    config: Path | None,
) -> None:
    """Run until interrupted; joins first where it has not yet."""
    from knot_agent.agent import run_agent
    from knot_agent.home import Home
    from knot_agent.settings import AgentSettings
    from knot_agent.settingsfile import SettingsFile
    from knot_keys.jointoken import JoinToken
    from knot_ssh.dataplane import plane
    from knot_ssh.logs import configure_logs
    from knot_ssh.memory import keep_memory_private
    from knot_ssh.places import agent_folder

    file = SettingsFile.open(config) if config else None
    settings = file.settings if file else AgentSettings()
    flags: dict[str, Any] = {"server": server and str(server), "listen": listen and str(listen)}
    settings = settings.model_copy(update={name: value for name, value in flags.items() if value})
    if not settings.server:
        raise BadInput("no hub given: use --server HOST:PORT, KNOT_HUB, or `server:` in the --config file")
    text = _token_text(token, token_file)
    joining = JoinToken.parse(text) if text else None
    configure_logs()
    keep_memory_private()
    _name_the_user()
    with contextlib.closing(Home(data or agent_folder())) as home:
        hub = Address.parse(settings.server)
        plane.run(
            lambda plane: run_agent(plane, home, hub, joining, settings, file),
            kind=settings.data_plane,
            limits=settings.limits,
            polling=settings.polling / 1e6,
            ssh_options=settings.ssh_options,
        )


def _token_text(token: str | None, token_file: Path | None) -> str | None:
    if token_file is None:
        return token
    try:
        return token_file.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--token-file: cannot read {token_file}: {getattr(error, 'strerror', 'not text')}") from None


def _name_the_user() -> None:
    """asyncssh asks for the local user's name; a container may run under a uid that has none."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("LOGNAME", "knot")
