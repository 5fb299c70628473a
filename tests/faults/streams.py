"""The streams of one bridge at the moment when a fault comes, and what both ends must see of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

from tests.faults.bridges import Bridge
from tests.support.peers import Finish, Peer, converse, cut, whole
from tests.support.services import noise

SIZE = 2_000_000
STEP = 20_000
"""Bytes in one call, so that a fault may come at many places."""
MOMENTS = 50 if os.environ.get("KNOT_FULL") == "1" else 8
"""How many times a fault comes in one test."""
UP, DOWN, REQUEST = noise(SIZE, 1), noise(SIZE, 2), noise(200_000, 3)


def moments(name: str) -> Iterator[int]:
    """Numbers of bytes, spread over an upload and a download together; the same ones each time."""
    part = 2 * SIZE // MOMENTS
    for number in range(MOMENTS):
        yield number * part + random.Random(f"{name} {number}").randrange(part)


def break_off(bridge: Bridge, moment: int, fault: Callable[[], None]) -> None:
    """Have an upload and a download under way, let the fault come when so many bytes have arrived, and judge the ends.

    A third connection has ended its request, which its service has not read yet: that may still arrive whole.
    """
    with bridge.lines(3) as ((up_near, up_far), (down_near, down_far), (request_near, request_far)):
        uploader = Peer(up_near, UP, STEP, STEP, Finish.NEVER)
        upload = Peer(up_far, b"", STEP, STEP, Finish.NEVER)
        download = Peer(down_near, b"", STEP, STEP, Finish.NEVER)
        downloader = Peer(down_far, DOWN, STEP, STEP, Finish.NEVER)
        asker = Peer(request_near, REQUEST)
        asked = Peer(request_far, finish=Finish.NEVER, reads_up_to=0)
        peers = (uploader, upload, download, downloader, asker, asked)
        converse(*peers, until=lambda: upload.received + download.received >= moment)
        fault()
        asked.reads_up_to = None
        converse(*peers)
    assert upload.seen == cut(UP, upload.received)
    assert download.seen == cut(DOWN, download.received)
    assert asked.seen in (whole(REQUEST), cut(REQUEST, asked.received))
    assert [peer.seen for peer in (uploader, downloader, asker)] == [cut(b"", 0)] * 3
