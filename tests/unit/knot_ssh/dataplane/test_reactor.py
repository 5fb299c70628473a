"""Both reactors keep the same contract, beside an asyncio that notices nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TypeVar

import pytest
from structlog.testing import capture_logs

from knot_ssh.dataplane import reactor as module
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.reactor import READ, WRITE, EpollReactor
from tests.support.reactors import KINDS, on_both, on_fast, run_on
from tests.support.waiting import becomes

Result = TypeVar("Result")

PATIENCE = 5.0
"""Seconds after which a test gives up waiting for what should come at once."""
QUIET = 0.02
"""Seconds in which whatever is not to happen would have happened."""
LATE = 0.5
"""Seconds that a timer may be late on a busy machine; one that is forgotten is later."""


class Ear:
    """Watches one end of a socket pair and notes what it is told. `acts` are done then."""

    def __init__(self, plane: DataPlane, name: str, journal: list[str]) -> None:
        self.reactor = plane.reactor
        self.name = name
        self.journal = journal
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.events = 0
        self.data = bytearray()
        self.reads = True
        self.acts: dict[str, Callable[[], object]] = {}

    @property
    def fd(self) -> int:
        return self.near.fileno()

    def told(self, what: str = "event") -> int:
        """How often it was told."""
        return self.journal.count(f"{self.name} {what}")

    def watch(self) -> None:
        self.reactor.watch(self.fd, self)

    def put_off(self) -> None:
        """Ask for another turn, and for the end of this one."""
        self.reactor.at_end(self)
        self.reactor.again(self)

    def close(self) -> None:
        if self.fd >= 0:
            self.reactor.forget(self.fd, self)
        self.near.close()
        self.far.close()

    def on_event(self, events: int) -> None:
        self.events |= events
        if events & ~WRITE:  # room alone may be told to who does not want to hear of it: that is a hint
            self._note("event")
            if self.reads and self.fd >= 0:
                self.drain()

    def on_turn(self) -> None:
        self._note("turn")

    def on_turn_end(self) -> None:
        self._note("end")

    def on_crash(self) -> None:
        self._note("crash")

    def drain(self) -> None:
        """Read until there is nothing, and say so."""
        try:
            while data := self.near.recv(65536):
                self.data += data
        except BlockingIOError:
            self.reactor.want_read(self.fd)

    def _note(self, what: str) -> None:
        self.journal.append(f"{self.name} {what}")
        if what in self.acts:
            self.acts[what]()


@contextmanager
def ears(plane: DataPlane, *names: str) -> Iterator[list[Ear]]:
    """Handlers with these names that share a journal; not watched yet."""
    journal: list[str] = []
    with ExitStack() as stack:
        made = [Ear(plane, name, journal) for name in names]
        for ear in made:
            stack.callback(ear.close)
        yield made


@contextmanager
def ear(plane: DataPlane) -> Iterator[Ear]:
    """A handler that is watched."""
    with ears(plane, "ear") as [only]:
        only.watch()
        yield only


class Player:
    """Plays a byte back whenever it comes, and so keeps the reactor busy for as long as the other one does."""

    def __init__(self, plane: DataPlane, sock: socket.socket) -> None:
        self.reactor = plane.reactor
        self.sock = sock
        self.rounds = 0
        self.once: Callable[[], object] | None = None

    def on_event(self, events: int) -> None:
        try:
            ball = self.sock.recv(100)
        except BlockingIOError:
            return
        self.reactor.want_read(self.sock.fileno())
        self.rounds += 1
        if self.once:
            act, self.once = self.once, None
            act()
        self.sock.send(ball)

    def on_turn(self) -> None:
        raise AssertionError

    on_turn_end = on_crash = on_turn


@contextmanager
def busy(plane: DataPlane) -> Iterator[Player]:
    """The reactor always has something to do for its own sockets."""
    ends = socket.socketpair()
    players = [Player(plane, sock) for sock in ends]
    for sock, player in zip(ends, players, strict=True):
        sock.setblocking(False)
        plane.reactor.watch(sock.fileno(), player)
    ends[0].send(b"o")
    yield players[0]
    assert players[0].rounds > 0
    for sock, player in zip(ends, players, strict=True):
        plane.reactor.forget(sock.fileno(), player)
        sock.close()


async def alone(waited: Awaitable[Result]) -> Result:
    """Wait with no timer in the loop that would wake it; another thread gives up when that takes too long."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(waited)
    watchdog = threading.Timer(PATIENCE, loop.call_soon_threadsafe, [task.cancel])
    watchdog.start()
    try:
        return await task
    finally:
        watchdog.cancel()
        watchdog.join()


