"""Renew the certificate and learn of new spaces: by hand, or before a connection, from ssh's own configuration."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

from knot_keys.openssh.answers import ask
from knot_keys.openssh.identities import public_key
from knot_keys.openssh.keeping import keep, this_command
from knot_keys.openssh.places import Places
from knot_keys.openssh.state import State, has_just_failed, is_due, local_time, read_state
from knot_ssh import doors
from knot_ssh.api import Patience
from knot_ssh.errors import KnotError, Unavailable
from knot_ssh.files import PRIVATE_FILE, locked

PATIENCE = Patience(connect=2, read=5)
"""For each part of an answer."""
ANSWER_SECONDS = 10.0
"""For all answers together, however many parts they come in: ssh waits meanwhile."""
LOCK_SECONDS = 5.0
"""How long to wait for another refresh: two connections that are opened at once both run one."""


def refresh(places: Places, said: doors.Given, *, if_due: bool, by_itself: bool) -> State:
    """Ask the server for everything anew; gives what is held then. On any error nothing is changed, and it is raised.

    `if_due` asks nothing when another process was faster. `by_itself` spares a server that has just failed to answer.
    """
    with locked(places.lock, LOCK_SECONDS):
        state = read_state(places)
        now = time.time()
        if if_due and not is_due(places, state, now):
            return state
        if by_itself and has_just_failed(places, now):
            raise Unavailable(f"{state.server} failed a moment ago")
        try:
            return _refresh(places, state, said, now)
        except (KnotError, OSError):
            with contextlib.suppress(OSError):
                places.failed.touch(PRIVATE_FILE)
            raise


def expiry_notice(places: Places, error: KnotError) -> str:
    """What a quiet refresh says when the server is away: nothing, unless the connection is bound to fail."""
    state = read_state(places)
    if state.is_valid(time.time()):
        return ""
    return f"the certificate for {state.server} has run out ({local_time(state.valid_before)}) and cannot be renewed: {error}"


def _refresh(places: Places, state: State, said: doors.Given, now: float) -> State:
    key = public_key(state.key_file(places))
    with contextlib.closing(doors.api(_as_whom(state, said), PATIENCE)) as api, _within(ANSWER_SECONDS, state.server):
        grant = ask(api, key, state.lifetime, state.host_cas, now)
    return keep(places, state, grant, this_command())


def _as_whom(state: State, said: doors.Given) -> doors.Given:
    """The server of the setup, whatever is named or kept now; a token that was given for another is not for it."""
    is_same = doors.chosen_server(said) in {None, state.server}
    return doors.Given(state.server, said.token if is_same else None)


@contextlib.contextmanager
def _within(seconds: float, server: str) -> Iterator[None]:
    """Raise Unavailable in a block that takes longer than this. In the main thread alone, which is where signals arrive."""

    def give_up(_number: int, _frame: object) -> None:
        raise Unavailable(f"the server at {server} did not finish its answers within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, give_up)
    earlier = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *earlier)
        signal.signal(signal.SIGALRM, handler)
