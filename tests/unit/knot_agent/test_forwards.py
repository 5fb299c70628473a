"""Forwards: ports, links and memory in step, whatever fails."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from knot_agent import forward as module
from knot_agent.forwards import Filed, Forwards
from knot_agent.linklife import Path as LinkPath
from knot_agent.links import CONNECTING, Down, Link, Links, Up
from knot_agent.memory import Memory
from knot_keys.connections import ClientConnection
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import HeldByFile, NotFound, PortTaken, Unavailable
from knot_ssh.names import Owner, Port, SpaceId, SpaceName, Zone
from knot_ssh.wire import ApplyAnswer, ApplyOrder, ForwardOrder, ForwardStatus, StopRequest, Target, WantedForward
from tests.support.ports import free_ports
from tests.support.reactors import on_both
from tests.support.waiting import becomes
from tests.unit.knot_ssh.dataplane.bench import PATIENCE, PEERS, WINDOW, FakeConnection, fake_connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OWN = SpaceId.new()
BACKEND = Target(
    id=SpaceId.new(),
    name=SpaceName("backend"),
    owner=Owner("alice"),
    zone=Zone("eu"),
    addresses=["10.0.0.7:2022"],
    running=True,
)
OTHER = BACKEND.model_copy(update={"id": SpaceId.new(), "name": SpaceName("other")})
AGAIN = 0.02
"""Seconds between attempts to get a taken port, in these tests."""


class FakeLink:
    """A link that is up when the test says so; channels are asked for on `connection`."""

    def __init__(self, target: Target, connection: FakeConnection) -> None:
        self.target = target
        self.connection = connection
        self.state: Up | Down = CONNECTING
        self.tally = Tally()
        self.on_state: set[Callable[[], None]] = set()
        self.holders = 0
        self.asked: list[Channel] = []
        self._up = asyncio.Event()

    def becomes(self, state: Up | Down) -> None:
        self.state = state
        if isinstance(state, Up):
            self._up.set()
        else:
            self._up.clear()
        for listener in list(self.on_state):
            listener()

    def up(self) -> None:
        self.becomes(Up(cast("ClientConnection", self.connection), LinkPath("direct", "10.0.0.7:2022"), 0))

    def down(self, reason: str = "connection lost", *, gone: bool = False) -> None:
        self.becomes(Down(reason, gone))

    def carry(self, channel: Channel, port: Port) -> bool:
        if not isinstance(self.state, Up):
            return False
        channel.ask(self.connection.real, "localhost", int(port))
        self.asked.append(channel)
        return True

    async def wait_up(self, patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                await self._up.wait()
        except TimeoutError:
            raise Unavailable("backend: not up") from None


class FakeLinks:
    """One link for each target; none is ever closed."""

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self._links: dict[SpaceId, FakeLink] = {}

    def __getitem__(self, target: Target) -> FakeLink:
        if target.id not in self._links:
            self._links[target.id] = FakeLink(target, self._connection)
        return self._links[target.id]

    def hold(self, target: Target) -> Link:
        link = self[target]
        link.holders += 1
        return cast("Link", link)

    def release(self, link: Link) -> None:
        cast("FakeLink", link).holders -= 1


class CountingMemory(Memory):
    """Counts what it is given to keep."""

    writes = 0

    def keep_forwards(self, forwards: list[ForwardOrder]) -> None:
        self.writes += 1
        super().keep_forwards(forwards)


class Scene:
    """The forwards of an agent, its links and its memory."""

    def __init__(self, plane: DataPlane, connection: FakeConnection, folder: Path, patience: float) -> None:
        self.plane = plane
        self.connection = connection
        self.links = FakeLinks(connection)
        self.link = self.links[BACKEND]
        self.memory = CountingMemory(folder, OWN)
        self.forwards = Forwards(plane, cast("Links", self.links), patience, self.memory)

    def status(self, port: Port) -> ForwardStatus:
        return next(status for status in reversed(self.forwards.list().forwards) if status.local_port == port)

    def state(self, port: Port) -> str:
        return self.status(port).state

    def remembered(self) -> list[int]:
        return [int(order.local_port) for order in self.memory.forwards]

    async def client(self, port: Port) -> socket.socket:
        """A connection to a forward; the caller closes it."""
        sock = socket.socket()
        sock.setblocking(False)
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", int(port)))
        return sock


@asynccontextmanager
async def scene(plane: DataPlane, folder: Path, patience: float = PATIENCE) -> AsyncIterator[Scene]:
    """At the end everything is closed, no link is held and no window is spent."""
    before = plane.budget.left
    with fake_connection(plane) as connection:
        made = Scene(plane, connection, folder, patience)
        try:
            yield made
        finally:
            await made.forwards.close()
        assert [link.holders for link in made.links._links.values()] == [0] * len(made.links._links)
        assert not any(link.on_state for link in made.links._links.values())
    assert plane.budget.left == before


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BIND_AGAIN", AGAIN)


@pytest.fixture
def ports() -> list[Port]:
    """Some that are free, no two the same."""
    return [Port(port) for port in free_ports(20)]


@pytest.fixture
def port(ports: list[Port]) -> Port:
    return ports[0]


@contextmanager
def taken(port: Port) -> Iterator[None]:
    """Another process has this port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", int(port)))
        sock.listen()
        yield


