"""What calls take and give, for type checkers: the bodies of the HTTP API, field by field as in docs/http.md."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ForwardEntry(TypedDict):
    """A forward that is to be: `local_port` of the source is `remote_port` of `space` (a name or an id)."""

    local_port: int
    space: str
    remote_port: int
    persistent: NotRequired[bool]
    force: NotRequired[bool]


class AppliedForward(TypedDict):
    """A forward that `port_apply` has made, changed or stopped."""

    local_port: int
    space: str
    remote_port: int
    persistent: bool


class ApplyError(TypedDict):
    """Why a forward could not be made; `code` names the kind."""

    local_port: int
    error: str
    code: str


class Applied(TypedDict):
    """What `port_apply` has changed, each list ordered by local port; what was there already is in none."""

    applied: list[AppliedForward]
    stopped: list[AppliedForward]
    errors: list[ApplyError]


class Counters(TypedDict):
    """Connections, and bytes `sent` towards the target and `received` from it, since `since` (ISO 8601)."""

    sent: int
    received: int
    open: int
    total: int
    refused: int
    last_error: str | None
    since: str


class LinkStatus(Counters):
    """The same of the link to the target's agent; `round_trip` is in seconds."""

    up_since: str | None
    round_trip: float | None


class Forward(TypedDict):
    """A forward and how it stands."""

    local_port: int
    bind: str
    origin: Literal["command", "file"]
    space: str
    space_id: str | None
    remote_port: int
    persistent: bool
    mode: Literal["direct", "relay"] | None
    state: Literal["starting", "listening", "waiting", "failed", "draining", "stopped"]
    reason: str | None
    address: str | None
    counters: Counters | None
    link: LinkStatus | None


class ForwardList(TypedDict):
    """The forwards of a space, ordered by local port."""

    forwards: list[Forward]
    file_error: str | None
