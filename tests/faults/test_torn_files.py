"""What a crash may leave of an agent's files: it starts all the same, with what was or with what is, never with half."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.faults.sites import Site, forwards, site
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.waiting import until

MEMORY = "memory.json"
"""What the agent remembers for a start without the server."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("torn"), targets=("direct",)) as made:
        yield made


TEARS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: bytes(255 - byte for byte in whole),
    "not of ours": lambda whole: b'{"forwards": [{"local_port": "8080; rm"}], "stopped": 7}\n',
    "nested": lambda whole: b"[" * 100_000,
}
"""What becomes of a file."""


@pytest.mark.fault("agent's memory torn by a crash", "starts all the same; whole again from the server")
def test_torn_memory(own: Site, figure: Figure) -> None:
    """The agent starts with a damaged file, without the server too, and has its forwards again once the server is back."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        file = own.near.folder / MEMORY
        until(lambda: str(local) in file.read_text(), what="the forward is remembered")
        own.near.kill()
        own.stop_server(kill=True)
        whole = file.read_bytes()
        known = {}
        try:
            for name, tear in TEARS.items():
                own.near.kill()
                file.write_bytes(tear(whole))
                own.start("near")
                assert own.near.running
                own.near.running.wait_for("agent ready")
                known[name] = [forward["local_port"] for forward in forwards(own.near)]
        finally:
            own.start_server()
        line = ledger.served(local)
        figure(f"started with {', '.join(known)}; each time without forwards, and with all of them once the server was back")
        assert not any(known.values()), known
        ledger.finish([line])
        until(lambda: str(local) in file.read_text(), what="the forward is remembered again")


@pytest.mark.fault("agent killed while it writes its memory", "old or new, never half")
def test_torn_write(own: Site, figure: Figure) -> None:
    """What a write that was cut short leaves beside the file is not taken for it."""
    with Ledger() as ledger:
        local = own.forward("direct", ledger.service().port, persistent=True)
        file = own.near.folder / MEMORY
        until(lambda: str(local) in file.read_text(), what="the forward is remembered")
        own.near.kill()
        own.stop_server(kill=True)
        whole = file.read_bytes()
        for name in (f".{MEMORY}.tmp", f"{MEMORY}.tmp", f"{MEMORY}.new"):
            file.with_name(name).write_bytes(whole[: len(whole) // 2])
        try:
            own.start("near")
            line = ledger.served(local)
        finally:
            own.start_server()
        figure("the forward that was there works, without the server")
        ledger.finish([line])