def order(port: Port, target: Target = BACKEND, remote_port: int = 3000, *, persistent: bool = True) -> ForwardOrder:
    return ForwardOrder(local_port=port, target=target, remote_port=Port(remote_port), persistent=persistent)


async def is_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(PATIENCE):
            await asyncio.get_running_loop().sock_recv(sock, 1)


# Making one


@on_both
async def test_bound_when_it_is_said(plane: DataPlane, tmp_path: Path, port: Port, ports: list[Port]) -> None:
    """Success means that the port is bound and, where it is persistent, remembered."""
    async with scene(plane, tmp_path) as stage:
        started = await stage.forwards.start(order(port))
        assert (started.status.state, started.replaced) == ("starting", None)
        (await stage.client(port)).close()
        assert stage.remembered() == [port]
        passing = ports[1]
        await stage.forwards.start(order(passing, persistent=False))
        assert stage.remembered() == [port]


@on_both
async def test_state_follows_the_link(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A bound forward is what its link is, with the reason where it is of no use."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        assert (stage.state(port), stage.status(port).mode, stage.status(port).reason) == ("listening", "direct", None)
        stage.link.down("no answer")
        assert (stage.state(port), stage.status(port).mode, stage.status(port).reason) == ("waiting", None, "no answer")
        stage.link.down("target gone", gone=True)
        assert (stage.state(port), stage.status(port).reason) == ("failed", "target gone")
        stage.link.up()
        assert stage.state(port) == "listening"


@on_both
async def test_taken_port_changes_nothing(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A port that another process has is an error, and nothing is kept of it."""
    async with scene(plane, tmp_path) as stage:
        with taken(port), pytest.raises(PortTaken):
            await stage.forwards.start(order(port))
        assert stage.forwards.list().forwards == []
        assert (stage.remembered(), stage.link.holders) == ([], 0)


@on_both
async def test_replacing(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """The same port again sends new connections to the new target; open ones keep theirs."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            started = await stage.forwards.start(order(port, OTHER, persistent=False))
            assert started.replaced == order(port)
            assert (stage.link.holders, stage.links[OTHER].holders) == (0, 1)
            assert stage.remembered() == []
            stage.links[OTHER].up()
            stage.link.down()
            assert stage.state(port) == "listening"
            with await stage.client(port):
                await becomes(lambda: len(stage.links[OTHER].asked) == 1, PATIENCE)
                assert not stage.link.asked[0].is_gone


# Restoring


@on_both
async def test_taken_port_at_restore(plane: DataPlane, tmp_path: Path, port: Port, ports: list[Port]) -> None:
    """At a restore a taken port fails that forward alone, with the reason, and it recovers once the port is free."""
    free = ports[1]
    async with scene(plane, tmp_path) as stage:
        stage.link.up()
        with taken(port):
            await stage.forwards.restore([order(port), order(free)])
            assert (stage.state(port), stage.state(free)) == ("failed", "listening")
            assert "taken by another process" in (stage.status(port).reason or "")
            assert stage.remembered() == [port, free]
        await becomes(lambda: stage.state(port) == "listening", PATIENCE)
        assert stage.status(port).reason is None
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)


@on_both
async def test_link_of_a_taken_port(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """While the port is taken nothing that the link says makes the forward look sound."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.restore([order(port)])
            for change in (stage.link.up, stage.link.down, stage.link.up):
                change()
                assert stage.state(port) == "failed"
                assert "taken" in (stage.status(port).reason or "")


@on_both
async def test_replacing_while_the_port_is_taken(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """An order for a port that is still taken is an error and changes nothing; what was there goes on trying."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.restore([order(port)])
            with pytest.raises(PortTaken):
                await stage.forwards.start(order(port, OTHER))
            assert stage.forwards.get(port) == order(port)
            assert (stage.link.holders, stage.links[OTHER].holders) == (1, 0)
        stage.link.up()
        await becomes(lambda: stage.state(port) == "listening", PATIENCE)


@on_both
async def test_replacing_once_the_port_is_free(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """An order binds the port as soon as it is free, and the attempts that were under way do not spoil that."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.restore([order(port)])
        started = await stage.forwards.start(order(port, OTHER))
        assert started.replaced == order(port)
        stage.links[OTHER].up()
        assert stage.state(port) == "listening"
        forward = stage.forwards._forwards[port]
        await becomes(lambda: not len(forward._tasks), PATIENCE)
        assert (stage.state(port), stage.status(port).reason) == ("listening", None)


@on_both
async def test_stopping_while_the_port_is_taken(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A forward that never got its port can be stopped, and tries no more."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.restore([order(port)])
            forward = stage.forwards._forwards[port]
            assert (await stage.forwards.stop(StopRequest(local_port=port))).state == "stopped"
        assert not len(forward._tasks)
        assert not forward.is_bound


@on_both
async def test_restore_is_the_whole_truth_of_persistent_ones(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """What is not in the list is stopped if it was persistent; what is, is made or changed; all others stay."""
    stale, changed, passing, new = ports[:4]
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.restore([order(stale), order(changed)])
        await stage.forwards.start(order(passing, persistent=False))
        await stage.forwards.restore([order(changed, OTHER, 4000), order(new)])
        assert stage.forwards.get(stale) is None
        assert stage.forwards.get(changed) == order(changed, OTHER, 4000)
        assert stage.forwards.get(passing) == order(passing, persistent=False)
        assert stage.forwards.get(new) == order(new)
        assert stage.remembered() == [changed, new]


@on_both
async def test_restoring_the_same_disturbs_nothing(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A forward that the list has as it is keeps its connections and its link."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.restore([order(port)])
        stage.link.up()
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            moved = BACKEND.model_copy(update={"addresses": [], "running": False})
            await stage.forwards.restore([order(port, moved)])
            assert stage.link.holders == 1
            assert not stage.link.asked[0].is_gone


@on_both
async def test_renamed_target(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A target that was renamed is shown, remembered and given back under the name that its link knows."""
    renamed = BACKEND.model_copy(update={"name": SpaceName("new")})
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        assert stage.status(port).space == "backend"
        stage.link.target = renamed
        assert (stage.status(port).space, stage.status(port).space_id) == ("new", BACKEND.id)
        started = await stage.forwards.start(order(port, OTHER))
        assert started.replaced == order(port, renamed)
        await stage.forwards.start(order(port))
        assert stage.memory.forwards == [order(port, renamed)]


@on_both
async def test_memory_is_written_once_a_restore(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """However many forwards a restore makes, stops and changes, memory is written once, at the end."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.restore([order(port) for port in ports])
        assert (stage.memory.writes, stage.remembered()) == (1, ports)
        await stage.forwards.restore([order(port, OTHER) for port in ports[10:]])
        assert (stage.memory.writes, stage.remembered()) == (2, ports[10:])


# Stopping


@on_both
async def test_stopping(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """To stop a forward frees its port, resets its connections, and is remembered."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port) as sock:
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            stage.link.asked[0].process_open_confirmation(PEERS, WINDOW, 32768)
            status = await stage.forwards.stop(StopRequest(local_port=port))
            assert (status.state, status.mode, status.reason) == ("stopped", None, None)
            await is_reset(sock)
        with taken(port):
            pass
        assert stage.remembered() == []
        with pytest.raises(NotFound):
            await stage.forwards.stop(StopRequest(local_port=port))


@on_both
async def test_what_was_carried_is_not_forgotten(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """What all forwards have carried only grows, whichever of them are stopped; none of a stopped one's connections is open."""
    async with scene(plane, tmp_path) as stage:
        stage.link.up()
        for port in ports[:2]:
            await stage.forwards.start(order(port))
        assert stage.forwards.states() == {"listening": 2}
        with await stage.client(ports[0]), await stage.client(ports[1]):
            await becomes(lambda: len(stage.link.asked) == 2, PATIENCE)
            for channel in stage.link.asked:
                channel.process_open_confirmation(PEERS, WINDOW, 32768)
                channel.owner.tally.sent += 100
            await stage.forwards.stop(StopRequest(local_port=ports[0]))
            stopped = stage.forwards.carried()
            assert (stopped.sent, stopped.opened, stopped.open) == (200, 2, 1)
            await stage.forwards.stop(StopRequest(local_port=ports[1], drain=True))
            assert stage.forwards.states() == {"draining": 1}
            assert stage.forwards.carried().sent == 200
            await stage.forwards.stop(StopRequest(local_port=ports[1]))
        assert stage.forwards.states() == {}
        await stage.forwards.start(order(ports[0]))
        total = stage.forwards.carried()
        assert (total.sent, total.opened, total.open) == (200, 2, 0)


@on_both
async def test_what_was_carried_never_shrinks(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """Not even in the middle of stopping a forward is there less than before."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.down()
        with await stage.client(port):
            await becomes(lambda: stage.link._up._waiters, PATIENCE)
            stage.forwards._forwards[port].tally.sent += 100
            stopping = asyncio.ensure_future(stage.forwards.stop(StopRequest(local_port=port)))
            turns = 0
            while not stopping.done():
                assert stage.forwards.carried().sent == 100
                await asyncio.sleep(0)
                turns += 1
            assert turns > 1
            assert stage.forwards.carried().sent == 100


@on_both
async def test_stopping_alone(plane: DataPlane, tmp_path: Path, port: Port, ports: list[Port]) -> None:
    """Without the server a persistent forward's end is noted for it; a passing one's, or none's, is not."""
    passing = ports[1]
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        await stage.forwards.start(order(passing, persistent=False))
        assert (await stage.forwards.stop_alone(StopRequest(local_port=port))).state == "stopped"
        await stage.forwards.stop_alone(StopRequest(local_port=passing))
        with pytest.raises(NotFound):
            await stage.forwards.stop_alone(StopRequest(local_port=port))
        assert [(gone.local_port, gone.target_id) for gone in stage.memory.stopped] == [(port, BACKEND.id)]
        assert Memory(tmp_path, OWN).forwards == []


@on_both
async def test_stopping_what_was_made_anew(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """The server is told of which making was stopped: that of its last word."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port).model_copy(update={"made": "first"}))
        await stage.forwards.restore([order(port).model_copy(update={"made": "second"})])
        assert [kept.made for kept in stage.memory.forwards] == ["second"]
        await stage.forwards.stop_alone(StopRequest(local_port=port))
        assert [gone.made for gone in stage.memory.stopped] == ["second"]


@on_both
async def test_the_end_is_no_stop(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """What was persistent when the agent ends is remembered for the next start."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
    assert [kept.local_port for kept in Memory(tmp_path, OWN).forwards] == [port]


# Connections


@on_both
async def test_connection_waits_for_the_link(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A connection that comes while there is no link is carried as soon as there is one."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.down()
        with await stage.client(port):
            await becomes(lambda: stage.link._up._waiters, PATIENCE)
            assert stage.link.asked == []
            stage.link.up()
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)


@on_both
async def test_connection_is_held_for_a_while(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """When no link comes in time the connection is reset, and the listing says why."""
    async with scene(plane, tmp_path, patience=0.05) as stage:
        await stage.forwards.start(order(port))
        stage.link.down("no answer")
        with await stage.client(port) as sock:
            await is_reset(sock)
        stage.link.up()
        assert "not up" in (stage.status(port).reason or "")
        counters = stage.status(port).counters
        assert counters
        assert counters.refused == 1


@on_both
async def test_unanswered_connection_is_carried_again(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A connection that the target had not answered when its link was lost is carried by the next link, with all it said."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port) as sock:
            sock.send(b"early")
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            stage.link.down()
            stage.connection.lose()
            stage.link.up()
            await becomes(lambda: len(stage.link.asked) == 2, PATIENCE)
            stage.link.asked[1].process_open_confirmation(PEERS, WINDOW, 32768)
            await becomes(lambda: bytes(stage.connection.sent) == b"early", PATIENCE)


@on_both
async def test_carried_again_for_a_while_only(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A target that takes the link and loses it again and again does not hold a connection for longer than one wait."""
    async with scene(plane, tmp_path, patience=0.2) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port) as sock:
            reading = asyncio.ensure_future(is_reset(sock))
            until = asyncio.get_running_loop().time() + PATIENCE
            while not reading.done():
                assert asyncio.get_running_loop().time() < until
                stage.link.down()
                stage.connection.lose()
                await asyncio.sleep(0.01)
                stage.link.up()
                await asyncio.sleep(0.01)
            await reading


# Applying


def applying(*orders: ForwardOrder, force: bool = False, dry_run: bool = False) -> ApplyOrder:
    return ApplyOrder(forwards=[WantedForward(order=wanted, force=force) for wanted in orders], dry_run=dry_run)


def made(answer: ApplyAnswer) -> tuple[list[int], list[int], list[int]]:
    """The ports of applied, stopped and errors."""
    return (
        [int(change.order.local_port) for change in answer.applied],
        [int(stopped.local_port) for stopped in answer.stopped],
        [int(error.local_port) for error in answer.errors],
    )


@on_both
async def test_apply(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """New ones are made, changed ones replaced in place, others stopped; what is as wanted keeps its connections."""
    kept, changed, gone, new = ports[:4]
    async with scene(plane, tmp_path) as stage:
        for port in (kept, changed, gone):
            await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(kept), await stage.client(changed):
            await becomes(lambda: len(stage.link.asked) == 2, PATIENCE)
            writes = stage.memory.writes
            answer = await stage.forwards.apply(applying(order(new, OTHER), order(changed, persistent=False), order(kept)))
            assert made(answer) == (sorted([changed, new]), [gone], [])
            replaced = {change.order.local_port: change.replaced for change in answer.applied}
            assert replaced == {new: None, changed: order(changed, BACKEND.model_copy(update={"addresses": []}))}
            assert not any(channel.is_gone for channel in stage.link.asked)
            assert stage.memory.writes == writes + 1
        assert stage.remembered() == sorted([kept, new])
        assert made(await stage.forwards.apply(applying())) == ([], sorted([kept, changed, new]), [])
        assert stage.forwards.list().forwards == []


@on_both
async def test_apply_where_something_is_in_the_way(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """What cannot be made is an error with its reason; what stood on its port stands as before, and all others are made."""
    busy, away, fine = ports[:3]
    nowhere = OTHER.model_copy(update={"running": False})
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(away))
        with taken(busy):
            answer = await stage.forwards.apply(applying(order(busy), order(away, nowhere), order(fine)))
            assert made(answer) == ([fine], [], sorted([busy, away]))
            assert {error.local_port: error.code for error in answer.errors} == {busy: "port_taken", away: "not_running"}
            assert stage.forwards.get(away) == order(away)
        answer = await stage.forwards.apply(applying(order(busy), order(away, nowhere), order(fine), force=True))
        assert made(answer) == (sorted([busy, away]), [], [])


@on_both
async def test_apply_of_what_has_no_port(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A forward that stands, but whose port is taken, is an error until the port is free; then it is applied."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.restore([order(port)])
            for dry_run in (True, False):
                assert made(await stage.forwards.apply(applying(order(port), dry_run=dry_run))) == ([], [], [port])
        assert made(await stage.forwards.apply(applying(order(port)))) == ([port], [], [])
        assert made(await stage.forwards.apply(applying(order(port)))) == ([], [], [])


@on_both
async def test_dry_run(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """A dry run answers as the real one would, with ports that are taken, and changes nothing."""
    kept, changed, gone, new, busy = ports[:5]
    wanted = (order(kept), order(changed, OTHER), order(new), order(busy))
    async with scene(plane, tmp_path) as stage:
        for port in (kept, changed, gone):
            await stage.forwards.start(order(port))
        before = [forward.model_dump() for forward in stage.forwards.list().forwards]
        with taken(busy):
            planned = await stage.forwards.apply(applying(*wanted, dry_run=True))
            assert [forward.model_dump() for forward in stage.forwards.list().forwards] == before
            assert stage.remembered() == sorted([kept, changed, gone])
            assert await stage.forwards.apply(applying(*wanted)) == planned
        assert made(planned) == (sorted([changed, new]), [gone], [busy])


@on_both
async def test_apply_goes_to_its_end(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """Once it has begun a change is made as a whole, though whoever asked for it is cancelled in the middle."""
    for moments in range(1, 5):
        async with scene(plane, tmp_path) as stage:
            with taken(ports[0]):
                await stage.forwards.restore([order(port) for port in ports])
            asking = asyncio.ensure_future(stage.forwards.apply(applying(order(ports[1], OTHER))))
            for _ in range(moments):
                await asyncio.sleep(0)
            asking.cancel()
            await stage.forwards.stop(StopRequest(local_port=ports[1]))
            assert (stage.forwards.list().forwards, stage.remembered()) == ([], [])


# Draining


@on_both
async def test_draining(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """The port is free at once, open connections go on and are counted; with the last of them the forward is over."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            [channel] = stage.link.asked
            channel.process_open_confirmation(PEERS, WINDOW, 32768)
            for _ in range(2):
                status = await stage.forwards.stop(StopRequest(local_port=port, drain=True))
                assert (status.state, status.counters and status.counters.open) == ("draining", 1)
            assert stage.state(port) == "draining"
            assert stage.remembered() == []
            with taken(port):
                stage.link.down()
                stage.link.up()
                assert stage.state(port) == "draining"
                assert not channel.is_gone
            assert stage.link.holders == 1
        channel.process_connection_close(None)
        await becomes(lambda: stage.forwards.list().forwards == [], PATIENCE)
        assert stage.link.holders == 0


@on_both
async def test_draining_nothing(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """Without open connections there is nothing to wait for."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        assert (await stage.forwards.stop(StopRequest(local_port=port, drain=True))).state == "stopped"
        with pytest.raises(NotFound):
            await stage.forwards.stop(StopRequest(local_port=port, drain=True))


@on_both
async def test_stopping_what_drains(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A stop without patience resets what is still open; a new forward on the port is not concerned, and shown alone."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port) as sock:
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            stage.link.asked[0].process_open_confirmation(PEERS, WINDOW, 32768)
            await stage.forwards.stop(StopRequest(local_port=port, drain=True))
            await stage.forwards.start(order(port, OTHER))
            assert [(status.space, status.state) for status in stage.forwards.list().forwards] == [
                ("backend", "draining"),
                ("other", "starting"),
            ]
            await stage.forwards.stop(StopRequest(local_port=port))
            assert stage.state(port) == "draining"
            assert (await stage.forwards.stop(StopRequest(local_port=port))).state == "stopped"
            await is_reset(sock)
        await becomes(lambda: stage.forwards.list().forwards == [], PATIENCE)


# By the agent's file


def filed(port: Port, target: Target = BACKEND, bind: str = "127.0.0.1") -> Filed:
    return Filed(order(port, target, persistent=False), bind)


@on_both
async def test_file_and_command(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """What the file makes no command changes, and says so; what a command made the file leaves alone."""
    by_file, by_command = ports[:2]
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(by_command))
        await stage.forwards.set_filed([filed(by_file)])
        assert {port: stage.status(port).origin for port in (by_file, by_command)} == {by_file: "file", by_command: "command"}
        for refused in (stage.forwards.start(order(by_file, OTHER)), stage.forwards.stop(StopRequest(local_port=by_file))):
            with pytest.raises(HeldByFile):
                await refused
        for dry_run in (True, False):
            answer = await stage.forwards.apply(applying(order(by_file, OTHER), dry_run=dry_run))
            assert made(answer) == ([], [by_command], [by_file])
            assert answer.errors[0].code == "held_by_file"
        assert stage.forwards.get(by_file) == order(by_file, persistent=False)
        assert stage.remembered() == []
        await stage.forwards.set_filed([])
        assert stage.forwards.list().forwards == []


@on_both
async def test_file_covers_a_command(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A port that both want is the file's, without a connection lost; the other is remembered, and back when it is let go."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        stage.link.up()
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            await stage.forwards.set_filed([filed(port, OTHER)])
            assert (stage.status(port).space, stage.status(port).origin, stage.remembered()) == ("other", "file", [port])
            await stage.forwards.restore([order(port, remote_port=4000)])
            assert stage.status(port).space == "other"
            await stage.forwards.set_filed([])
            assert stage.forwards.get(port) == order(port, remote_port=4000)
            assert (stage.status(port).origin, stage.remembered()) == ("command", [port])
            assert not stage.link.asked[0].is_gone
        await stage.forwards.set_filed([filed(port, OTHER)])
        assert made(await stage.forwards.apply(applying(order(port, remote_port=4000)))) == ([], [], [port])
        assert stage.remembered() == [port]
        assert made(await stage.forwards.apply(applying())) == ([], [], [])
        assert stage.remembered() == []
        await stage.forwards.set_filed([])
        assert stage.forwards.list().forwards == []


@on_both
async def test_one_line_of_a_file(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """A change of one entry touches that forward alone."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.set_filed([filed(port) for port in ports])
        before = dict(stage.forwards._forwards)
        held = stage.link.holders
        await stage.forwards.set_filed([filed(port, OTHER if port == ports[3] else BACKEND) for port in ports])
        assert stage.forwards._forwards == before
        assert [status.space for status in stage.forwards.list().forwards].count("other") == 1
        assert (stage.link.holders, stage.links[OTHER].holders) == (held - 1, 1)


@on_both
async def test_file_wants_a_port(plane: DataPlane, tmp_path: Path, ports: list[Port]) -> None:
    """A forward of the file that cannot be made yet is shown, and no command changes it; one by command that is there stays."""
    wanted, both = ports[:2]
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(both))
        status = stage.status(both).model_copy(update={"state": "waiting", "origin": "file", "space_id": None})
        await stage.forwards.set_filed([], [status.model_copy(update={"local_port": port}) for port in (wanted, both)])
        assert [stage.state(wanted), stage.status(both).origin] == ["waiting", "command"]
        listed = [(forward.local_port, forward.origin) for forward in stage.forwards.list().forwards]
        assert listed == [(wanted, "file"), (both, "file"), (both, "command")]
        for refused in (stage.forwards.start(order(wanted)), stage.forwards.stop(StopRequest(local_port=wanted))):
            with pytest.raises(HeldByFile):
                await refused
        assert made(await stage.forwards.apply(applying(order(wanted)))) == ([], [both], [wanted])


@on_both
async def test_port_of_the_file_is_free_at_no_moment(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """While the file learns where its port is to lead, behind another change, a command cannot take that port."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.set_filed([filed(port)])
        status = stage.status(port)
        await stage.forwards.set_filed([], [status.model_copy(update={"state": "waiting", "space_id": None})])
        command, _ = await asyncio.gather(
            stage.forwards.start(order(port, OTHER)), stage.forwards.set_filed([filed(port)]), return_exceptions=True
        )
        assert isinstance(command, HeldByFile)
        assert stage.status(port).origin == "file"


@on_both
async def test_file_knows_a_target_no_more(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A port whose target the file's forward has lost leads nowhere: what it covers is back when the file lets go alone."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.start(order(port))
        await stage.forwards.set_filed([filed(port, OTHER)])
        await stage.forwards.set_filed([], [stage.status(port).model_copy(update={"state": "failed", "space_id": None})])
        assert [stage.state(port), stage.remembered()] == ["failed", [port]]
        with taken(port):
            pass
        with pytest.raises(HeldByFile):
            await stage.forwards.stop(StopRequest(local_port=port))
        await stage.forwards.restore([order(port, remote_port=4000)])
        assert stage.state(port) == "failed"
        await stage.forwards.set_filed([])
        assert stage.forwards.get(port) == order(port, remote_port=4000)
        assert (stage.status(port).origin, stage.state(port)) == ("command", "starting")


@on_both
async def test_file_binds_elsewhere(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A forward of the file is bound where the file says; when that changes its open connections go on."""
    async with scene(plane, tmp_path) as stage:
        await stage.forwards.set_filed([filed(port, bind="127.0.0.2")])
        with taken(port):
            pass
        await stage.forwards.set_filed([filed(port)])
        stage.link.up()
        with await stage.client(port):
            await becomes(lambda: len(stage.link.asked) == 1, PATIENCE)
            stage.link.asked[0].process_open_confirmation(PEERS, WINDOW, 32768)
            await stage.forwards.set_filed([filed(port, bind="127.0.0.2")])
            assert (stage.status(port).bind, stage.state(port)) == ("127.0.0.2", "listening")
            assert not stage.link.asked[0].is_gone
        stage.link.asked[0].process_connection_close(None)
        await becomes(lambda: not stage.forwards._draining, PATIENCE)


@on_both
async def test_file_at_a_taken_port(plane: DataPlane, tmp_path: Path, port: Port) -> None:
    """A port that is taken fails that forward of the file, with the reason, until it is free."""
    async with scene(plane, tmp_path) as stage:
        with taken(port):
            await stage.forwards.set_filed([filed(port)])
            assert stage.state(port) == "failed"
        stage.link.up()
        await becomes(lambda: stage.state(port) == "listening", PATIENCE)
