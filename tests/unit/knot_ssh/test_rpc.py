"""Two peers talk over a socket; each may be hostile to the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from knot_ssh import rpc
from knot_ssh.errors import BadInput, KnotError, NotFound, PortTaken, Unavailable
from knot_ssh.rpc import CALLS_AT_ONCE, CALLS_WAITING, LINE_LIMIT, MESSAGE_NESTING, Method, Peer
from knot_ssh.wire import Nothing
from tests.unit.conversations import conversation, serving, streams

PATIENCE = 5.0
"""Seconds after which a test gives up waiting for what should come at once."""
CROWD = 200
"""More requests than are worked on at once, fewer than may wait."""


class Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    number: int


class Raw:
    """A peer's other end, as bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def say(self, message: object) -> None:
        await self.write(json.dumps(message).encode() + b"\n")

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def hear(self) -> Any:
        """The next message; None when the peer has hung up."""
        async with asyncio.timeout(PATIENCE):
            line = await self._reader.readline()
        return json.loads(line) if line else None

    async def heard_of(self, number: int) -> Any:
        """Ask something, and give what came before the answer."""
        await self.say({"jsonrpc": "2.0", "id": number, "method": "double", "params": {"number": number}})
        before = []
        while (message := await self.hear()) and message.get("id") != number:
            before.append(message)
        assert message
        return before


async def double(params: Number) -> Number:
    return Number(number=2 * params.number)


async def refuse(_params: Nothing) -> None:
    raise PortTaken("port 80 is taken")


async def fail(_params: Nothing) -> None:
    raise ZeroDivisionError("the secret story")


async def misjudge(_params: Nothing) -> None:
    Number.model_validate({"digit": 7})


METHODS: dict[str, Method] = {
    "double": (Number, double),
    "refuse": (Nothing, refuse),
    "fail": (Nothing, fail),
    "misjudge": (Nothing, misjudge),
}


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    """A peer that answers METHODS, seen from outside."""
    async with streams() as (one, other), serving(Peer(*one, METHODS)):
        yield Raw(*other)


@pytest.fixture
async def caller() -> AsyncIterator[Peer]:
    """A peer whose other end answers METHODS."""
    async with conversation({}, METHODS) as (left, _):
        yield left


async def test_call_is_answered(caller: Peer) -> None:
    """A call gives the result of the other side."""
    assert await caller.call("double", Number(number=21)) == {"number": 42}


async def test_asked_for_a_form(caller: Peer) -> None:
    """A result of the form that was asked for is given as such; one of another form is as good as none."""
    assert await caller.ask("double", Number(number=21), Number) == Number(number=42)
    with pytest.raises(Unavailable, match="not understood"):
        await caller.ask("double", Number(number=21), Nothing)


async def test_both_sides_may_call() -> None:
    """Either side calls the other over the one stream."""
    async with conversation(METHODS, METHODS) as (left, right):
        answers = await asyncio.gather(*(side.call("double", Number(number=n)) for n in range(20) for side in (left, right)))
    assert answers == [{"number": 2 * n} for n in range(20) for _ in range(2)]


async def test_answers_come_as_they_are_ready() -> None:
    """A slow request does not hold up a later one."""
    release = asyncio.Event()

    async def slow(_params: Nothing) -> None:
        await release.wait()

    async with conversation({}, {**METHODS, "slow": (Nothing, slow)}) as (caller, _):
        waiting = asyncio.ensure_future(caller.call("slow"))
        assert await caller.call("double", Number(number=1)) == {"number": 2}
        assert not waiting.done()
        release.set()
        assert await waiting == {}


async def test_more_calls_than_are_worked_on_at_once(caller: Peer) -> None:
    """Calls beyond those that are worked on at once wait, and are answered."""
    calls = [caller.call("double", Number(number=n)) for n in range(5 * CALLS_AT_ONCE)]
    assert await asyncio.gather(*calls) == [{"number": 2 * n} for n in range(5 * CALLS_AT_ONCE)]


