"""What stands in files: YAML of several kinds, and what an agent remembers."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

from knot_agent.credentials import Credentials
from knot_agent.home import STATE_FILE, Home, _State
from knot_agent.memory import MEMORY_FILE, Memory, _Content
from knot_agent.settings import AgentSettings
from knot_agent.settingsfile import SettingsFile
from knot_keys.connections import Credential
from knot_keys.keyfiles import public_line
from knot_ssh.doors import _kept
from knot_ssh.errors import BadInput, KnotError
from knot_ssh.forwardsfile import FiledForward, read_requests
from knot_ssh.names import Port
from knot_ssh.places import config_file
from knot_ssh.wire import ForwardOrder, Membership, Revoked, StoppedForward
from knot_ssh.wire import Target as TargetSpace
from tests.fuzz import values
from tests.fuzz.target import Target, declared

NAME = "agent.yaml"


@cache
def scratch() -> Path:
    """A private folder, for as long as this process lives."""
    folder = tempfile.mkdtemp(prefix="knot-fuzz-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def write(path: Path, data: bytes) -> None:
    """Private, and without the care for crashes that takes most of the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)


def yaml(data: bytes) -> None:
    """As an agent's settings file, as a list for `apply`, and as what `knot login` has kept."""
    file = SettingsFile(Path(NAME), AgentSettings(), data)
    with declared(BadInput):
        forwards = file.understand(data).forwards or []
        assert len({forward.local_port for forward in forwards}) == len(forwards)
    file.forbids_remote_bind(data)
    with declared(BadInput):
        read_requests(data, NAME)
    with mock.patch.dict(os.environ, {"XDG_CONFIG_HOME": str(scratch())}):
        write(config_file(), data)
        with declared(BadInput):
            _kept()


YAMLS = (
    b"""server: knot.example.com:2222
listen: 0.0.0.0:2022
advertise: [10.0.0.7:2022, "[2001:db8::1]:22"]
allow: [127.0.0.1, "::1"]
connect_timeout: 1.5e+1
allow_remote_bind: true
forwards:
  - {local_port: 8080, space: backend-api, remote_port: 3000, bind: 0.0.0.0}
""",
    b"""%YAML 1.1
%TAG ! tag:example.com,2000:
---
# a range, and words in quotes
forwards:
- local_port: 9000-9010
  space: 'data''base'
  remote_port: "\\x33\\u0030\\U00000030\\x30-3010"
  persistent: yes
  force: !!bool off
...
""",
    b'{"forwards": [\t{"local_port": 8080, "space": "backend-api", "remote_port": 3000}]}\n',
    b"server: http://127.0.0.1:3000\ntoken: knot_0123456789\n",
    b"a: &a [1, 0x1f, 0o7, 1:30, .inf, 2001-12-14t21:59:43.10-05:00, ~, =, <<]\nb: *a\n? |2-\n  text\n: >+\n  more\n\n  text\n",
)
YAML_WORDS = (
    *b"local_port: remote_port: space: forwards: bind: persistent: force: allow_remote_bind: true &a *a |+ >-".split(),
    *b"!!int !!float !!timestamp !!binary !!set !!omap !!null !!python/name:os.system !<tag> %TAG <<: --- ...".split(),
    *(f"{name}: ".encode() for name in AgentSettings.model_fields),
    *(b"%YAML 1.", b"\\U00110000", b"\\ud800", b"? ", b": ", b"- ", b"\n", b"\t"),
    *(char.encode() for char in "\ufeff\u2028\x85"),
)


# What an agent remembers


def state(data: bytes) -> None:
    """As `memory.json`, and as `agent.json`."""
    folder = scratch() / "agent"
    write(folder / MEMORY_FILE, data)
    memory = Memory(folder, values.FRONTEND_ID)
    for forward in memory.forwards:
        memory.keep_target(forward.target)
    write(folder / STATE_FILE, data)
    with declared(KnotError):
        home = Home(folder)
        home.close()
        if home.membership:
            credentials = Credentials(home.membership, Credential(values.AGENT), Credential(values.HOST))
            assert credentials.name.endswith(".knot")
            credentials.host_cas, credentials.user_cas  # noqa: B018 - reading them is what may fail


def state_seeds() -> list[bytes]:
    target = TargetSpace(
        id=values.BACKEND_ID,
        name=values.BACKEND,
        owner=values.ALICE.owner,
        zone=values.ALICE.zone,
        addresses=["10.0.0.7:2022"],
        running=True,
    )
    order = ForwardOrder(local_port=Port(8080), target=target, remote_port=Port(3000), persistent=True, made="1")
    stopped = StoppedForward(local_port=Port(8081), target_id=values.BACKEND_ID, remote_port=Port(3000))
    content = _Content(
        space_id=values.FRONTEND_ID,
        forwards=[order],
        stopped=[stopped],
        revoked=Revoked(serials=[4711], keys=["SHA256:abc"]),
        filed=[FiledForward(local_port=Port(8082), space="backend-api", remote_port=Port(3000))],
        filed_targets={"backend-api": target},
    )
    return [content.model_dump_json().encode(), _State(token_id="00" * 8, membership=membership()).model_dump_json().encode()]


def membership() -> Membership:
    """frontend's."""
    return Membership(
        space_id=values.FRONTEND_ID,
        space=values.FRONTEND,
        owner=values.ALICE.owner,
        zone=values.ALICE.zone,
        user_cas=[public_line(values.USER_CA)],
        host_cas=[public_line(values.HOST_CA)],
    )


TARGETS = (
    Target("yaml", yaml, lambda: YAMLS, YAML_WORDS),
    Target("state", state, state_seeds, [b'"\\ud800"', b"NaN", b"-0", b"1e999", b"null", b"[]", b"{}", b"\\u0000"]),
)