# Readiness


@on_both
async def test_data_that_is_there_already(plane: DataPlane) -> None:
    """Whoever begins to watch is told of data that came before."""
    with ears(plane, "ear") as [late]:
        late.far.send(b"early")
        late.watch()
        await becomes(lambda: late.data == b"early")
        assert late.events & READ


@on_both
async def test_nothing_is_told_of_nothing(plane: DataPlane) -> None:
    """A socket that was read empty is quiet until there is more."""
    with ear(plane) as quiet:
        quiet.far.send(b"one")
        await becomes(lambda: quiet.data == b"one")
        told = quiet.told()
        await asyncio.sleep(QUIET)
        assert quiet.told() == told
        quiet.far.send(b"two")
        await becomes(lambda: quiet.data == b"onetwo")


@on_both
async def test_handler_is_told_once(plane: DataPlane) -> None:
    """Who does not read what it was told of is not told again and again."""
    with ear(plane) as lazy:
        lazy.reads = False
        lazy.far.send(b"x")
        await becomes(lambda: lazy.events & READ)
        told = lazy.told()
        await asyncio.sleep(QUIET)
        assert lazy.told() == told


@on_both
async def test_every_edge_is_told(plane: DataPlane) -> None:
    """However often a socket is read empty, the next data is told."""
    with ear(plane) as eager:
        for count in range(1, 101):
            eager.far.send(b"x")
            await becomes(lambda: len(eager.data) == count)  # noqa: B023


@on_both
async def test_end_is_told(plane: DataPlane) -> None:
    """The end of the stream is told."""
    with ear(plane) as last:
        await asyncio.sleep(QUIET)
        told = last.told()
        last.far.close()
        await becomes(lambda: last.told() > told)


@on_both
async def test_room_is_told(plane: DataPlane) -> None:
    """Who has met a full socket hears of room in it, each time."""
    with ear(plane) as writer:
        for _ in range(3):
            fill(writer.near)
            writer.events = 0
            plane.reactor.want_write(writer.fd)
            await asyncio.sleep(QUIET)
            assert not writer.events & WRITE
            empty(writer.far)
            await becomes(lambda: writer.events & WRITE)


@on_both
async def test_room_that_is_there_already(plane: DataPlane) -> None:
    """Who wants to hear of room hears of room that there is by then."""
    with ear(plane) as writer:
        fill(writer.near)
        empty(writer.far)
        writer.events = 0
        plane.reactor.want_write(writer.fd)
        await becomes(lambda: writer.events & WRITE)


@on_both
async def test_reading_goes_on_beside_writing(plane: DataPlane) -> None:
    """Who waits for room still hears of data, and the other way round."""
    with ear(plane) as both:
        fill(both.near)
        plane.reactor.want_write(both.fd)
        both.far.send(b"data")
        await becomes(lambda: both.data == b"data")
        assert not both.events & WRITE
        empty(both.far)
        await becomes(lambda: both.events & WRITE)
        both.far.send(b"more")
        await becomes(lambda: both.data == b"datamore")


@on_both
async def test_more_descriptors_than_one_turn_takes(plane: DataPlane) -> None:
    """However many are ready at once, every one is told."""
    with pytest.MonkeyPatch.context() as patch, ears(plane, *map(str, range(20))) as many:
        patch.setattr(module, "EVENTS_A_TURN", 3)
        for each in many:
            each.watch()
            each.far.send(b"x")
        await becomes(lambda: all(each.data for each in many))


# Turns


@on_both
async def test_new_things_go_first(plane: DataPlane) -> None:
    """What is put off with `again` comes after everything that is new, and `at_end` after that."""
    with ears(plane, "a", "b") as [one, other]:
        for each in (one, other):
            each.acts["event"] = each.put_off
            each.far.send(b"x")
        one.watch()
        other.watch()
        await becomes(lambda: one.told("end") and other.told("end"))
        order = [entry.split()[1] for entry in one.journal if entry.startswith("a ")]
        assert order[:3] == ["event", "turn", "end"]
        assert {one.journal.index("a event"), one.journal.index("b event")} == {0, 1}


@on_both
async def test_again_starves_nobody(plane: DataPlane) -> None:
    """Who asks for another turn in every turn gets one a turn, and everybody else is served meanwhile."""
    with ears(plane, "greedy", "other") as [greedy, other]:
        greedy.acts["turn"] = lambda: plane.reactor.again(greedy)
        other.watch()
        plane.reactor.again(greedy)
        for count in range(1, 11):
            other.far.send(b"x")
            await becomes(lambda: len(other.data) == count)  # noqa: B023
        turns = greedy.told("turn")
        other.acts["event"] = greedy.acts.clear
        other.far.send(b"x")
        await becomes(lambda: not greedy.acts)
        assert turns > 10


