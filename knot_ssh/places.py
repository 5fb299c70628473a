"""Where commands and scripts find things (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path

from knot_ssh.local import SOCKET_FILE


def config_file() -> Path:
    """The settings that `knot login` keeps: server and token."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "knot" / "config.yaml"


def agent_folder() -> Path:
    """The default data folder of an agent."""
    return _xdg("XDG_DATA_HOME", ".local/share") / "knot" / "agent"


def default_socket() -> Path:
    """The socket of an agent in its default folder."""
    return agent_folder() / SOCKET_FILE


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if os.path.isabs(value) else Path.home() / default
