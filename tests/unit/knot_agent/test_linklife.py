"""The life of a link, told as scripts of events; time and luck are the test's."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from knot_agent.linklife import AGAIN, BUSY, CONNECTED, PROBE, RETRY, STEADY, TABLE, Event, LinkLife, Path, Phase
from knot_ssh.lifecycle import IllegalEvent
from knot_ssh.retrying import FIRST_WAIT

DIRECT = Path("direct", "10.0.0.7:2022")
RELAY = Path("relay", "hub:2222")
LUCK = 0.5
HOUR = 3600.0


class Story:
    """One link's life, and the clock it goes by."""

    def __init__(self, luck: float = LUCK) -> None:
        self.now = 100.0
        self.life = LinkLife(self.now, lambda: luck)

    def happens(self, *events: Event, after: float = 0.0, path: Path = DIRECT, certificate: float = HOUR) -> Phase:
        """These events, the first of them after so many seconds; gives the phase they lead to."""
        self.now += after
        for event in events:
            if event is Event.CONNECTED:
                self.life.on(event, self.now, path=path, good_until=self.now + certificate)
            else:
                self.life.on(event, self.now, reason=f"because of {event.value}")
        return self.life.phase

    def comes(self) -> Event:
        """The next event that time brings; it happens."""
        assert self.life.wake_at < math.inf
        self.now = max(self.now, self.life.wake_at)
        event = self.life.due(self.now)
        assert event
        self.happens(event)
        return event

    @property
    def wait(self) -> float:
        """Seconds until time brings something."""
        return self.life.wake_at - self.now


def story_in(phase: Phase) -> Story:
    """A link in this phase."""
    story = Story()
    e = Event
    story.happens(
        *{
            Phase.TRYING: [],
            Phase.RESTING: [e.FAILED],
            Phase.GONE: [e.MISSING],
            Phase.UP: [e.CONNECTED],
            Phase.STALE: [e.CONNECTED, e.RENEWED, e.FAILED],
            Phase.REPLACING: [e.CONNECTED, e.RENEWED],
            Phase.ESCAPING: [e.CONNECTED, e.SILENT],
            Phase.DOUBTED: [e.CONNECTED, e.SILENT, e.FAILED],
            Phase.IMPROVING: [e.CONNECTED, e.DUE],
        }[phase],
        path=RELAY,
    )
    assert story.life.phase is phase
    return story


@pytest.fixture
def story() -> Story:
    return Story()


# The table


def test_table_names_every_phase() -> None:
    """Every phase has its row, and every event leads from somewhere."""
    assert set(TABLE) == set(Phase)
    assert {event for row in TABLE.values() for event in row} == set(Event)


def test_every_phase_can_be_reached_and_left() -> None:
    """From the first phase events lead to every other, and from each of them a connection can come about."""
    for start in Phase:
        reached = {start}
        while more := {after for phase in reached for after in TABLE[phase].values()} - reached:
            reached |= more
        assert Phase.UP in reached
        if start is Phase.TRYING:
            assert reached == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_news_and_renewal_never_are_out_of_place(phase: Phase) -> None:
    """The hub's news and new certificates come when they like."""
    assert {Event.NEWS, Event.RENEWED} <= set(TABLE[phase])


@pytest.mark.parametrize("phase", sorted(BUSY))
def test_busy_phases_know_every_outcome(phase: Phase) -> None:
    """Whatever an attempt ends in leads out of the phase: nothing stays busy without an attempt."""
    row = TABLE[phase]
    assert row[Event.CONNECTED] is Phase.UP
    assert row[Event.MISSING] is Phase.GONE
    assert row[Event.FAILED] not in BUSY
    assert (row[Event.FAILED] in CONNECTED) == (phase in CONNECTED)


@pytest.mark.parametrize("phase", sorted(CONNECTED))
def test_connections_can_end_at_any_time(phase: Phase) -> None:
    """A connection may be lost, expire, fall silent, be heard and be out of date in every phase that has one."""
    row = TABLE[phase]
    assert row[Event.LOST] is row[Event.EXPIRED] is Phase.RESTING
    assert {Event.SILENT, Event.HEARD, Event.RENEWED} <= set(row)


def test_pairs() -> None:
    """The phases that have a connection, and those in which an attempt is under way, are those that the prose names."""
    assert {Phase.UP, Phase.IMPROVING, Phase.STALE, Phase.REPLACING, Phase.DOUBTED, Phase.ESCAPING} == CONNECTED
    assert {Phase.TRYING, Phase.IMPROVING, Phase.REPLACING, Phase.ESCAPING} == BUSY


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", Event)
def test_illegal_events_change_nothing(phase: Phase, event: Event) -> None:
    """An event that must not come in a phase names both, and leaves phase, path, reason and plans as they are."""
    if event in TABLE[phase]:
        return
    life = story_in(phase).life
    before = (life.phase, life.path, life.since, life.reason, life.wake_at, life.wants)
    with pytest.raises(IllegalEvent, match=f"'{event.value}' in phase '{phase.value}'"):
        life.on(event, 10**6, path=DIRECT, good_until=10**7, reason="none")
    assert (life.phase, life.path, life.since, life.reason, life.wake_at, life.wants) == before


