"""All targets by name."""

from __future__ import annotations

from tests.fuzz import agents, credentials, files, hub, names, packets, web
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        *credentials.TARGETS,
        *files.TARGETS,
        *names.TARGETS,
        *hub.TARGETS,
        *web.TARGETS,
        *agents.TARGETS,
        *packets.TARGETS,
    )
}
