"""What `knot ssh` remembers, in one JSON file that is written last: where it is there, so is the rest.

`knot ssh refresh --if-due` runs before every connection, so this module needs neither asyncssh nor pydantic.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from knot_keys.openssh.places import Places
from knot_ssh.errors import KnotError

RETRY_SECONDS = 10
"""After a refresh that failed, none is tried for this long by itself: every ssh would wait for a server that is away."""
_NONE = type(None)
_TYPES = {
    "str": str, "str | None": (str, _NONE), "int": int, "int | None": (int, _NONE), "bool": bool, "dict[str, str]": dict,
    "list[str]": list,
}  # fmt: skip


class NotSetUp(KnotError):
    """Stock ssh is not set up here: run `knot ssh setup`."""

    code = "not_set_up"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was set up, and what the last refresh brought. Times are seconds since 1970, by this machine's clock."""

    server: str
    identity: str | None
    """The private key's file, of a key of the person's own; None for ours."""
    lifetime: int | None
    """Seconds asked for; None leaves it to the server."""
    made_key: bool = False
    made_config: bool = False
    made_folder: bool = False
    """Whether the key, `~/.ssh/config` and `~/.ssh` were made here, and so are taken away again."""
    host_cas: list[str] = field(default_factory=list)
    """The pinned host CAs, OpenSSH public key lines; more than one while the server's is changed for another."""
    hub: str = ""
    valid_after: int = 0
    valid_before: int = 0
    renew_after: int = 0
    has_krl: bool = False
    spaces: dict[str, str] = field(default_factory=dict)
    """Fully qualified name to id."""

    def key_file(self, places: Places) -> Path:
        """The private key, as ssh is told."""
        return places.key if self.identity is None else Path(self.identity)

    def is_valid(self, now: float) -> bool:
        """Whether the certificate is good at this moment."""
        return self.valid_after <= now < self.valid_before

    def is_fresh(self, now: float) -> bool:
        """Whether it is also too early to renew it. A clock that was set back makes a certificate due, not fresh for ever."""
        return self.valid_after <= now < self.renew_after


def read_state(places: Places) -> State:
    """What is remembered; raises NotSetUp, or KnotError for a file that is not ours."""
    try:
        return _parse(json.loads(places.state.read_bytes()))
    except FileNotFoundError:
        raise NotSetUp from None
    except (ValueError, TypeError, LookupError, RecursionError):
        raise KnotError(f"{places.state} is damaged: run `knot ssh setup` again") from None


def write_state(places: Places, state: State) -> None:
    from knot_ssh.files import replace_file

    replace_file(places.state, json.dumps(asdict(state), indent=1).encode())


def is_due(places: Places, state: State, now: float) -> bool:
    """Whether a refresh is wanted: the certificate's time has come, or a file is missing."""
    pieces = (*places.pieces, places.krl) if state.has_krl else places.pieces
    return not state.is_fresh(now) or not all(piece.exists() for piece in pieces)


def has_just_failed(places: Places, now: float) -> bool:
    """Whether the last refresh failed within RETRY_SECONDS; a time in the future (a clock was set back) does not count."""
    try:
        return 0 <= now - places.failed.stat().st_mtime < RETRY_SECONDS
    except FileNotFoundError:
        return False


def local_time(seconds: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _parse(document: Any) -> State:
    """Raises TypeError or LookupError for what `write_state` would not have written."""
    if "host_ca" in document:  # as it was written while there could be but one
        document["host_cas"] = [document.pop("host_ca")]
    for entry in fields(State):
        if not isinstance(document[entry.name], _TYPES[str(entry.type)]):  # type: ignore[arg-type]
            raise TypeError(entry.name)
    if not document["host_cas"] or not all(isinstance(line, str) for line in document["host_cas"]):
        raise TypeError("host_cas")
    return State(**document)