# Getting a connection


def test_beginning(story: Story) -> None:
    """A new link tries every path at once; nothing is due meanwhile, and it has no reason to name yet."""
    life = story.life
    assert (life.phase, life.wants, life.path, life.reason) == (Phase.TRYING, "any path", None, "")
    assert (life.wake_at, life.due(10**9)) == (math.inf, None)


def test_direct_connection_is_left_alone(story: Story) -> None:
    """A direct path asks for nothing until the certificate it was made with ends."""
    story.happens(Event.CONNECTED, after=2)
    life = story.life
    assert (life.phase, life.wants, life.path, life.reason) == (Phase.UP, "nothing", DIRECT, "")
    assert (life.since, life.wake_at) == (story.now, story.now + HOUR)
    assert story.comes() is Event.EXPIRED
    assert (life.phase, life.path, life.reason) == (Phase.RESTING, None, "because of expired")


def test_failures_are_told_and_tried_again(story: Story) -> None:
    """A failed attempt says why, and is made again after a wait that doubles up to a limit."""
    waits = []
    for _ in range(6):
        assert story.happens(Event.FAILED) is Phase.RESTING
        assert story.life.reason == "because of failed"
        assert story.life.wants == "nothing"
        waits.append(story.wait)
        assert story.life.due(story.now) is None
        assert story.comes() is Event.DUE
        assert (story.life.phase, story.life.wants) == (Phase.TRYING, "any path")
    assert waits == pytest.approx([LUCK * wait for wait in (0.5, 1, 2, RETRY, RETRY, RETRY)])


@pytest.mark.parametrize("event", [Event.NEWS, Event.RENEWED])
def test_news_end_a_wait(story: Story, event: Event) -> None:
    """News of the target, or a certificate, have it tried at once, and the next wait is a short one again."""
    for _ in range(5):
        story.happens(Event.FAILED)
        story.comes()
    story.happens(Event.FAILED)
    assert story.happens(event) is Phase.TRYING
    story.happens(Event.FAILED)
    assert story.wait == pytest.approx(LUCK * FIRST_WAIT)


def test_news_do_not_disturb_an_attempt(story: Story) -> None:
    """While it tries already, news change nothing."""
    assert story.happens(Event.NEWS, Event.RENEWED) is Phase.TRYING
    assert story.life.wants == "any path"


def test_deleted_target(story: Story) -> None:
    """A target that was deleted is not asked for again, unless there is news of it."""
    story.happens(Event.MISSING)
    life = story.life
    assert (life.phase, life.wants, life.wake_at, life.reason) == (Phase.GONE, "nothing", math.inf, "because of missing")
    assert story.happens(Event.RENEWED) is Phase.GONE
    assert story.happens(Event.NEWS) is Phase.TRYING


@pytest.mark.parametrize("phase", [Phase.IMPROVING, Phase.REPLACING, Phase.ESCAPING])
def test_target_deleted_while_connected(phase: Phase) -> None:
    """That the target was deleted ends the connection there is, too."""
    story = story_in(phase)
    assert story.happens(Event.MISSING) is Phase.GONE
    assert (story.life.path, story.life.wake_at, story.life.is_connected) == (None, math.inf, False)


# Losing it


def test_lost_after_a_while(story: Story) -> None:
    """A connection that has lasted is replaced without a wait."""
    story.happens(Event.CONNECTED)
    assert story.happens(Event.LOST, after=STEADY) is Phase.RESTING
    assert (story.life.path, story.life.since, story.life.reason) == (None, story.now, "because of lost")
    assert story.wait == 0
    assert story.comes() is Event.DUE
    assert story.life.phase is Phase.TRYING


def test_short_lives(story: Story) -> None:
    """Connections that are lost as soon as they are made are made again more and more slowly, and no hot loop ensues."""
    waits = []
    for _ in range(6):
        story.happens(Event.CONNECTED)
        story.happens(Event.LOST, after=STEADY / 2)
        waits.append(story.wait)
        story.comes()
    assert waits == pytest.approx([LUCK * wait for wait in (0.5, 1, 2, RETRY, RETRY, RETRY)])


