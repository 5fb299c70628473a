"""JSON-RPC 2.0, one object a line, both ways over one stream: https://www.jsonrpc.org/specification.

The same peer runs over an SSH subsystem (agent and hub) and a unix socket (command line and agent). Each side may call
the other at any time; requests are answered as they finish. Batches are not part of it.

Errors that users may see travel as `KnotError`: its code in `error.data.code`, its sentence in `error.message`.
Anything else becomes "internal error" for the peer, with the story in our own log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

import asyncssh
import structlog
from pydantic import BaseModel, ValidationError

from knot_ssh.buckets import Bucket
from knot_ssh.errors import BadInput, KnotError, Unavailable, error_for
from knot_ssh.tasks import Tasks
from knot_ssh.wire import first_complaint

LINE_LIMIT = 2_000_000
"""Bytes in one line: as many forwards as a space may have, with their status; less than a channel's window holds."""
CALLS_AT_ONCE = 64
"""Requests of one peer being worked on; further ones wait for their turn."""
CALLS_WAITING = 1024
"""Requests of one peer in all; further ones are refused. (Reading on matters: an answer that one of our own calls waits
for may stand behind any number of requests.)"""
CALL_RATE = 200
CALL_BURST = 5000
"""Requests a second of one peer, and at once: an agent asks for each of its targets when it starts. Beyond, it is read more
slowly."""
MESSAGE_NESTING = 16
"""Levels of objects and lists in one message; the deepest of ours has seven."""
CALL_TIMEOUT = 15.0
"""Seconds that a caller waits for an answer."""

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INTERNAL_ERROR = -32700, -32600, -32601, -32603
KNOT_ERROR = -32000

log = structlog.get_logger(__name__)

Answer = TypeVar("Answer", bound=BaseModel)
Function = Callable[[Any], Awaitable[BaseModel | None]]
Method = tuple[type[BaseModel], Function]
"""What the parameters must be, and what is done with them."""


class Reader(Protocol):
    async def readline(self) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes) -> object: ...
    async def drain(self) -> None: ...
    def close(self) -> None: ...


