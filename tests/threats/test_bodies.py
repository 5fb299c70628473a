"""A user of the API, or of the agent's socket, who sends names, bodies and files that nobody means."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3

from tests.conftest import Pair
from tests.faults.beds import meter
from tests.support.figures import Figure
from tests.support.measures import MIB, Growth, Meter

FLAT = 16 * MIB
"""What memory may grow by, at its peak."""
NAMES = [
    "../x", "..", ".", "a/b", "a\\b", "%2e%2e", "a\x00b", "a\nb", "a\r\nX: y", "\x1b[31m", "a b", "", "join", "A", "a.b", "a@b",
    "-a", "a" * 64, "ü", "\u202e", "a\u0301", "\ud800", "00000000-0000-4000-8000-000000000000", "a,b", "$(id)", "`id`", "';--",
]  # fmt: skip
HUGE = b"9" * 100_000
DEEP = 100_000


def goods(*parts: bytes) -> bytes:
    return b'{"name": "ok", ' + b"".join(parts) + b"}"


BODIES = {
    "deep lists": goods(b'"zone": ' + b"[" * DEEP + b"]" * DEEP),
    "deep objects": goods(b'"zone": ' + b'{"a":' * (DEEP // 2) + b"1" + b"}" * (DEEP // 2)),
    "huge integer": goods(b'"zone": ' + HUGE),
    "huge exponent": goods(b'"zone": 1e' + HUGE),
    "many keys": goods(b",".join(b'"%d": 1' % number for number in range(40_000))),
    "surplus key": goods(b'"zone": "eu", "admin": true'),
    "no JSON": b"a: &a [*a]",
}
"""None makes a space."""
LINES = [
    b'{"jsonrpc":"2.0","id":1,"method":"port.list","params":' + b"[" * DEEP + b"]" * DEEP + b"}\n",
    b'{"jsonrpc":"2.0","id":' + HUGE + b',"method":"port.list","params":{}}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"../../x\\u0000","params":{}}\n',
    b'{"jsonrpc":"2.0","id":1,"method":"port.list","params":{"source":"../x"}}\n',
    b"[" * DEEP + b"\n",
    b"\xff\xfe\n",
    b"x" * 3_000_000 + b"\n",
]


def posted(pair: Pair, path: str, body: bytes) -> int:
    headers = {"Authorization": f"Bearer {pair.system.user('alice')}", "Content-Type": "application/json"}
    return urllib3.request("POST", pair.system.url + path, body=body, headers=headers, retries=False, timeout=30).status


def server(pair: Pair) -> Growth:
    assert pair.system.server
    return Growth(Meter("server", pair.system.server.process.pid))


def faults(pair: Pair) -> list[str]:
    return [line for running in pair.system.processes for line in running.lines() if "Traceback" in line or "internal" in line]


@pytest.mark.threat(17, "traversal, control characters and reserved words in names", "refused: 400, or 404 for a path")
def test_names(pair: Pair, figure: Figure) -> None:
    """No name but a label is taken, in a body or in a path, and none is repeated raw."""
    before = pair.system.spaces("alice")
    bodies = [posted(pair, "/api/spaces", json.dumps({"name": name, "zone": "eu"}).encode()) for name in NAMES]
    zones = [posted(pair, "/api/spaces", json.dumps({"name": "ok", "zone": name}).encode()) for name in NAMES]
    paths = [posted(pair, f"/space-io/{escaped(name)}/port/stop", b'{"local_port": 1}') for name in NAMES]
    figure(f"{3 * len(NAMES)} names: {sorted({*bodies, *zones, *paths})}")
    assert {*bodies, *zones} == {400}
    assert {*paths} <= {400, 404}
    assert pair.system.spaces("alice") == before


def escaped(name: str) -> str:
    return quote(name.encode("utf-8", "surrogatepass"), safe="")


@pytest.mark.threat(17, "bodies: nesting, huge numbers, 40,000 keys, aliases, 512 KiB and more", "400 or 413, memory flat")
def test_bodies(pair: Pair, figure: Figure) -> None:
    """Each is refused before anything is made of it."""
    growth = server(pair)
    statuses = {name: posted(pair, "/api/spaces", body) for name, body in BODIES.items()}
    statuses["wrong entries"] = posted(pair, "/space-io/frontend/port/apply", b'{"forwards": [' + b"1," * 200_000 + b"1]}")
    statuses["8 MiB"] = posted(pair, "/api/spaces", goods(b'"zone": "' + b"x" * 8 * MIB + b'"'))
    figure(f"{sorted(set(statuses.values()))}; {growth}")
    assert set(statuses.values()) <= {400, 413}, statuses
    assert growth.peak < FLAT
    assert not faults(pair)


@pytest.mark.threat(17, "a key that stands twice in a body", "400")
def test_repeated_keys(pair: Pair, figure: Figure) -> None:
    """Two readers of one body could take it for two things."""
    status = posted(pair, "/space-io/frontend/port/stop", b'{"local_port": 1, "local_port": 2}')
    figure(status)
    assert status == 400


@pytest.mark.threat(17, "the agent's socket: nesting, huge numbers, lines without end", "answered or hung up on, memory flat")
def test_lines(pair: Pair, figure: Figure) -> None:
    """Whatever is said on it, the next conversation is served."""
    growth = Growth(meter("agent", pair.frontend))
    for line in LINES:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(pair.frontend.folder / "agent.sock"))
            try:
                sock.sendall(line)
                sock.recv(65536)
            except ConnectionError:
                pass
    figure(f"{len(LINES)} lines; {growth}")
    assert pair.frontend.forwards() is not None
    assert growth.peak < FLAT
    assert not faults(pair)


@pytest.mark.threat(17, "a list for apply: alias bomb, repeated keys, huge integers, nesting", "exit code 2 with file and line")
def test_files(pair: Pair, tmp_path: Path, figure: Figure) -> None:
    """A file is read strictly, and nothing of it is sent."""
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in pairs)
    texts = [bomb, "forwards: []\nforwards: []\n", f"forwards: [{{local_port: {'9' * 5000}}}]\n", "forwards: " + "[" * 5000]
    said = []
    for text in texts:
        file = tmp_path / "forwards.yaml"
        file.write_text(text)
        said.append(pair.frontend.knot("port", "apply", "-f", str(file), code=2))
    figure(f"{len(said)} of {len(texts)} refused")
    assert all("forwards.yaml:" in line for line in said)
