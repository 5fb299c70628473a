"""The life of a forward, told as scripts of events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knot_agent.forwardlife import TABLE, Event, State, forward_life
from knot_ssh.lifecycle import IllegalEvent
from knot_ssh.wire import ForwardStatus

E, S = Event, State


def after(*events: Event) -> State:
    """The state that these events lead to."""
    life = forward_life(0)
    for event in events:
        life.on(event, 1)
    return life.phase


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([], S.STARTING),
        ([E.BOUND], S.STARTING),
        ([E.BOUND, E.LINK_UP], S.LISTENING),
        ([E.BOUND, E.LINK_DOWN], S.WAITING),
        ([E.BOUND, E.LINK_UP, E.LINK_DOWN], S.WAITING),
        ([E.BOUND, E.LINK_UP, E.LINK_DOWN, E.LINK_UP], S.LISTENING),
        ([E.BOUND, E.LINK_UP, E.LINK_UP], S.LISTENING),
        ([E.BOUND, E.LINK_UP, E.LINK_STARTS], S.STARTING),
        ([E.BOUND, E.LINK_UP, E.TARGET_GONE], S.FAILED),
        ([E.BOUND, E.TARGET_GONE, E.LINK_UP], S.LISTENING),
        ([E.PORT_TAKEN], S.FAILED),
        ([E.PORT_TAKEN, E.PORT_TAKEN], S.FAILED),
        ([E.PORT_TAKEN, E.BOUND], S.STARTING),
        ([E.PORT_TAKEN, E.BOUND, E.LINK_UP], S.LISTENING),
        ([E.PORT_TAKEN, E.STOP], S.STOPPED),
        ([E.STOP, E.STOP], S.STOPPED),
    ],
)
def test_story(events: list[Event], state: State) -> None:
    """What a forward is follows from its port and its link."""
    assert after(*events) is state


def test_table_names_every_state() -> None:
    """Every state has its row, and every event leads from somewhere."""
    assert set(TABLE) == set(State)
    assert {event for row in TABLE.values() for event in row} == set(Event)


def test_states_are_the_words_of_the_listing() -> None:
    """Every state can be shown."""
    words = ForwardStatus.model_json_schema()["properties"]["state"]["enum"]
    assert sorted(words) == sorted(state.value for state in State)


@given(st.lists(st.sampled_from(Event)), st.sampled_from([event for event in Event if event is not Event.STOP]))
def test_stopped_is_for_good(before: list[Event], event: Event) -> None:
    """Whatever was, a stopped forward is stopped, and nothing but another stop may come."""
    life = forward_life(0)
    for earlier in before:
        if earlier in TABLE[life.phase]:
            life.on(earlier, 1)
    life.on(Event.STOP, 2)
    with pytest.raises(IllegalEvent):
        life.on(event, 3)
    assert life.on(Event.STOP, 4) is State.STOPPED
    assert life.phase is State.STOPPED


@pytest.mark.parametrize("state", [state for state in State if state not in (State.DRAINING, State.STOPPED)])
def test_a_taken_port_is_a_failure(state: State) -> None:
    """From everywhere but the end and the way there, a port that is taken leads to failed, and a link to what it says."""
    row = TABLE[state]
    assert row[Event.PORT_TAKEN] is State.FAILED
    assert (row[Event.LINK_UP], row[Event.LINK_DOWN]) == (State.LISTENING, State.WAITING)
