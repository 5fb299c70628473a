"""Which door a request goes through, and as whom: the rule that the command line and scripts share.

What was said (flags, then environment) beats what `knot login` has kept. Forwards are asked of an agent where one is
named or answers at the default socket, unless a server or token was given; else of the server.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from knot_ssh.errors import BadInput, NotAuthenticated, Unavailable
from knot_ssh.local import AgentSocket
from knot_ssh.places import config_file, default_socket
from knot_ssh.ports import Ports, PortsOfAgent, PortsOfServer
from knot_ssh.trust import BY_SYSTEM, Trust, trust_said

if TYPE_CHECKING:
    from knot_ssh.api import Api, Patience

SERVER_VARIABLES = ("KNOT_SERVER", "KNOT_URL")
TOKEN_VARIABLE = "KNOT_TOKEN"
SOCKET_VARIABLE = "KNOT_AGENT_SOCKET"


@dataclass(frozen=True, slots=True)
class Given:
    """Server and token, as far as they are said."""

    server: str | None = None
    token: str | None = None

    def __bool__(self) -> bool:
        return bool(self.server or self.token)


@dataclass(frozen=True, slots=True)
class Kept:
    """What `knot login` has kept."""

    server: str | None = None
    token: str | None = None
    trust: Trust = BY_SYSTEM


def given(server: str | None = None, token: str | None = None) -> Given:
    """What was said: these, or else the environment."""
    named = next((os.environ[name] for name in SERVER_VARIABLES if os.environ.get(name)), None)
    return Given(server or named, token or os.environ.get(TOKEN_VARIABLE))


def api(said: Given, patience: Patience | None = None) -> Api:
    """A client of the server that was named or is kept; raises BadInput or NotAuthenticated when something is missing."""
    from knot_ssh.api import USUAL, Api

    kept = Kept() if said.server and said.token else _kept()
    server = said.server or kept.server
    if not server:
        raise BadInput("no server given: run `knot login --server URL --token TOKEN`, or use --server or KNOT_SERVER")
    is_kept = server.rstrip("/") == kept.server
    token = said.token or (kept.token if is_kept else None)  # a kept token goes to the kept server alone
    if token:
        trust = trust_said().over(kept.trust) if is_kept else trust_said()
        return Api(server, token, patience or USUAL, trust)
    if kept.token:
        raise NotAuthenticated(f"the token kept by `knot login` is for {kept.server}; give one for {server} with --token")
    raise NotAuthenticated


def chosen_server(said: Given) -> str | None:
    """The URL of the server that `api` would ask."""
    server = said.server or _kept().server
    return server.rstrip("/") if server else None


def keeps_login(server: str) -> bool:
    """Whether `knot login` has kept a token for this server."""
    kept = _kept()
    return bool(kept.token) and kept.server == server.rstrip("/")


@contextlib.contextmanager
def open_ports(said: Given) -> Iterator[Ports]:
    """The door for one request about forwards; its connection is closed at the end. Raises as `api` and AgentSocket do."""
    agent, silent = None, None
    if named := os.environ.get(SOCKET_VARIABLE):
        agent = AgentSocket(Path(named))
    elif not said and default_socket().exists():
        try:
            agent = AgentSocket(default_socket())
        except Unavailable as error:
            silent = error  # an agent that is gone has left its socket behind
    if agent:
        with contextlib.closing(agent):
            yield PortsOfAgent(agent)
        return
    try:
        server = api(said)
    except BadInput as error:
        raise silent or error from None
    with contextlib.closing(server):
        yield PortsOfServer(server)


def keep(server: str, token: str, trust: Trust = BY_SYSTEM) -> Path:
    """Store server and token, and how the server is known, in the config file (0600)."""
    import yaml

    from knot_ssh.files import make_private_folder, replace_file

    path = config_file()
    make_private_folder(path.parent)
    kept: dict[str, str | bool] = {"server": server, "token": token}
    if trust.ca_file:
        kept["ca_file"] = str(trust.ca_file)
    if trust.allow_plain_http:
        kept["allow_plain_http"] = True
    replace_file(path, yaml.safe_dump(kept).encode())
    return path


def _kept() -> Kept:
    """What the config file holds; raises LooseFile or BadInput."""
    path = config_file()
    if not path.exists():
        return Kept()
    from pydantic import BaseModel, ConfigDict

    from knot_ssh.files import read_secret
    from knot_ssh.yamlfile import parse_yaml

    class Written(BaseModel):
        model_config = ConfigDict(extra="forbid")

        server: str | None = None
        token: str | None = None
        ca_file: Path | None = None
        allow_plain_http: bool = False

    kept = parse_yaml(read_secret(path).decode(errors="replace"), Written, str(path))
    return Kept(kept.server, kept.token, Trust(kept.ca_file, kept.allow_plain_http))