class Peer:
    """One end of a conversation. `run` reads until the stream ends; only then do pending calls fail."""

    def __init__(self, reader: Reader, writer: Writer, methods: Mapping[str, Method]) -> None:
        self._reader = reader
        self._writer = writer
        self._methods = methods
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)
        self._rate = Bucket(CALL_RATE, CALL_BURST, time.monotonic())
        self._closed = False

    async def call(self, method: str, params: BaseModel | None = None, *, timeout: float = CALL_TIMEOUT) -> Any:
        """Ask the other side and wait for its result, as plain JSON values.

        Raises the KnotError that the other side raised, or Unavailable when it is gone or silent for `timeout` seconds.
        """
        if self._closed:
            raise Unavailable
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            async with asyncio.timeout(timeout):
                await self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": _dumped(params)})
                return await answer
        except TimeoutError:
            raise Unavailable(f"no answer within {timeout:.0f} s; try again") from None
        finally:
            self._pending.pop(number, None)

    async def ask(self, method: str, params: BaseModel, answer: type[Answer], *, timeout: float = CALL_TIMEOUT) -> Answer:
        """The same, for a result of this form; raises Unavailable for any other, which is as good as none."""
        result = await self.call(method, params, timeout=timeout)
        try:
            return answer.model_validate(result)
        except ValidationError:
            raise Unavailable("the other side answered what is not understood here; is it of another version?") from None

    async def notify(self, method: str, params: BaseModel | None = None) -> None:
        """Tell the other side without waiting for an answer; a peer that is gone is told nothing."""
        if not self._closed:
            await self._send({"jsonrpc": "2.0", "method": method, "params": _dumped(params)})

    async def run(self) -> None:
        """Serve the other side until its stream ends or breaks the protocol; leaves no task behind."""
        tasks = Tasks()
        try:
            while line := await self._next_line():
                await self._take(line, tasks)
        finally:
            self.close()
            await tasks.cancel()

    def close(self) -> None:
        """End the conversation: the stream closes and every waiting call fails."""
        self._closed = True
        self._writer.close()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(Unavailable("the connection was lost; try again"))

    async def _next_line(self) -> bytes:
        """The next whole line, or nothing when there will be no more."""
        try:
            line = await self._reader.readline()
        except (ValueError, asyncio.IncompleteReadError, OSError, asyncssh.Error):
            return b""
        return line if line.endswith(b"\n") and len(line) <= LINE_LIMIT else b""

    async def _take(self, line: bytes, tasks: Tasks) -> None:
        """Sort one line into answer, request, notification or nonsense."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict) or is_deeper(message, MESSAGE_NESTING):
            await self._send_error(None, PARSE_ERROR, "that is no JSON object")
        elif "method" not in message:
            self._settle(message)
            return
        elif not isinstance(message.get("id"), str | int | None):
            await self._send_error(None, INVALID_REQUEST, "an id must be text or a whole number")
        elif self._methods.get(str(message["method"])) is None:
            await self._refuse(message, METHOD_NOT_FOUND, KnotError("there is no such method"))
        elif len(tasks) >= CALLS_WAITING:
            await self._refuse(message, KNOT_ERROR, Unavailable("too many requests at once; try again"))
        else:
            tasks.start(self._answer(message))
        await self._slow_down()

    async def _slow_down(self) -> None:
        """Read on later from who asks too much."""
        if wait := self._rate.take(time.monotonic()):
            await asyncio.sleep(wait)

    def _settle(self, message: dict[str, Any]) -> None:
        """Give a waiting call its answer; an answer nobody waits for any more is dropped."""
        number = message.get("id")
        answer = self._pending.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return
        error = message.get("error")
        if error is None:
            answer.set_result(message.get("result"))
        else:
            answer.set_exception(_error_from_wire(error))

    async def _answer(self, message: dict[str, Any]) -> None:
        model, function = self._methods[message["method"]]
        async with self._room:
            try:
                result = await function(_checked(model, message.get("params")))
            except KnotError as error:
                await self._refuse(message, KNOT_ERROR, error)
            except Exception:
                log.exception("request failed", method=message["method"])
                problem = KnotError("internal error; the log of the other side tells more")
                await self._refuse(message, INTERNAL_ERROR, problem)
            else:
                if message.get("id") is not None:
                    await self._send({"jsonrpc": "2.0", "id": message["id"], "result": _dumped(result)})

    async def _refuse(self, message: dict[str, Any], code: int, error: KnotError) -> None:
        """Answer a request with an error; a notification is never answered."""
        if message.get("id") is not None:
            await self._send_error(message["id"], code, str(error), error.code)

    async def _send_error(self, number: object, code: int, message: str, name: str = KnotError.code) -> None:
        error = {"code": code, "message": message, "data": {"code": name}}
        await self._send({"jsonrpc": "2.0", "id": number, "error": error})

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")
            await self._writer.drain()
        except (OSError, asyncssh.Error):
            self.close()


def is_deeper(value: object, levels: int) -> bool:
    """Whether this JSON value has more levels of objects and lists than these."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if inner is None:
        return False
    return levels == 0 or any(is_deeper(one, levels - 1) for one in inner)


def _checked(model: type[BaseModel], params: object) -> BaseModel:
    """The parameters as the method wants them; raises BadInput."""
    try:
        return model.model_validate(params or {})
    except ValidationError as error:
        raise BadInput(first_complaint(error)) from None


def _dumped(model: BaseModel | None) -> Any:
    return {} if model is None else model.model_dump(mode="json")


def _error_from_wire(error: object) -> KnotError:
    fields = error if isinstance(error, dict) else {}
    data = fields.get("data")
    code = data.get("code") if isinstance(data, dict) else None
    return error_for(str(code), str(fields.get("message", "the other side gave no reason")))