async def test_requests_that_ask_back() -> None:
    """However many requests wait and are worked on, the answers that those wait for come through."""
    assert CALLS_AT_ONCE < CROWD < CALLS_WAITING

    async def ask_back(params: Number) -> Number:
        return Number.model_validate(await right.call("double", params, timeout=PATIENCE))

    async with conversation(METHODS, {"ask_back": (Number, ask_back)}) as (left, right):
        calls = [left.call("ask_back", Number(number=n)) for n in range(CROWD)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers == [{"number": 2 * n} for n in range(CROWD)]


async def test_no_more_are_worked_on_than_said() -> None:
    """Of many requests only so many are worked on at once; the others wait until one has ended."""
    full, release, working, most = asyncio.Event(), asyncio.Event(), 0, 0

    async def slow(_params: Nothing) -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        if working == CALLS_AT_ONCE:
            full.set()
        await release.wait()
        working -= 1

    async with conversation({}, {**METHODS, "slow": (Nothing, slow)}) as (caller, _):
        calls = [asyncio.ensure_future(caller.call("slow")) for _ in range(CROWD)]
        async with asyncio.timeout(PATIENCE):
            await full.wait()
            with pytest.raises(KnotError, match="no such method"):
                await caller.call("nonsense")  # refused without waiting: whatever came before it has been read
            assert working == CALLS_AT_ONCE
            release.set()
            assert await asyncio.gather(*calls) == [{}] * CROWD
    assert (most, working) == (CALLS_AT_ONCE, 0)


async def test_requests_beyond_those_that_may_wait_are_refused() -> None:
    """Beyond so many, requests are refused at once, notifications dropped in silence, and the peer answers on afterwards."""
    release, done = asyncio.Event(), 0

    async def slow(_params: Nothing) -> None:
        nonlocal done
        await release.wait()
        done += 1

    async with streams() as (one, other), serving(Peer(*one, {**METHODS, "slow": (Nothing, slow)})):
        raw = Raw(*other)
        for number in range(CALLS_WAITING):
            await raw.say({"jsonrpc": "2.0", "id": number, "method": "slow"})
        for number in range(CALLS_WAITING, CALLS_WAITING + 10):
            await raw.say({"jsonrpc": "2.0", "method": "slow"})
            await raw.say({"jsonrpc": "2.0", "id": number, "method": "slow"})
            refusal = await raw.hear()
            assert (refusal["id"], refusal["error"]["data"]["code"]) == (number, Unavailable.code)
            assert "too many requests" in refusal["error"]["message"]
        release.set()
        answers = [await raw.hear() for _ in range(CALLS_WAITING)]
        assert sorted(answer["id"] for answer in answers) == list(range(CALLS_WAITING))
        assert all(answer["result"] == {} for answer in answers)
        assert await raw.heard_of(CALLS_WAITING + 10) == []
    assert done == CALLS_WAITING


async def test_answers_pass_a_full_queue() -> None:
    """An answer that a request waits for comes through also when it stands behind more requests than may wait."""

    async def ask_back(params: Number) -> Number:
        return Number.model_validate(await peer.call("question", params, timeout=PATIENCE))

    async with streams() as (one, other):
        peer, raw = Peer(*one, {"ask_back": (Number, ask_back)}), Raw(*other)
        async with serving(peer):
            questions: list[Any] = []
            for number in range(CALLS_WAITING + 1):
                await raw.say({"jsonrpc": "2.0", "id": number, "method": "ask_back", "params": {"number": number}})
            while len(questions) < CALLS_AT_ONCE:
                message = await raw.hear()
                if "method" in message:
                    questions.append(message)
                else:
                    assert message["error"]["data"]["code"] == Unavailable.code
            await raw.say({"jsonrpc": "2.0", "id": questions[0]["id"], "result": {"number": -1}})
            while "result" not in (message := await raw.hear()):
                pass
            assert message["result"] == {"number": -1}


async def test_error_keeps_its_class(caller: Peer) -> None:
    """The error that the other side raised is raised here, with its sentence."""
    with pytest.raises(PortTaken, match=r"^port 80 is taken$"):
        await caller.call("refuse")


async def test_bug_is_not_told(caller: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong inside is an internal error for the peer, and no word more."""
    with pytest.raises(KnotError, match=r"^internal error") as caught:
        await caller.call("fail")
    assert type(caught.value) is KnotError
    assert "secret" not in str(caught.value)


async def test_caller_is_not_blamed_for_what_fails_inside(caller: Peer) -> None:
    """Only the caller's own parameters are bad input; a value that turns out bad while working is an internal error."""
    with pytest.raises(KnotError, match=r"^internal error") as caught:
        await caller.call("misjudge")
    assert not isinstance(caught.value, BadInput)


async def test_serves_on_after_a_bug(caller: Peer) -> None:
    """A request that failed leaves the conversation as it was."""
    with pytest.raises(KnotError):
        await caller.call("fail")
    assert await caller.call("double", Number(number=2)) == {"number": 4}


async def test_bad_parameters_are_refused(raw: Raw) -> None:
    """Parameters that do not fit are bad input, and the sentence names the field."""
    for params in ({}, {"number": "x"}, {"number": 1, "more": 2}, [1], 7):
        await raw.say({"jsonrpc": "2.0", "id": 1, "method": "double", "params": params})
        error = (await raw.hear())["error"]
        assert error["data"]["code"] == BadInput.code, params


async def test_unknown_method(caller: Peer) -> None:
    """An unknown method is an error, not silence."""
    with pytest.raises(KnotError, match="no such method"):
        await caller.call("nonsense")


@pytest.mark.parametrize("method", [None, 7, ["double"], {"a": 1}, ""])
async def test_method_of_another_type(raw: Raw, method: object) -> None:
    """A method that is no known word is refused whatever its type."""
    await raw.say({"jsonrpc": "2.0", "id": 1, "method": method})
    assert (await raw.hear())["error"]["code"] == -32601


@pytest.mark.parametrize(
    "line", [b"", b"nonsense", b"[]", b"7", b"null", b"\xff\xfe", b'{"a":', b"[" * 100_000, b'[{"id":1,"method":"double"}]']
)
async def test_nonsense_is_answered_with_an_error(raw: Raw, line: bytes) -> None:
    """A line that is no JSON object is told so, and the conversation goes on."""
    await raw.write(line + b"\n")
    answer = await raw.hear()
    assert (answer["id"], answer["error"]["code"]) == (None, -32700)
    assert await raw.heard_of(1) == []


@pytest.mark.parametrize("number", [[1], {"a": 1}, 1.5, float("nan")])
async def test_id_of_another_type(raw: Raw, number: object) -> None:
    """An id that is neither text nor a whole number is refused, and not repeated (JSON-RPC 2.0, sections 4 and 5)."""
    await raw.say({"jsonrpc": "2.0", "id": number, "method": "double", "params": {"number": 1}})
    answer = await raw.hear()
    assert (answer["id"], answer["error"]["code"]) == (None, -32600)


@pytest.mark.parametrize("number", [None, 1, 99, True, "1", [1], {"a": 1}, 1.0])
async def test_answers_to_nothing_are_dropped(raw: Raw, number: object) -> None:
    """An answer nobody waits for changes nothing."""
    await raw.say({"jsonrpc": "2.0", "id": number, "result": {}})
    assert await raw.heard_of(5) == []


@pytest.mark.parametrize("method", ["double", "refuse", "fail", "misjudge", "nonsense", None, 7])
async def test_notification_is_never_answered(raw: Raw, method: str) -> None:
    """A request without id gets no answer, not even an error (JSON-RPC 2.0, section 4.1)."""
    await raw.say({"jsonrpc": "2.0", "method": method})
    assert await raw.heard_of(5) == []


async def test_notification_is_heard() -> None:
    """A notification reaches the other side's method."""
    heard: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def hear(params: Number) -> None:
        heard.set_result(params.number)

    async with conversation({}, {"hear": (Number, hear)}) as (left, _):
        await left.notify("hear", Number(number=7))
        async with asyncio.timeout(PATIENCE):
            assert await heard == 7


@pytest.mark.parametrize("error", [7, "no", [], {}, {"data": 7}, {"message": None, "data": {"code": []}}])
async def test_malformed_error_is_an_error(error: object) -> None:
    """An error in whatever shape ends the call with an error."""
    async with streams() as (one, other):
        peer, raw = Peer(*one, {}), Raw(*other)
        async with serving(peer):
            call = asyncio.ensure_future(peer.call("x"))
            question = await raw.hear()
            await raw.say({"jsonrpc": "2.0", "id": question["id"], "error": error})
            with pytest.raises(KnotError):
                await call


async def test_hanging_up_fails_the_calls_that_wait() -> None:
    """When the stream ends, every waiting call fails as unavailable, and so does every later one."""
    async with streams() as (one, other):
        peer = Peer(*one, {})
        async with serving(peer) as running:
            call = asyncio.ensure_future(peer.call("x"))
            await Raw(*other).hear()
            other[1].close()
            with pytest.raises(Unavailable, match="connection was lost"):
                await call
            await running
            with pytest.raises(Unavailable):
                await peer.call("x")
            await peer.notify("x")


async def test_hanging_up_ends_the_requests_in_work() -> None:
    """When the stream ends, no request of that peer is worked on any more."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow(_params: Nothing) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with streams() as (one, other), serving(Peer(*one, {"slow": (Nothing, slow)})) as running:
        await Raw(*other).say({"jsonrpc": "2.0", "id": 1, "method": "slow"})
        async with asyncio.timeout(PATIENCE):
            await started.wait()
            other[1].close()
            await running
    assert ended.is_set()


async def test_half_a_line_is_not_a_request(raw: Raw) -> None:
    """What a peer said before it was cut off in the middle of a line is not acted on."""
    await raw.write(b'{"jsonrpc": "2.0", "id": 1, "method": "double", "params": {"number": 1}}')
    raw._writer.write_eof()
    assert await raw.hear() is None


async def test_longest_line_is_read(raw: Raw) -> None:
    """A line as long as the limit is taken."""
    request = b'{"jsonrpc":"2.0","id":1,"method":"double","params":{"number":1}}'
    await raw.write(request.ljust(LINE_LIMIT - 1) + b"\n")
    assert (await raw.hear())["result"] == {"number": 2}


async def test_longer_line_ends_the_conversation(raw: Raw) -> None:
    """A line beyond the limit is not gathered in memory: the peer is hung up on."""
    await raw.write(b" " * LINE_LIMIT + b" \n")
    assert await raw.hear() is None


async def test_silent_peer_is_given_up() -> None:
    """A call ends as unavailable when no answer comes in time, and a late answer is dropped."""
    async with streams() as (one, other):
        peer, raw = Peer(*one, {}), Raw(*other)
        async with serving(peer):
            with pytest.raises(Unavailable, match="no answer within"):
                await peer.call("x", timeout=0.01)
            late = await raw.hear()
            call = asyncio.ensure_future(peer.call("y"))
            question = await raw.hear()
            await raw.say({"jsonrpc": "2.0", "id": late["id"], "result": "late"})
            await raw.say({"jsonrpc": "2.0", "id": question["id"], "result": "in time"})
            assert await call == "in time"


async def test_closing_twice_is_fine(caller: Peer) -> None:
    """A closed peer may be closed again, and then calls nobody."""
    caller.close()
    caller.close()
    with pytest.raises(Unavailable):
        await caller.call("double", Number(number=1))


async def test_not_found_travels() -> None:
    """An error raised with its own sentence reads the same at both ends, there on one line."""

    async def missing(_params: Nothing) -> None:
        raise NotFound("there is no space 'x' of yours\nreally")

    async with conversation({}, {"missing": (Nothing, missing)}) as (left, _):
        with pytest.raises(NotFound, match=r"^there is no space 'x' of yours really$"):
            await left.call("missing")


@pytest.mark.parametrize("levels", [MESSAGE_NESTING + 1, 500, 100_000])
async def test_deep_message_is_refused(raw: Raw, levels: int) -> None:
    """A message with more levels than any of ours is no message, and the conversation goes on."""
    deep = b"[" * (levels - 1) + b"]" * (levels - 1)
    await raw.write(b'{"jsonrpc": "2.0", "id": 1, "method": "double", "params": ' + deep + b"}\n")
    answer = await raw.hear()
    assert (answer["id"], answer["error"]["code"]) == (None, -32700)
    assert await raw.heard_of(2) == []


async def test_deepest_message_is_understood(raw: Raw) -> None:
    """One that is just not too deep is looked at, and refused for what it says."""
    deep = b"[" * (MESSAGE_NESTING - 1) + b"]" * (MESSAGE_NESTING - 1)
    await raw.write(b'{"jsonrpc": "2.0", "id": 1, "method": "double", "params": ' + deep + b"}\n")
    assert (await raw.hear())["error"]["code"] == -32000


async def test_requests_a_second_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what may come at once each request waits, and every one is answered."""
    monkeypatch.setattr(rpc, "CALL_RATE", 50)
    monkeypatch.setattr(rpc, "CALL_BURST", 10)
    loop = asyncio.get_running_loop()
    async with conversation({}, {"double": (Number, double)}) as (caller, _):
        began = loop.time()
        for number in range(10):
            await caller.call("double", Number(number=number))
        quick = loop.time() - began
        for number in range(10):
            await caller.call("double", Number(number=number))
        assert loop.time() - began > quick
        assert loop.time() - began >= 9 / 50
