"""All targets by name."""

from __future__ import annotations

from tests.fuzz import credentials, files, hub, names
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*credentials.TARGETS, *files.TARGETS, *names.TARGETS, *hub.TARGETS)}