def test_steady_life_makes_up_for_short_ones(story: Story) -> None:
    """After one connection that has lasted, a short life counts as the first again."""
    for _ in range(3):
        story.happens(Event.CONNECTED, Event.LOST)
        story.comes()
    story.happens(Event.CONNECTED)
    story.happens(Event.LOST, after=STEADY)
    assert story.wait == 0
    story.comes()
    story.happens(Event.CONNECTED, Event.LOST)
    assert story.wait == pytest.approx(LUCK * FIRST_WAIT)


def test_certificate_that_has_ended_already(story: Story) -> None:
    """A connection made with a certificate that is over is left at once, and that is no hot loop either."""
    story.happens(Event.CONNECTED, certificate=-1)
    assert story.comes() is Event.EXPIRED
    assert story.wait > 0


@pytest.mark.parametrize("phase", sorted(CONNECTED))
def test_expiry_comes_in_every_phase(phase: Phase) -> None:
    """When the certificate of a connection ends it is left, whatever is going on: that comes before all else."""
    story = story_in(phase)
    assert story.life.due(story.now + HOUR) is Event.EXPIRED
    assert story.happens(Event.EXPIRED, after=HOUR) is Phase.RESTING
    assert story.life.path is None
    assert story.life.due(story.now) is Event.DUE


# Getting a better one


def test_relay_looks_for_a_direct_path(story: Story) -> None:
    """Over the relay a direct path is looked for at once, and then again and again, with a pause."""
    story.happens(Event.CONNECTED, path=RELAY)
    for wait in (0, PROBE, PROBE):
        assert story.wait == wait
        assert story.comes() is Event.DUE
        assert (story.life.phase, story.life.wants) == (Phase.IMPROVING, "a direct path")
        assert story.life.path == RELAY
        story.happens(Event.FAILED)
        assert (story.life.phase, story.life.reason) == (Phase.UP, "")
    assert story.comes() is Event.DUE
    assert story.happens(Event.CONNECTED) is Phase.UP
    assert (story.life.path, story.life.wake_at) == (DIRECT, story.now + HOUR)


def test_news_over_the_relay(story: Story) -> None:
    """News of the target have a direct path looked for at once."""
    story.happens(Event.CONNECTED, path=RELAY)
    story.comes()
    story.happens(Event.FAILED)
    story.happens(Event.NEWS, after=1)
    assert story.wait == 0
    assert story.comes() is Event.DUE


def test_news_on_a_direct_path(story: Story) -> None:
    """A direct path is kept, whatever the news."""
    story.happens(Event.CONNECTED)
    assert story.happens(Event.NEWS) is Phase.UP
    assert story.life.wants == "nothing"


def test_renewal_replaces(story: Story) -> None:
    """With a new certificate the connection is replaced, and serves until that has worked."""
    story.happens(Event.CONNECTED)
    end = story.now + HOUR
    story.happens(Event.RENEWED, after=HOUR / 2)
    life = story.life
    assert (life.phase, life.wants, life.path, life.wake_at) == (Phase.REPLACING, "any path", DIRECT, end)
    story.happens(Event.FAILED)
    assert (life.phase, life.path, life.reason) == (Phase.STALE, DIRECT, "")
    assert 0 < story.wait <= RETRY
    assert story.comes() is Event.DUE
    assert life.phase is Phase.REPLACING
    story.happens(Event.CONNECTED)
    assert (life.phase, life.wake_at) == (Phase.UP, story.now + HOUR)


def test_silence_is_escaped(story: Story) -> None:
    """While the peer is silent every path is tried, again and again; the connection stays, for it may come back."""
    story.happens(Event.CONNECTED)
    story.happens(Event.SILENT, after=STEADY)
    for _ in range(3):
        assert (story.life.phase, story.life.wants, story.life.path) == (Phase.ESCAPING, "any path", DIRECT)
        assert story.happens(Event.FAILED) is Phase.DOUBTED
        assert story.wait == AGAIN
        assert story.comes() is Event.DUE
    assert story.happens(Event.CONNECTED, path=RELAY) is Phase.UP
    assert story.life.path == RELAY


@pytest.mark.parametrize("failed", [False, True])
def test_heard_again(story: Story, failed: bool) -> None:
    """When the peer is heard again nothing else is tried, and the connection goes on."""
    story.happens(Event.CONNECTED, Event.SILENT)
    if failed:
        story.happens(Event.FAILED)
    assert story.happens(Event.HEARD) is Phase.UP
    assert (story.life.wants, story.life.path) == ("nothing", DIRECT)


@pytest.mark.parametrize("before", [Phase.REPLACING, Phase.STALE])
@pytest.mark.parametrize("failed", [False, True])
def test_silence_does_not_make_a_certificate_good(before: Phase, failed: bool) -> None:
    """A connection with an old certificate whose peer falls silent, and is heard again, is still to be replaced."""
    story = story_in(before)
    story.happens(Event.SILENT)
    if failed:
        story.happens(Event.FAILED)
    story.happens(Event.HEARD)
    while story.life.wants == "nothing" and story.wait < RETRY:
        story.comes()
    assert story.life.wants == "any path"


