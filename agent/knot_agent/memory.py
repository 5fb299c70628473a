"""What the agent remembers for a start without the server: its persistent forwards, those of its settings file with their
targets, and what was revoked.

One file, replaced as a whole at every change, so that a crash leaves the old or the new. The hub's word counts for more:
what it says at the next contact takes the place of all this, but for forwards that were stopped in the meantime, which
it is told of. The file holds no secret. A damaged one is as good as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from knot_ssh.files import replace_file
from knot_ssh.forwardsfile import FiledForward
from knot_ssh.names import SpaceId
from knot_ssh.wire import ForwardOrder, Revoked, StoppedForward, Target

log = structlog.get_logger(__name__)

MEMORY_FILE = "memory.json"


class _Content(BaseModel):
    model_config = ConfigDict(extra="ignore")

    space_id: SpaceId
    forwards: list[ForwardOrder] = []
    stopped: list[StoppedForward] = []
    revoked: Revoked = Revoked(serials=[], keys=[])
    revoked_at: float | None = None
    filed: list[FiledForward] = []
    filed_targets: dict[str, Target] = {}


class Memory:
    """The content of the file; every change is on disk when it returns, or in the log when that failed."""

    def __init__(self, folder: Path, space_id: SpaceId) -> None:
        """What is remembered of this space; a folder that was another's before remembers nothing."""
        self._path = folder / MEMORY_FILE
        self._space_id = space_id
        self._content = self._read()
        self._kept = True

    @property
    def forwards(self) -> list[ForwardOrder]:
        """The persistent forwards as they last were, by port."""
        return list(self._content.forwards)

    @property
    def stopped(self) -> list[StoppedForward]:
        """Persistent forwards that were stopped while the server was away, and which it may still have."""
        return list(self._content.stopped)

    @property
    def revoked(self) -> Revoked:
        return self._content.revoked

    @property
    def revoked_at(self) -> float | None:
        """When that was known to be all, in seconds since 1970."""
        return self._content.revoked_at

    @property
    def filed(self) -> list[FiledForward]:
        """The forwards of the settings file as they were when it was good last."""
        return list(self._content.filed)

    @property
    def filed_targets(self) -> dict[str, Target]:
        """Their targets, as far as the hub has told, by what the file calls them."""
        return dict(self._content.filed_targets)

    def keep_filed(self, forwards: list[FiledForward], targets: dict[str, Target]) -> None:
        """This is what the settings file says now, and what the hub says of it."""
        known = self._addresses()
        self._write(filed=forwards, filed_targets={name: _with_addresses(target, known) for name, target in targets.items()})

    def keep_forwards(self, forwards: list[ForwardOrder]) -> None:
        """These are the persistent forwards now."""
        known = self._addresses()
        self._write(forwards=[order.model_copy(update={"target": _with_addresses(order.target, known)}) for order in forwards])

    def keep_revoked(self, revoked: Revoked) -> None:
        """This is what is revoked now."""
        self._write(revoked=revoked)

    def keep_revoked_at(self, moment: float) -> None:
        """That was known to be all at this moment, in seconds since 1970."""
        self._write(revoked_at=moment)

    def keep_target(self, target: Target) -> None:
        """A target is there now, or has moved; of forwards that are remembered."""
        self._write(
            forwards=[
                order.model_copy(update={"target": target}) if order.target.id == target.id else order
                for order in self._content.forwards
            ],
            filed_targets={
                name: target if known.id == target.id else known for name, known in self._content.filed_targets.items()
            },
        )

    def note_stopped(self, order: ForwardOrder) -> None:
        """A persistent forward was stopped, and the server does not know."""
        gone = StoppedForward(
            local_port=order.local_port, target_id=order.target.id, remote_port=order.remote_port, made=order.made
        )
        self._write(
            forwards=[other for other in self._content.forwards if other.local_port != order.local_port],
            stopped=[*self._content.stopped, gone],
        )

    def told(self, known: list[StoppedForward]) -> None:
        """The server knows that these were stopped."""
        self._write(stopped=[gone for gone in self._content.stopped if gone not in known])

    def _addresses(self) -> dict[SpaceId, list[str]]:
        """Where targets were last."""
        targets = [*(order.target for order in self._content.forwards), *self._content.filed_targets.values()]
        return {target.id: target.addresses for target in targets if target.addresses}

    def _write(self, **changes: object) -> None:
        changed = self._content.model_copy(update=changes)
        if changed == self._content and self._kept:
            return
        self._content = changed
        try:
            replace_file(self._path, changed.model_dump_json(indent=1).encode() + b"\n")
            self._kept = True
        except OSError as error:
            self._kept = False
            log.error("memory not kept", file=str(self._path), reason=error.strerror)

    def _read(self) -> _Content:
        nothing = _Content(space_id=self._space_id)
        try:
            content = _Content.model_validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return nothing
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is damaged"
            log.warning("memory not read", file=str(self._path), reason=reason)
            return nothing
        return content if content.space_id == self._space_id else nothing


def _with_addresses(target: Target, known: Mapping[SpaceId, list[str]]) -> Target:
    """A target may come without addresses, when it was away at that moment."""
    if target.addresses or target.id not in known:
        return target
    return target.model_copy(update={"addresses": known[target.id]})
