"""The ledger notices what it is there to notice: shown with somebody in between who does it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

import pytest

from tests.support.ledger import Ledger, Stream
from tests.support.services import connect, reset, serving
from tests.support.waiting import until

SIZE = 3_000_000
WRONG = {
    "altered": (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "bytes that were not sent"),
    "missing": (lambda data: data[1:], "bytes that were not sent"),
    "doubled": (lambda data: data + data, "bytes that were not sent"),
    "ended early": (lambda data: None, "a clean end"),
}
"""What somebody does to the first piece, or None to end there; and how the ledger complains."""

Way = Callable[[bytes], bytes | None]


def between(port: int, way: Way) -> Callable[[socket.socket], None]:
    """A handler that carries connections on to this port, and treats the first piece in some way."""

    def carry_back(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)

    def handle(near: socket.socket) -> None:
        with connect(port) as far:
            back = threading.Thread(target=carry_back, args=(near, far))
            back.start()
            far.sendall(near.recv(8, socket.MSG_WAITALL))  # who it is
            piece = way(near.recv(65536))
            with contextlib.suppress(OSError):
                while piece:
                    far.sendall(piece)
                    piece = near.recv(65536)
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_WR)
            back.join()

    return handle


@pytest.mark.parametrize(("way", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_wrong_streams_are_noticed(way: Way, complaint: str) -> None:
    """A byte that is altered, missing or doubled, and a clean end that nobody sent."""
    ledger = Ledger()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(AssertionError, match=complaint))
        stack.enter_context(ledger)
        port = stack.enter_context(serving(between(ledger.service().port, way)))
        line = ledger.open(port, Stream(SIZE), Stream(0))
        until(lambda: line.up.end, what="the service has seen an end")


def test_whole_streams_pass() -> None:
    """Both directions, with nobody who does anything."""
    with Ledger() as ledger, serving(between(ledger.service().port, lambda data: data)) as port:
        line = ledger.open(port, Stream(SIZE), Stream(SIZE))
        until(lambda: line.is_over, what="the end")
        assert line.is_whole


def test_reset_is_an_honest_end() -> None:
    """A reset in the middle of a stream is noted, and is nothing wrong."""
    with Ledger() as ledger, serving(reset) as port:
        ledger.service()
        line = ledger.open(port)
        until(lambda: line.is_over, what="the end")
        assert line.is_reset
