"""The control link: when certificates are renewed, and what a rename makes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from knot_agent import control as module
from knot_agent.control import ControlLink
from knot_agent.credentials import Credentials
from knot_agent.home import Home
from knot_keys.certificates import read_certificate
from knot_ssh.addresses import Address
from knot_ssh.errors import Unavailable
from knot_ssh.wire import CertificateRequest, Certificates, Nothing
from tests.support.planes import stock_plane
from tests.support.waiting import becomes
from tests.unit.conversations import conversation
from tests.unit.knot_agent.conftest import SPACE_ID, Office

TOKEN = "0123456789ab"


class Scene:
    """A certified agent of `backend`, and a hub that certifies it under `name`, but fails `failures` times first."""

    def __init__(self, office: Office, folder: Path) -> None:
        self.office = office
        self.home = Home(folder)
        self.home.key_for(TOKEN)
        self.home.joined(TOKEN, office.membership())
        self.home.keep(self.certificates("backend"))
        self.credentials = Credentials(office.membership(), self.home.identity(), self.home.host())
        hub = Address("127.0.0.1", 1)
        self.control = ControlLink(stock_plane(), hub, self.home, self.credentials, {}, _never, lambda welcome: None, _never)
        self.name = "backend"
        self.failures = 0
        self.nonsense: BaseModel | None = None
        """What is answered where it fails; an error, if nothing."""
        self.asked = 0

    def certificates(self, name: str) -> Certificates:
        host = self.home.host().key.convert_to_public()
        return self.office.certificates(self.home.identity().key.convert_to_public(), host, name)

    async def certify(self, _request: CertificateRequest) -> BaseModel:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            if self.nonsense:
                return self.nonsense
            raise Unavailable
        return self.certificates(self.name)

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        """The agent is connected, and renews in time."""
        async with conversation({}, {"agent.certify": (CertificateRequest, self.certify)}) as (peer, _):
            task = asyncio.ensure_future(self.control._renew_in_time(peer))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def changed(self, name: str) -> asyncio.Task[None]:
        """The hub says that the space is called this now, and certifies it so."""
        self.name = name
        return asyncio.ensure_future(self.control.change(self.office.membership(name)))

    @property
    def names(self) -> list[str]:
        """The principals of the host certificate that is kept."""
        return list(read_certificate((self.home.folder / "host_key-cert.pub").read_text()).principals)


def _never(*_: object) -> Any:
    raise AssertionError("nobody connects")


@pytest.fixture
def scene(office: Office, tmp_path: Path) -> Scene:
    return Scene(office, tmp_path / "agent")


async def test_good_certificates_are_left_alone(scene: Scene) -> None:
    """New certificates that carry the space's name are not renewed, nor for news that say nothing new."""
    async with scene.renewing():
        await scene.changed("backend")
        assert scene.asked == 0


async def test_renamed(scene: Scene) -> None:
    """A space that is renamed is certified under the new name, once, before the hub has its answer; all of it is kept."""
    async with scene.renewing():
        for count, name in enumerate(("new", "backend", "newer"), 1):
            await scene.changed(name)
            assert scene.names == [SPACE_ID, f"{name}.alice.eu.knot"]
            assert scene.credentials.is_named
            assert scene.home.membership == scene.credentials.membership == scene.office.membership(name)
            assert scene.asked == count


async def test_renamed_while_away(scene: Scene) -> None:
    """An agent that learns its new name at the welcome is certified under it at once, though its certificates are good."""
    scene.control._take(scene.office.membership("new"))
    scene.name = "new"
    async with scene.renewing():
        await becomes(lambda: scene.credentials.is_named)
    assert scene.asked == 1


@pytest.mark.parametrize("nonsense", [None, Nothing(), Certificates(client="ssh-ed25519 AAAA", host="")])
async def test_hub_that_cannot_certify(scene: Scene, nonsense: BaseModel | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A renewal that fails, be it by an answer that makes no sense, is tried again, and the answer waits for it; meanwhile the
    old certificates serve."""
    monkeypatch.setattr(module, "RENEW_RETRY", 0.01)
    scene.nonsense = nonsense
    scene.failures = 3
    async with scene.renewing():
        change = scene.changed("new")
        await becomes(lambda: scene.asked == 2)
        assert not change.done()
        assert scene.credentials.certified
        await change
    assert (scene.asked, scene.credentials.is_named) == (4, True)


async def test_renamed_during_a_renewal(scene: Scene) -> None:
    """Certificates that were under way under the old name are taken, and others asked for."""
    scene.credentials.membership = scene.office.membership("old")  # a renewal is due
    async with scene.renewing():
        await becomes(lambda: scene.asked == 1)
        await scene.changed("new")
        assert scene.names == [SPACE_ID, "new.alice.eu.knot"]
    assert scene.credentials.seconds_left(time.time()) > 3000


async def test_connection_that_is_lost_meanwhile(scene: Scene) -> None:
    """What was not done on one connection is done on the next."""
    change = scene.changed("new")
    await asyncio.sleep(0)
    change.cancel()
    async with scene.renewing():
        await becomes(lambda: scene.credentials.is_named)
    assert scene.names == [SPACE_ID, "new.alice.eu.knot"]


class Broken:
    """A connection to the hub that is lost at once, or of which something else is wrong."""

    def __init__(self, sockname: tuple[str, int] | None) -> None:
        self._sockname = sockname

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        assert name == "sockname"
        return self._sockname

    async def open_session(self, **_: object) -> None:
        raise RuntimeError("nobody foresaw this")

    def close(self) -> None:
        """There is nothing to close."""

    abort = close

    async def wait_gone(self) -> None:
        """It is closed."""


async def test_nothing_ends_the_agent(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with a connection to the hub, another one is made: what is open between agents goes on."""
    scene = Scene(office, tmp_path / "agent")
    made: list[Broken] = []

    async def connect(*_: object, **__: object) -> Broken:
        made.append(Broken(None if len(made) % 2 else ("127.0.0.1", 1)))
        return made[-1]

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "backoff", lambda *_: 0.0)
    running = asyncio.ensure_future(scene.control.run())
    await becomes(lambda: len(made) > 4 or running.done())
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    scene.home.close()
