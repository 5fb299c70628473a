"""Agents with a configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.support.system import AgentOf, Running, System


class ConfiguredAgent(AgentOf):
    """The agent of a new space, with its settings. Each start after the first is one in the same folder."""

    def __init__(self, system: System, name: str, owner: str, settings: dict[str, Any], folder: Path) -> None:
        made = system.api(owner).post("api", "spaces", body={"name": name, "zone": "eu"})
        super().__init__(system, name, owner, made["id"])
        self._token = made["join_token"]
        self.file = folder / f"{name}.yaml"
        self.file.write_text(yaml.safe_dump(settings))

    def start_without_waiting(self, token: str = "", *, listen: str = "127.0.0.1:0", options: tuple[str, ...] = ()) -> Running:
        token, self._token = token or self._token, ""
        return super().start_without_waiting(token, listen=listen, options=("--config", str(self.file), *options))

    def rewrite(self, text: str) -> None:
        """Put another content in place in one step, as editors and configuration tools do."""
        draft = self.file.with_name(self.file.name + ".new")
        draft.write_text(text)
        draft.replace(self.file)
