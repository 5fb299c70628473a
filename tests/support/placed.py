"""A knot system whose server and agents live in namespaces of one network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knot_ssh.api import Api, Query
from knot_ssh.trust import Trust
from tests.support.configured import ConfiguredAgent
from tests.support.networks import Network, Place
from tests.support.system import Running, System

SERVER = "server"
"""The place of the server, and of whoever speaks to its API."""
ENDPOINT = "0.0.0.0:2022"


class PlacedSystem(System):
    """The server is at the place of that name. The command line runs there, too."""

    def __init__(self, folder: Path, network: Network, options: tuple[str, ...] = ()) -> None:
        super().__init__(folder, ("--allow-plain-http", *options))
        self.network = network
        self._place = network[SERVER]
        self.http_address = f"{self._place.address}:3000"
        self.ssh_address = f"{self._place.address}:2222"

    def environment(self, extra: dict[str, str]) -> dict[str, str]:
        """The network is the tests' own."""
        return super().environment({"KNOT_ALLOW_PLAIN_HTTP": "1"} | extra)

    def start(self) -> None:
        with self._place.inside():
            super().start()

    def knot(self, *words: str, user: str = "", env: dict[str, str] | None = None, code: int = 0, stdin: str = "") -> str:
        with self._place.inside():
            return super().knot(*words, user=user, env=env, code=code, stdin=stdin)

    def api(self, user: str) -> Api:
        return PlacedApi(self._place, self.url, self.user(user))


class PlacedApi(Api):
    """The API as it is called from some place."""

    def __init__(self, place: Place, server: str, token: str) -> None:
        super().__init__(server, token, trust=Trust(allow_plain_http=True))
        self._place = place

    def _call(self, method: str, path: tuple[str, ...], body: Any = None, query: Query = ()) -> Any:
        with self._place.inside():
            return super()._call(method, path, body, query)


class PlacedAgent(ConfiguredAgent):
    """The agent of a new space, at the place of the same name."""

    def __init__(self, system: PlacedSystem, name: str, owner: str, settings: dict[str, Any], folder: Path) -> None:
        super().__init__(system, name, owner, settings, folder)
        self.place = system.network[name]

    def start_without_waiting(self, token: str = "", *, listen: str = ENDPOINT, options: tuple[str, ...] = ()) -> Running:
        with self.place.inside():
            return super().start_without_waiting(token, listen=listen, options=options)

    def start(self, token: str = "", *, listen: str = ENDPOINT, options: tuple[str, ...] = ()) -> Running:
        return super().start(token, listen=listen, options=options)
