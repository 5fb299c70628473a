"""The life of a forward, decided without input or output.

    STARTING   bound; its link has not come to any result yet
    LISTENING  bound; its link is up
    WAITING    bound; the target cannot be reached, connections are held for a while
    FAILED     not of use: the port is taken, or the target was deleted
    DRAINING   bound no more; connections that are open go on until they end
    STOPPED    over

What the link says counts only for a forward that is bound: PORT_TAKEN leads to FAILED from everywhere, and BOUND is the
only way out of that. From DRAINING there is no way back: another forward may have the port.
"""

from __future__ import annotations

from enum import StrEnum

from knot_ssh.lifecycle import Life


class State(StrEnum):
    """See above; the words that `list` shows."""

    STARTING = "starting"
    LISTENING = "listening"
    WAITING = "waiting"
    FAILED = "failed"
    DRAINING = "draining"
    STOPPED = "stopped"


class Event(StrEnum):
    """What can happen to a forward."""

    BOUND = "bound"
    PORT_TAKEN = "port taken"
    LINK_STARTS = "link starts"
    LINK_UP = "link up"
    LINK_DOWN = "link down"
    TARGET_GONE = "target gone"
    DRAIN = "drain"
    STOP = "stop"


_S, _E = State, Event
_LINK = {
    _E.LINK_STARTS: _S.STARTING,
    _E.LINK_UP: _S.LISTENING,
    _E.LINK_DOWN: _S.WAITING,
    _E.TARGET_GONE: _S.FAILED,
}
_BOUND = _LINK | {_E.PORT_TAKEN: _S.FAILED, _E.DRAIN: _S.DRAINING, _E.STOP: _S.STOPPED}

TABLE: dict[State, dict[Event, State]] = {
    _S.STARTING: _BOUND | {_E.BOUND: _S.STARTING},
    _S.LISTENING: _BOUND,
    _S.WAITING: _BOUND,
    _S.FAILED: _BOUND | {_E.BOUND: _S.STARTING},
    _S.DRAINING: dict.fromkeys(_LINK, _S.DRAINING) | {_E.STOP: _S.STOPPED},
    _S.STOPPED: {_E.STOP: _S.STOPPED},
}


def forward_life(now: float) -> Life[State, Event]:
    """A new forward's."""
    return Life(TABLE, State.STARTING, now)
