"""The agent's YAML file: settings, which are read once at the start, and forwards, which are read whenever it changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from knot_agent.settings import AgentSettings
from knot_ssh.errors import BadInput
from knot_ssh.forwardsfile import ALLOW, KEYS, FiledForward, filed_forwards
from knot_ssh.yamlfile import Document


@dataclass(frozen=True, slots=True)
class Reading:
    """What the file says. `forwards` is None when it says nothing at all, as a file that was cut off does."""

    settings: AgentSettings
    forwards: list[FiledForward] | None


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """The file, and its settings as they were at the start. A pipe is read once, and never changes."""

    path: Path
    settings: AgentSettings
    content: bytes

    @classmethod
    def open(cls, path: Path) -> SettingsFile:
        """Read the settings and leave the forwards for later; raises BadInput as `file:line: what is wrong`."""
        absolute = path.absolute()
        try:
            content = absolute.read_bytes()
        except OSError as error:
            raise BadInput(f"cannot read {absolute}: {error.strerror}") from None
        document = Document.decode(content, str(absolute))
        return cls(absolute, document.without(KEYS).check(AgentSettings), content)

    @property
    def is_pipe(self) -> bool:
        return self.path.is_fifo()

    def look(self) -> bytes | str:
        """What stands in the file now, or why it cannot be read."""
        if self.is_pipe:
            return self.content
        try:
            return self.path.read_bytes()
        except OSError as error:
            return f"cannot read {self.path}: {error.strerror}"

    def understand(self, seen: bytes | str) -> Reading:
        """What that says; raises BadInput as `file:line: what is wrong`. Takes some 0.15 ms for each forward."""
        if isinstance(seen, str):
            raise BadInput(seen)
        document = Document.decode(seen, str(self.path))
        settings = document.without(KEYS).check(AgentSettings)
        return Reading(settings, None if document.is_empty else filed_forwards(document))

    def forbids_remote_bind(self, seen: bytes | str) -> bool:
        """Whether that can be read, and does not allow forwards for others, whatever else is wrong with it."""
        if isinstance(seen, str):
            return False
        try:
            document = Document.decode(seen, str(self.path))
        except BadInput:
            return False
        return isinstance(document.values, dict) and document.values.get(ALLOW) is not True

    @property
    def emptied(self) -> str:
        """What is said of a file that says nothing, where there were forwards."""
        return f"{self.path}:1: the file is empty; write `forwards: []` to have none"