@on_both
async def test_each_gets_its_turn(plane: DataPlane) -> None:
    """Among those who ask again and again turns are taken round robin."""
    with ears(plane, "a", "b", "c") as trio:
        left = {each.name: 5 for each in trio}

        def again(each: Ear) -> None:
            left[each.name] -= 1
            if left[each.name]:
                plane.reactor.again(each)

        for each in trio:
            each.acts["turn"] = partial(again, each)
            plane.reactor.again(each)
        await becomes(lambda: not any(left.values()))
        assert trio[0].journal == ["a turn", "b turn", "c turn"] * 5


@on_both
async def test_turn_that_is_asked_for_outside(plane: DataPlane) -> None:
    """What asyncio's side puts off is done though nothing else wakes the process."""
    with ears(plane, "ear") as [one]:
        for what, put_off in (("turn", plane.reactor.again), ("end", plane.reactor.at_end)):
            done = asyncio.Event()
            one.acts[what] = done.set
            put_off(one)
            await alone(done.wait())


@on_both
async def test_end_of_turn_comes_before_waiting(plane: DataPlane) -> None:
    """What was put off to the end of a turn is done before the process waits, and once."""
    with ear(plane) as one:
        one.acts["event"] = lambda: plane.reactor.at_end(one)
        one.acts["end"] = lambda: one.near.send(b"answer")
        one.far.settimeout(PATIENCE)
        one.far.send(b"question")
        assert await asyncio.to_thread(one.far.recv, 100) == b"answer"
        assert one.told("end") == one.told("event")


# Faults


@pytest.mark.parametrize("where", ["event", "turn", "end"])
@on_both
async def test_fault_ends_one_handler(plane: DataPlane, where: str) -> None:
    """A handler that raises is told to give up, alone; the fault is logged, and the loop goes on."""
    with ears(plane, "bad", "good") as [bad, good]:
        for each in (bad, good):
            each.acts["event"] = each.put_off
        bad.acts[where] = fail
        for each in (bad, good):
            each.far.send(b"x")
            each.watch()
        with capture_logs() as logs:
            await becomes(lambda: bad.told("crash") and good.told("end"))
        assert [(entry["event"], entry["handler"], entry["exc_info"]) for entry in logs] == [("data path fault", "Ear", True)]
        assert (bad.told("crash"), good.told("crash")) == (1, 0)
        good.far.send(b"y")
        await becomes(lambda: good.data == b"xy")


@on_both
async def test_fault_while_giving_up(plane: DataPlane) -> None:
    """A handler that raises while it gives up takes nobody with it either; both faults are logged."""
    with ears(plane, "bad", "good") as [bad, good]:
        bad.acts |= {"event": fail, "crash": fail}
        for each in (bad, good):
            each.watch()
            each.far.send(b"x")
        with capture_logs() as logs:
            await becomes(lambda: bad.told("crash") and good.data)
        assert [entry["event"] for entry in logs] == ["data path fault"] * 2


# Descriptors


@on_both
async def test_forgotten_handler_is_told_nothing(plane: DataPlane) -> None:
    """Who is forgotten hears nothing more, and forgetting again does nothing."""
    with ear(plane) as gone:
        await asyncio.sleep(QUIET)
        told = gone.told()
        plane.reactor.forget(gone.fd, gone)
        plane.reactor.forget(gone.fd, gone)
        gone.far.send(b"x")
        await asyncio.sleep(QUIET)
        assert gone.told() == told


@on_both
async def test_another_handler_takes_over(plane: DataPlane) -> None:
    """A descriptor may pass from one handler to the next, who is told of what is there; the first can do nothing to it."""
    with ears(plane, "first", "second") as [first, second]:
        first.reads = False
        first.watch()
        first.far.send(b"x")
        await becomes(lambda: first.events & READ)
        told = first.told()
        plane.reactor.watch(first.fd, second)
        plane.reactor.forget(first.fd, first)
        second.reads = False
        await becomes(lambda: second.events & READ)
        assert first.told() == told
        plane.reactor.forget(first.fd, second)


@on_both
async def test_waiting_for_room_is_not_inherited(plane: DataPlane) -> None:
    """A new handler of a descriptor hears of room when it wants to, whatever the one before has wanted."""
    with ears(plane, "first", "second") as [first, second]:
        first.watch()
        fill(first.near)
        plane.reactor.want_write(first.fd)
        plane.reactor.watch(first.fd, second)
        plane.reactor.want_write(first.fd)
        second.reads = False
        empty(first.far)
        await becomes(lambda: second.events & WRITE)
        plane.reactor.forget(first.fd, second)


