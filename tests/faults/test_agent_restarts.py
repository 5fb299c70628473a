"""Agents that are killed, restarted, told to stop forwards while the server is away, or find a port taken."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from knot_ssh.errors import KnotError
from tests.faults.sites import PATHS, Site, site, status
from tests.faults.victims import in_time, steadily
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.services import is_free
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(300)

LINES = 4
RESET = 1
BACK = 2
"""Seconds, from the table."""
OTHERS = 2
"""Forwards beside the one whose port is taken."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("restarts"), settings={"connect_timeout": 20}) as made:
        yield made


class Squatter:
    """Somebody who tries to bind a port all the time."""

    def __init__(self, port: int) -> None:
        self.tries = 0
        self.has_it = False
        self._port = port
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Squatter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(0.001) and not self.has_it:
            self.tries += 1
            self.has_it = is_free(self._port)


@pytest.mark.fault(
    "target agent killed", f"reset <= {RESET} s at both ends, served <= {BACK} s after its start, port never free"
)
@pytest.mark.parametrize("path", PATHS)
@steadily
def test_killed_target(own: Site, figure: Figure, path: str) -> None:
    """kill -9 of the target in the middle of streams: resets, never a clean end; the port stays the forward's own."""
    with Ledger() as ledger:
        local = own.forward(path, ledger.service().port)
        lines = [ledger.served(local) for _ in range(LINES)]
        with Squatter(local) as squatter:
            killed = time.monotonic()
            own.agents[path].kill()
            until(lambda: all(line.is_over for line in lines), what="every line ends")
            assert all(line.is_reset for line in lines), lines
            seconds = max(line.over_at for line in lines) - killed
            with ledger.probing(local, every=0.1) as probes:
                started = own.start(path)
                until(lambda: any(line.is_whole for line in probes.lines), what="a connection is served")
                again = probes.first_good(started)
        lost = probes.settled().lost()
        figure(
            f"reset after {seconds:.2f} s, served after {again:.2f} s, "
            f"{len(lost)} of {len(probes.lines)} lost, {squatter.tries} tries for the port failed"
        )
        assert not squatter.has_it
        in_time(seconds, RESET)
        in_time(again, BACK)
        assert not lost


@pytest.mark.fault(
    "source agent killed", f"reset <= {RESET} s at both ends, persistent forwards back <= {BACK} s after its start"
)
@pytest.mark.parametrize("path", PATHS)
@steadily
def test_killed_source(own: Site, figure: Figure, path: str) -> None:
    """kill -9 of the source: application and service see resets; after its start the persistent forward is there again."""
    with Ledger() as ledger:
        local = own.forward(path, ledger.service().port, persistent=True)
        lines = [ledger.served(local) for _ in range(LINES)]
        killed = time.monotonic()
        own.near.kill()
        until(lambda: all(line.is_over for line in lines), what="every line ends")
        assert all(line.is_reset for line in lines), lines
        seconds = max(line.over_at for line in lines) - killed
        with ledger.probing(local, every=0.1) as probes:
            started = own.start("near")
            until(lambda: any(line.is_whole for line in probes.lines), what="a connection is served")
            again = probes.first_good(started)
        figure(f"reset after {seconds:.2f} s, served after {again:.2f} s")
        in_time(seconds, RESET)
        in_time(again, BACK)
        probes.settled()


@pytest.mark.fault(
    "persistent forward stopped inside while the server is away", "stays stopped when it is back, and after a restart"
)
def test_stopped_forward_stays_stopped(own: Site, figure: Figure) -> None:
    """`knot port list` and `stop` inside the space, by its name or without, need no server; it learns of the stop."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        own.stop_server(kill=True)
        try:
            assert f"  {local} -> direct:" in own.near.knot("port", "list", "near")
            own.near.knot("port", "stop", "near", str(local))
            assert is_free(local)
        finally:
            own.start_server()
        own.wait_connected()
        assert local not in ports(own)
        own.near.stop()
        own.start("near")
        own.wait_connected()
        until(lambda: local not in stored(own), what="the server has forgotten it")
        assert local not in ports(own)
        assert is_free(local)
        figure("stopped, in the server's list too")


@pytest.mark.threat(16, "squat a stored forward's port, restart the agent", "`failed` with reason, back < 2 s after it is free")
@pytest.mark.fault(
    "port in use at restore", "`failed` with its reason <= 1 s, others up <= 2 s, recovers < 2 s after it is free"
)
@steadily
def test_port_taken_at_restore(own: Site, figure: Figure) -> None:
    """While a stranger holds the port of a stored forward, the others work; it works soon after the stranger has left."""
    with Ledger() as ledger:
        service = ledger.service()
        taken, *others = [own.forward("direct", service.port, persistent=True) for _ in range(1 + OTHERS)]
        ledger.finish(ledger.served(local) for local in (taken, *others))
        own.near.stop()
        with socket.create_server(("127.0.0.1", taken)):
            own.start("near")
            until(lambda: answers(own), what="the agent answers")
            ready = time.monotonic()
            until(lambda: state(own, taken) == "failed", 10, what="the forward has failed")
            failed = time.monotonic() - ready
            reason = status(own.near, taken)["reason"]
            lines = [ledger.served(local) for local in others]
            up = max(line.served_at for line in lines) - ready
            ledger.finish(lines)
        free = time.monotonic()
        line = ledger.served(taken)
        recovered = line.served_at - free
        figure(f"failed after {failed:.2f} s: {reason!r}; others up after {up:.2f} s; recovers after {recovered:.2f} s")
        ledger.finish([line])
        assert "taken" in reason
        in_time(failed, 1)
        in_time(up, BACK)
        in_time(recovered, BACK)


def answers(own: Site) -> bool:
    """Whether the source's agent answers on its socket."""
    try:
        own.near.forwards()
    except KnotError:
        return False
    return True


def state(own: Site, local: int) -> str | None:
    """How this forward stands; None where there is none."""
    return next((str(forward["state"]) for forward in own.near.forwards() if forward["local_port"] == local), None)


def ports(own: Site) -> list[int]:
    return [forward["local_port"] for forward in own.near.forwards()]


def stored(own: Site) -> list[int]:
    """The ports that the server lists for the source."""
    listing = own.system.knot("port", "list", "near", "--json", user=own.near.owner)
    return [forward["local_port"] for forward in json.loads(listing)["forwards"]]