# Whatever happens

CERTIFICATES = [0.0, 1.0, 60.0, HOUR]
TIMES = st.sampled_from([0.0, 0.001, 0.3, 1.0, 4.0, STEADY, 60.0, HOUR])


class AnyLife(RuleBasedStateMachine):
    """Every sequence of events that may come, and of those that time brings."""

    @initialize(luck=st.sampled_from([0.0, 0.01, 1.0]))
    def begin(self, luck: float) -> None:
        self.now = 0.0
        self.life = LinkLife(self.now, lambda: luck)
        self.good_until = math.inf

    def take(self, event: Event, path: Path = DIRECT, certificate: float = HOUR) -> None:
        if event is Event.CONNECTED:
            self.good_until = self.now + certificate
            self.life.on(event, self.now, path=path, good_until=self.good_until)
        else:
            self.life.on(event, self.now, reason="something")
        if not self.life.is_connected:
            self.good_until = math.inf

    @precondition(lambda self: self.life.due(self.now) is None)
    @rule(
        event=st.sampled_from([event for event in Event if event not in (Event.DUE, Event.EXPIRED)]),
        path=st.sampled_from([DIRECT, RELAY]),
        certificate=st.sampled_from(CERTIFICATES),
    )
    def happens(self, event: Event, path: Path, certificate: float) -> None:
        """Something happens, or would be illegal."""
        if event in TABLE[self.life.phase]:
            self.take(event, path, certificate)
            return
        before = (self.life.phase, self.life.path, self.life.since, self.life.reason, self.life.wake_at)
        with pytest.raises(IllegalEvent) as caught:
            self.life.on(event, self.now + 1, path=path, good_until=self.now, reason="none")
        assert event.value in str(caught.value)
        assert before[0].value in str(caught.value)
        assert (self.life.phase, self.life.path, self.life.since, self.life.reason, self.life.wake_at) == before

    @rule(seconds=TIMES)
    def time_passes(self, seconds: float) -> None:
        """As one does who sleeps until `wake_at`, but not for longer than this."""
        until = self.now + seconds
        for _ in range(10):
            if self.life.wake_at > until:
                break
            self.now = max(self.now, self.life.wake_at)
            event = self.life.due(self.now)
            assert event is not None
            self.take(event)
        else:
            raise AssertionError("a loop: time alone brings one event after the other")
        self.now = max(self.now, until)

    @invariant()
    def path_means_connected(self) -> None:
        """There is a path exactly when there is a connection, and a reason when there was one and is none."""
        life = self.life
        assert (life.path is not None) == life.is_connected == (life.phase in CONNECTED)
        if life.is_connected:
            assert life.reason == ""
        elif life.phase in (Phase.RESTING, Phase.GONE):
            assert life.reason

    @invariant()
    def due_when_said(self) -> None:
        """Nothing is due before `wake_at`, and something is from then on; what is due is legal."""
        life = self.life
        if life.wake_at == math.inf:
            assert life.due(10**12) is None
            return
        assert life.due(math.nextafter(life.wake_at, -math.inf)) is None
        event = life.due(life.wake_at)
        assert event in TABLE[life.phase]

    @invariant()
    def never_stuck(self) -> None:
        """It is busy, or waits for a moment, or need not do anything."""
        life = self.life
        assert (life.wants != "nothing") == (life.phase in BUSY)
        if life.phase in (Phase.RESTING, Phase.STALE, Phase.DOUBTED):
            assert life.wake_at <= self.now + max(RETRY, AGAIN)
        if life.phase is Phase.UP and life.path == RELAY:
            assert life.wake_at <= self.now + PROBE

    @invariant()
    def certificate_is_watched(self) -> None:
        """It wakes up at the latest when the certificate of the connection ends, and that moment ends the connection."""
        life = self.life
        assert life.wake_at <= self.good_until
        if life.is_connected:
            assert life.due(self.good_until) is Event.EXPIRED
            assert TABLE[life.phase][Event.EXPIRED] not in CONNECTED


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("path", [DIRECT, RELAY])
@pytest.mark.parametrize("end", [Event.LOST, Event.EXPIRED])
def test_no_hot_loop(path: Path, end: Event) -> None:
    """Where every attempt works and every connection ends at once, some hundred are made in a few minutes, not thousands."""
    story = Story()
    attempts = 0
    while story.now < 400:
        story.happens(Event.CONNECTED, path=path)
        story.happens(end)
        story.comes()
        attempts += 1
    assert attempts < 300 / (LUCK * RETRY) + 10