@on_both
async def test_number_that_is_used_again_at_once(plane: DataPlane) -> None:
    """When one handler has another closed and its number used again, the one that is gone hears nothing more."""
    with ears(plane, "a", "b", "new") as [one, other, new]:
        numbers = {one.fd, other.fd}

        def replace(victim: Ear) -> None:
            if not numbers <= {one.fd, other.fd}:
                return
            fd = victim.fd
            plane.reactor.forget(fd, victim)
            victim.near.close()
            os.dup2(new.fd, fd)
            new.near.close()
            new.near = socket.socket(fileno=fd)
            new.watch()

        one.acts["event"] = lambda: replace(other)
        other.acts["event"] = lambda: replace(one)
        for each in (one, other):
            each.watch()
            each.far.send(b"x")
        await becomes(lambda: one.told() or other.told())
        await asyncio.sleep(QUIET)
        assert 0 in (one.told(), other.told())
        assert new.fd in numbers
        new.far.send(b"hello")
        await becomes(lambda: new.data == b"hello")


@on_both
async def test_number_that_is_used_again_later(plane: DataPlane) -> None:
    """A number that was closed and comes up again belongs to the new handler alone, for data and for room."""
    with ears(plane, "new") as [new]:
        with ear(plane) as old:
            fill(old.near)
            plane.reactor.want_write(old.fd)
            number = old.fd
        os.dup2(new.fd, number)
        new.near.close()
        new.near = socket.socket(fileno=number)
        new.watch()
        fill(new.near)
        plane.reactor.want_write(number)
        new.far.send(b"hello")
        await becomes(lambda: new.data == b"hello")
        empty(new.far)
        new.events = 0
        await becomes(lambda: new.events & WRITE)


# asyncio beside it


@on_fast
async def test_reactor_stays_with_its_sockets(plane: DataPlane) -> None:
    """While only its own sockets are ready the reactor does not go back to asyncio."""
    assert isinstance(plane.reactor, EpollReactor)
    calls = 0
    select = plane.reactor.select

    def counted(timeout: float | None = None) -> object:
        nonlocal calls
        calls += 1
        return select(timeout)

    with busy(plane) as player:
        plane.reactor.select = counted  # type: ignore[method-assign, assignment]
        await asyncio.sleep(0.05)
        assert calls < player.rounds / 10


@on_both
async def test_timers_are_on_time(plane: DataPlane) -> None:
    """Timers fire on time while the data path's sockets are busy all the time."""
    loop = asyncio.get_running_loop()
    with busy(plane):
        for delay in (0, 0.001, 0.03):
            began = loop.time()
            await asyncio.sleep(delay)
            assert delay * 0.9 <= loop.time() - began < delay + LATE


@on_both
async def test_timers_are_on_time_beside_greedy_turns(plane: DataPlane) -> None:
    """Timers fire on time while a handler asks for turn after turn."""
    loop = asyncio.get_running_loop()
    with ears(plane, "greedy") as [greedy]:
        greedy.acts["turn"] = lambda: plane.reactor.again(greedy)
        plane.reactor.again(greedy)
        began = loop.time()
        await asyncio.sleep(0.03)
        assert 0.027 <= loop.time() - began < 0.03 + LATE
        greedy.acts.clear()
        turns = greedy.told("turn")
        await becomes(lambda: greedy.told("turn") > turns)


@on_both
async def test_callback_of_a_handler_runs_at_once(plane: DataPlane) -> None:
    """What a handler gives to `call_soon` runs within a few events, not when the sockets fall quiet."""
    with busy(plane) as player:
        for _ in range(20):
            called: list[int] = []
            ran = asyncio.Event()
            player.once = partial(call_soon, player, called, ran)
            await ran.wait()
            assert player.rounds - called[0] <= 5


@on_both
async def test_handler_wakes_a_task(plane: DataPlane) -> None:
    """A task that waits for what a handler does goes on at once, though nothing else wakes the process."""
    with ears(plane, "ear") as [one]:
        done = asyncio.Event()
        one.acts["event"] = done.set
        one.far.send(b"x")
        one.watch()
        await alone(done.wait())


