"""A real server over a real store, for targets that talk to it: alice's, with two spaces and a join token."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from fastapi import FastAPI

from knot_keys.jointoken import JoinToken
from knot_server.actor import Actor
from knot_server.datafolder import initialise
from knot_server.http.app import make_app
from knot_server.services import Services
from knot_server.settings import ServerSettings
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.names import SpaceId, SpaceName
from tests.fuzz import values
from tests.fuzz.files import scratch
from tests.fuzz.stage import Stage
from tests.support.planes import stock_plane

SETTINGS = ServerSettings()
URL = f"http://{SETTINGS.http}"

ALICE = Actor(values.ALICE.owner, admin=True)


@dataclass(frozen=True, slots=True)
class Served:
    """The server's parts, its HTTP application, alice's API token, and the id of a join token of backend-api's."""

    services: Services
    app: FastAPI
    token: str
    join_token_id: str


@dataclass(frozen=True, slots=True)
class Master:
    """A server's folder that all others are copies of, and what was told when it was made."""

    folder: Path
    token: str
    join_token_id: str


_masters: list[Master] = []


@asynccontextmanager
async def served(plane: DataPlane | None = None) -> AsyncIterator[Served]:
    """A server with a folder of its own, always the same at the beginning."""
    if not _masters:
        _masters.append(await _made(scratch() / "server"))
    master = _masters[0]
    with tempfile.TemporaryDirectory(dir=scratch()) as place:
        folder = Path(place) / "server"
        shutil.copytree(master.folder, folder)
        services = await Services.open(plane or stock_plane(), folder, SETTINGS)
        try:
            services.hub_address = "127.0.0.1:2222"
            yield Served(services, make_app(services, SETTINGS, URL), master.token, master.join_token_id)
        finally:
            await services.close()


async def _made(folder: Path) -> Master:
    token = await initialise(folder, values.ALICE.owner)
    services = await Services.open(stock_plane(), folder, SETTINGS)
    try:
        with mock.patch.object(SpaceId, "new", side_effect=[values.FRONTEND_ID, values.BACKEND_ID]):
            frontend = await _space(services, values.FRONTEND)
            backend = await _space(services, values.BACKEND)
        await services.enrolment.redeem(frontend.id, values.AGENT.convert_to_public())
    finally:
        await services.close()
    return Master(folder, token, backend.id)


async def _space(services: Services, name: SpaceName) -> JoinToken:
    """Make it; gives a reusable token."""
    space, _ = await services.spaces.create(ALICE, name, values.ALICE.zone)
    _, token = await services.spaces.new_token(ALICE, space.id, reusable=True)
    return JoinToken.parse(token)


SERVER = Stage(served)
