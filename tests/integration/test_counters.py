"""What a forward and its link count, and how the command line shows it."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import Pair
from tests.support.services import ask, connect, free_port, noise, outcome, read_all, send_all, sending, serving
from tests.support.waiting import until


def entry_of(pair: Pair, local: int) -> dict[str, Any]:
    """The forward on this port, as JSON."""
    return next(entry for entry in pair.frontend.forwards() if entry["local_port"] == local)


def test_bytes_and_connections_are_counted(pair: Pair) -> None:
    """Bytes are counted each way and connections as opened and open, of the forward and of the link below it."""
    request, answer = noise(100_000), noise(300_000)
    with serving(sending(answer)) as port:
        local = pair.forward(port)
        before = entry_of(pair, local)
        with connect(local) as sock:
            until(lambda: entry_of(pair, local)["counters"]["open"] == 1)
            send_all(sock, request)
            assert len(read_all(sock)[1]) == 32 + len(answer)
        until(lambda: entry_of(pair, local)["counters"]["open"] == 0)
        after = entry_of(pair, local)
    counters = after["counters"]
    assert (counters["sent"], counters["received"]) == (len(request), 32 + len(answer))
    assert (counters["total"], counters["refused"], counters["last_error"]) == (1, 0, None)
    assert after["link"]["sent"] - before["link"]["sent"] >= len(request)
    assert after["link"]["total"] - before["link"]["total"] >= 1
    assert 0 < after["link"]["round_trip"] < 1


def test_refusals_are_counted_with_their_reason(pair: Pair) -> None:
    """A connection that the target refused counts as refused; its reason stays when later ones do well."""
    port = free_port()
    local = pair.forward(port)
    assert outcome(local) == ("reset", b"")
    with serving(sending(b"")) as port:
        pair.frontend.knot("port", "forward", str(local), "backend-api", str(port))
        with connect(local) as sock:
            send_all(sock, b"")
            read_all(sock)
    entry = entry_of(pair, local)
    assert entry["counters"]["refused"] == 1
    assert "connection refused" in entry["counters"]["last_error"]
    assert entry["reason"] is None


def test_wide_list_shows_them(pair: Pair) -> None:
    """`-o wide` is a table with a line for each forward; `--json` is the same from inside and from elsewhere."""
    local = pair.forward(free_port())
    ask(local)
    lines = pair.frontend.knot("port", "list", "-o", "wide").splitlines()
    assert lines[0].split()[:6] == ["PORT", "TARGET", "PERSISTENT", "ORIGIN", "STATE", "MODE"]
    row = next(line for line in lines if line.startswith(str(local)))
    assert "backend-api" in row
    assert "connection refused" in row
    outside = json.loads(pair.system.knot("port", "list", "frontend", "--json", user="alice"))["forwards"]
    assert next(entry for entry in outside if entry["local_port"] == local)["counters"]["refused"] == 1