@on_both
async def test_handler_sets_a_timer(plane: DataPlane) -> None:
    """A timer that a handler sets fires, though the process would wait for ever otherwise."""
    loop = asyncio.get_running_loop()
    with ears(plane, "ear") as [one]:
        done = asyncio.Event()
        one.acts["event"] = lambda: loop.call_later(0.01, done.set)
        one.far.send(b"x")
        one.watch()
        await alone(done.wait())
        await asyncio.sleep(QUIET)


@pytest.mark.parametrize("is_busy", [False, True])
@on_both
async def test_other_threads_are_heard(plane: DataPlane, is_busy: bool) -> None:
    """What another thread asks of the loop is done, whether the sockets are busy or quiet."""
    with ExitStack() as stack:
        if is_busy:
            stack.enter_context(busy(plane))
        for number in range(20):
            assert await alone(asyncio.get_running_loop().run_in_executor(None, abs, -number)) == number


@pytest.mark.parametrize("is_busy", [False, True])
@on_both
async def test_signals_are_heard(plane: DataPlane, is_busy: bool) -> None:
    """A signal handler of asyncio's runs, whether the sockets are busy or quiet."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    with ExitStack() as stack:
        if is_busy:
            stack.enter_context(busy(plane))
        timer = threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGUSR1])
        timer.start()
        await alone(heard.wait())
        timer.join()
    loop.remove_signal_handler(signal.SIGUSR1)


@on_both
async def test_subprocesses_run(plane: DataPlane) -> None:
    """Subprocesses and their pipes are served while the sockets are busy all the time."""
    with busy(plane):
        command = ("tr", "a-z", "A-Z")
        process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(PATIENCE):
            answer, _ = await process.communicate(b"question")
        assert (answer, process.returncode) == (b"QUESTION", 0)


@on_both
async def test_asyncio_streams_run(plane: DataPlane) -> None:
    """asyncio's own sockets are served while the data path's are busy all the time."""
    near, far = socket.socketpair()
    with busy(plane):
        (reader, writer), (back, echo) = [await asyncio.open_connection(sock=sock) for sock in (near, far)]
        async with asyncio.timeout(PATIENCE):
            for count in (1, 1000, 1_000_000):
                there, answer = write(writer, bytes(count)), echoed(back, echo, count)
                _, _, got = await asyncio.gather(there, answer, reader.readexactly(count))
                assert len(got) == count
        for each in (writer, echo):
            each.close()
            await each.wait_closed()


@pytest.mark.parametrize("polling", [0, 0.0001])
@pytest.mark.parametrize("kind", KINDS)
def test_idle_process_does_nothing(kind: str, polling: float) -> None:
    """While there is nothing to do no processor time is used, also just after there was something."""

    async def quiet(plane: DataPlane) -> None:
        with ear(plane) as one:
            one.far.send(b"x")
            await becomes(lambda: one.data)
            used = time.process_time()
            await asyncio.sleep(0.2)
            assert time.process_time() - used < 0.04

    run_on(kind, quiet, polling=polling)


def test_reactor_that_does_not_poll() -> None:
    """Without polling everything is served all the same."""

    async def play(plane: DataPlane) -> None:
        with busy(plane) as player:
            await becomes(lambda: player.rounds > 1000)

    run_on("fast", play, polling=0)


@on_both
async def test_clock(plane: DataPlane) -> None:
    """The reactor's clock is the monotonic one, as of this turn."""
    with ear(plane) as one:
        before = time.monotonic()
        one.acts["event"] = lambda: one.journal.append(f"at {plane.reactor.now}")
        one.far.send(b"x")
        await becomes(lambda: one.data)
        at = [float(entry.split()[1]) for entry in one.journal if entry.startswith("at ")][-1]
        assert before <= at <= time.monotonic()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_open(kind: str) -> None:
    """A loop that is closed leaves no descriptor."""

    async def nothing(plane: DataPlane) -> None:
        with ear(plane) as one:
            one.far.send(b"x")
            await becomes(lambda: one.data)

    before = os.listdir("/proc/self/fd")
    run_on(kind, nothing)
    assert os.listdir("/proc/self/fd") == before


# Helpers


def fail() -> None:
    raise ZeroDivisionError


def fill(sock: socket.socket) -> None:
    """Write until there is no room."""
    try:
        while sock.send(bytes(65536)):
            pass
    except BlockingIOError:
        pass


def empty(sock: socket.socket) -> None:
    """Read all that there is."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        pass


def call_soon(player: Player, called: list[int], ran: asyncio.Event) -> None:
    """Have this event set soon, and note when that was asked for."""
    called.append(player.rounds)
    asyncio.get_running_loop().call_soon(ran.set)


async def echoed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: int) -> None:
    """Send back what comes."""
    await write(writer, await reader.readexactly(count))


async def write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
