"""The other side of a conversation in JSON-RPC: says the lines of an input, and sees to it that it is answered."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from knot_ssh.rpc import INTERNAL_ERROR
from tests.fuzz.stage import PATIENCE
from tests.fuzz.watching import Finding

Answers = Mapping[str, Callable[[], object]]
REFUSAL = {"code": -32000, "message": "no", "data": {"code": "not_found"}}
TURNS = 5
"""Of the loop, that a notification or an answer is given to have its effect before the next line."""


class Talk:
    """Reader and writer of the product's peer, in memory.

    The next line is said when all that was asked has been answered, or when we are asked something ourselves. What we
    are asked the input may answer; else it is answered from `answers`, and in the end with a refusal.
    """

    def __init__(self, data: bytes, answers: Answers = {}, slow: frozenset[str] = frozenset()) -> None:  # noqa: B006 - not changed
        self._rest = data
        self._lines = [line + b"\n" for line in data.split(b"\n")]
        self._answers = answers
        self._slow = slow
        """Methods that may be answered late or never."""
        self._owed: Counter[str] = Counter()
        self._asked: list[tuple[object, str]] = []
        self._ended = False
        self._news = asyncio.Event()
        self._said = b""
        self._is_rpc = False
        self.findings: list[str] = []

    # As a reader

    async def readline(self) -> bytes:
        self._is_rpc = True
        self._hear()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        while not self._ended:
            if self._asked and not self._is_answer_next():
                known = next((asked for asked in self._asked if asked[1] in self._answers), None)
                if known:
                    return self._answered(*known, result=self._answers[known[1]]())
            if self._lines and (self._asked or not self._owed):
                return self._next()
            if self._asked:
                return self._answered(*self._asked[0], error=REFUSAL)
            if not self._owed:
                break
            await self._something_new()
        return b""

    async def read(self, _limit: int = -1) -> bytes:
        """For what is no JSON-RPC: everything, then the end."""
        data, self._rest = self._rest, b""
        return data

    # As a writer

    def write(self, data: bytes) -> None:
        self._said += data
        if self._is_rpc:
            self._hear()

    async def drain(self) -> None: ...

    def close(self) -> None:
        self._ended = True
        self._news.set()

    abort = close

    # The work

    def _is_answer_next(self) -> bool:
        return bool(self._lines) and b'"method"' not in self._lines[0] and b'"id"' in self._lines[0]

    def _next(self) -> bytes:
        line = self._lines.pop(0)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            self._owed["null"] += 1
        elif "method" in message:
            number = message.get("id")
            if not isinstance(number, str | int | None):
                self._owed["null"] += 1
            elif number is not None and str(message["method"]) not in self._slow:
                self._owed[json.dumps(number)] += 1
        else:
            self._asked = [asked for asked in self._asked if asked[0] != message.get("id")]
        return line

    def _answered(self, number: object, method: str, **answer: object) -> bytes:
        self._asked.remove((number, method))
        return json.dumps({"jsonrpc": "2.0", "id": number, **answer}).encode() + b"\n"

    def _hear(self) -> None:
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self._heard(line)
        self._news.set()

    def _heard(self, line: bytes) -> None:
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            if "id" in message:
                self._asked.append((message["id"], message["method"]))
            return
        if message.get("error", {}).get("code") == INTERNAL_ERROR:
            self.findings.append(f"an internal error: {line!a}")
        number = json.dumps(message["id"])
        self._owed -= Counter([number])  # what was answered late is not counted

    async def _something_new(self) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._news.wait()
        except TimeoutError:
            self.findings.append(f"no answer to {dict(self._owed)}")
            self._ended = True

    def check(self) -> None:
        """Raises Finding for what was wrong with the answers."""
        if self.findings:
            raise Finding("; ".join(self.findings))
