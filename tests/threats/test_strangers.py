"""Other owners and other zones, with good certificates of their own: nothing opens to them, directly or through the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from asyncssh.constants import MSG_CHANNEL_DATA

from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.rawhub import RawHub
from tests.support.rawssh import Denied, Opened, RawSSH, Refused
from tests.support.services import Ends, serving
from tests.support.system import AgentOf
from tests.threats.conftest import OWNERS, ZONES

GREETING = b"inside"
QUIET = 0.3
"""Seconds for a byte that was passed on to be seen."""
Strangers = dict[tuple[str, str], AgentOf]


@pytest.fixture(scope="module")
def target(pair: Pair) -> AgentOf:
    """A space of alice's in eu whose endpoint is played by the test."""
    agent = pair.system.space("played")
    agent.stop()
    return agent


@pytest.fixture
def played(target: AgentOf) -> Iterator[RawHub]:
    with RawHub.member(target) as far:
        assert far.register(f"{target.name}.alice.eu.knot")
        yield far


def directly(pair: Pair, who: AgentOf, port: int) -> bool:
    """Whether the service behind backend-api's endpoint answers them."""
    try:
        with RawSSH.login(pair.backend.endpoint(), who.identity()[0]) as peer:
            channel = peer.open(port)
            _, packet = peer.expect(MSG_CHANNEL_DATA)
            return (packet.get_uint32(), packet.get_string()) == (channel.ours, GREETING)
    except Denied:
        return False


def relayed(pair: Pair, who: AgentOf, _port: int) -> bool:
    """Whether the hub lets them through to backend-api's endpoint, which speaks first."""
    with RawHub.caller(who) as near:
        channel = near.relayed(pair.backend.id)
        return isinstance(channel, Opened) and near.read(channel, 4).startswith(b"SSH-")


@pytest.mark.threat(2, "another owner or zone, with a good certificate: owner x zone x path", "only equal/equal opens")
@pytest.mark.parametrize("path", [directly, relayed], ids=lambda path: path.__name__)
def test_matrix(pair: Pair, strangers: Strangers, figure: Figure, path: Callable[[Pair, AgentOf, int], bool]) -> None:
    """Of two owners in two zones the one of the same owner and zone gets in, by either path; no service sees the others."""
    ends = Ends(GREETING)
    with serving(ends) as port:
        let_in = [key for key, who in strangers.items() if path(pair, who, port)]
    figure(f"{len(let_in)} of {len(strangers)} let in, {len(ends.seen)} seen by the service")
    assert let_in == [("alice", "eu")]
    assert len(ends.seen) == (path is directly)


@pytest.mark.threat(
    24, "the hub as open relay: owner x zone x every name of a space", "refused before a byte reaches the target"
)
def test_nothing_reaches_the_target(target: AgentOf, played: RawHub, strangers: Strangers, figure: Figure) -> None:
    """Whoever else asks for the space, under its name, its full name or its id: its endpoint is not even asked."""
    names = (target.name, f"{target.name}.knot", f"{target.name}.alice.eu.knot", target.id)
    answers = []
    for key in ((owner, zone) for owner in OWNERS for zone in ZONES):
        with RawHub.caller(strangers[key]) as near:
            if key != ("alice", "eu"):
                answers += [near.relayed(name) for name in names]
    figure(f"{sum(isinstance(answer, Refused) for answer in answers)} of {len(answers)} refused, no byte at the target")
    assert all(isinstance(answer, Refused) for answer in answers)
    assert is_unasked(played)


def is_unasked(played: RawHub) -> bool:
    """Whether the hub passes nothing on to this endpoint."""
    played.sock.settimeout(QUIET)
    try:
        played.asked()
    except TimeoutError:
        return True
    return False


@pytest.mark.threat(24, "the same caller after one who may", "each is judged alone")
def test_the_owner_gets_through(target: AgentOf, played: RawHub, strangers: Strangers, figure: Figure) -> None:
    """The target is asked for its own owner and zone, and while that one is open nobody else gets through."""
    with RawHub.caller(strangers["alice", "eu"]) as near, RawHub.caller(strangers["bob", "eu"]) as other:
        near.sock.sendall(near.opening(22, host=target.id))
        played.grant(played.asked())
        mine, theirs = near.answer(), other.relayed(target.id)
        figure(f"owner: {type(mine).__name__.lower()}, other: {type(theirs).__name__.lower()}")
        assert isinstance(mine, Opened)
        assert isinstance(theirs, Refused)
        assert is_unasked(played)
