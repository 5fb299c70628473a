"""Which credentials open which doors: one does, and every other one is refused, each for its own reason."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pytest

from tests.conftest import Pair
from tests.support.figures import Figure
from tests.support.forgery import Forge, Made, copied_from, host_ca, host_certificate_of, own_ca, plain_key, signed, user_ca_key
from tests.support.services import Ends, serving
from tests.support.system import Running

SECONDS = 30
GREETING = b"inside"
EXPIRED, NOT_YET = "-2h:-1h", "+1h:+2h"


@dataclass(frozen=True, slots=True)
class Case:
    """A credential, and why an endpoint and the hub refuse it: the log tells, for the peer hears of most reasons nothing."""

    make: Made
    endpoint: str
    hub: str | None = None

    @property
    def at_the_hub(self) -> str:
        return self.endpoint if self.hub is None else self.hub


NO_SPACE = "no space of yours that can be reached has that name or id"
"""To the hub such a certificate is a good one, which opens nothing."""
PLAIN, NOT_LOGGED = "a plain key", "Permission denied (publickey)"
"""ssh shows the bare key before the certificate, and keeps host certificates for itself. The hub does not log bare keys."""

CASES = {
    "another owner": Case(signed(principals="bob@eu", key_id="person/bob/eu/-/-"), "other owner or zone", NO_SPACE),
    "another zone": Case(signed(principals="alice@us", key_id="person/alice/us/-/-"), "other owner or zone", NO_SPACE),
    "two owners": Case(signed(principals="alice@eu,bob@eu"), "identity"),
    "principal of another than the key id": Case(signed(key_id="person/bob/eu/-/-"), "identity"),
    "login name as principal": Case(signed(principals="alice,knot"), "identity"),
    "expired": Case(signed(valid=EXPIRED), "expired"),
    "not yet valid": Case(signed(valid=NOT_YET), "not yet valid"),
    "no principals": Case(signed(principals=""), "no principals"),
    "one extension more": Case(signed(options=("clear", "permit-port-forwarding", "permit-pty")), "options other than"),
    "no extensions": Case(signed(options=("clear",)), "options other than"),
    "ssh-keygen's extensions": Case(signed(options=()), "options other than"),
    "a critical option": Case(signed(options=("clear", "permit-port-forwarding", "force-command=true")), "options other than"),
    "by the host CA": Case(signed(ca=host_ca), "unknown CA"),
    "by a CA of one's own": Case(signed(ca=own_ca), "unknown CA"),
    "host certificate by the user CA": Case(signed(kind=("-h",), options=()), PLAIN, NOT_LOGGED),
    "plain key": Case(plain_key, PLAIN, NOT_LOGGED),
    "the CA's own key": Case(user_ca_key, PLAIN, NOT_LOGGED),
    "the CA's own key, certified": Case(signed(key=user_ca_key), "a CA's key as login key"),
}
OF_AGENTS = ["an endpoint's host certificate", "revoked"]
"""What is tried besides; these need agents."""


class Lab:
    """The credentials, each made when first asked for, and who tries them."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        revoked = self._revoked()
        of_agents = [Case(host_certificate_of(pair.frontend), PLAIN, NOT_LOGGED), Case(lambda _: revoked, "revoked")]
        self.cases = CASES | dict(zip(OF_AGENTS, of_agents, strict=True))
        self._keys: dict[str, Path] = {}
        self.good = self.key("the right one", signed())

    def key(self, name: str, make: Made) -> Path:
        if name not in self._keys:
            folder = self.folder / f"case-{len(self._keys)}"
            folder.mkdir()
            self._keys[name] = make(Forge(self.pair.system, folder))
        return self._keys[name]

    def _revoked(self) -> Path:
        """The certificate of an agent whose space is deleted, once backend-api knows: it has ended a connection for it."""
        agent = self.pair.system.space("matrix-revoked")
        folder = self.folder / "revoked"
        folder.mkdir()
        key = copied_from(agent)(Forge(self.pair.system, folder))
        connection = Running([*self.to_endpoint(key), "-v", "-N", "knot@127.0.0.1"], folder / "log", {"PATH": "/usr/bin:/bin"})
        self.pair.system.processes.append(connection)
        connection.wait_for("Entering interactive session")
        self.pair.system.api("alice").delete("api", "spaces", agent.id)
        assert connection.wait() == 255
        return key

    def to(self, key: Path, alias: str, port: int) -> list[str]:
        """ssh with one key, the certificate beside it, and nothing of anybody's home."""
        known_hosts = self.folder / "known_hosts"
        if not known_hosts.exists():
            known_hosts.write_text(f"@cert-authority * {self.pair.system.api('alice').get('api', 'ca')['host_ca']}\n")
        settings = {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "UserKnownHostsFile": known_hosts,
            "GlobalKnownHostsFile": "none",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": alias,
        }
        return [
            "ssh",
            "-F",
            "none",
            "-p",
            str(port),
            "-i",
            str(key),
            *(w for k, v in settings.items() for w in ("-o", f"{k}={v}")),
        ]

    def to_endpoint(self, key: Path) -> list[str]:
        return self.to(key, self.pair.backend.id, self.pair.backend.endpoint()[1])

    def by_hub(self, at_hub: Path, at_endpoint: Path) -> list[str]:
        """`ssh -J`, with a key of its own for each leg."""
        port = int(self.pair.system.hub.rpartition(":")[2])
        jump = [*self.to(at_hub, "hub.knot", port), "-W", f"{self.pair.backend.id}:22", "knot@127.0.0.1"]
        return [*self.to(at_endpoint, self.pair.backend.id, 22), "-o", f"ProxyCommand={shlex.join(jump)}"]


@dataclass(frozen=True, slots=True)
class Door:
    """A place where credentials are tried: the command that does, up to the host; whose log tells the reason, and which."""

    command: Callable[[Lab, Path], list[str]]
    keeper: Callable[[Pair], Running | None]
    reason: Callable[[Case], str]

    def open(self, lab: Lab, key: Path) -> tuple[subprocess.CompletedProcess[bytes], list[tuple[str, bytes]]]:
        """Go through it to a service behind; tells how ssh ended, and what the service has seen."""
        ends = Ends(GREETING)
        with serving(ends) as port:
            command = [*self.command(lab, key), "-W", f"127.0.0.1:{port}", "knot@127.0.0.1"]
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
        return result, ends.seen


def agent_of(pair: Pair) -> Running | None:
    return pair.backend.running


DOORS = {
    "endpoint": Door(lambda lab, key: lab.to_endpoint(key), agent_of, lambda case: case.endpoint),
    "hub": Door(lambda lab, key: lab.by_hub(key, lab.good), lambda pair: pair.system.server, lambda case: case.at_the_hub),
    "endpoint behind the hub": Door(lambda lab, key: lab.by_hub(lab.good, key), agent_of, lambda case: case.endpoint),
}


@pytest.fixture(scope="module")
def lab(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(pair, tmp_path_factory.mktemp("matrix"))


@pytest.mark.threat(3, "wrong principals, options, dates, CAs, kinds of certificate", "refused, with the reason")
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("name", [*CASES, *OF_AGENTS])
def test_refused(lab: Lab, figure: Figure, door: Door, name: str) -> None:
    """ssh is refused, the service sees no connection, and the log has the reason."""
    case = lab.cases[name]
    keeper = door.keeper(lab.pair)
    assert keeper is not None
    before = len(keeper.lines())
    result, seen = door.open(lab, lab.key(name, case.make))
    figure("refused, the service sees nothing")
    assert (result.returncode, result.stdout, seen) == (255, b"", [])
    said = [*result.stderr.decode().splitlines(), *keeper.lines()[before:]]
    assert any(door.reason(case) in line for line in said), said


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_right_one(lab: Lab, door: Door) -> None:
    """A certificate made in the same way, with everything right, opens the same door: so the refusals above mean it."""
    result, seen = door.open(lab, lab.good)
    assert (result.stdout, seen) == (GREETING, [("fin", b"")]), result.stderr


@pytest.mark.parametrize("where", ["endpoint", "hub"])
@pytest.mark.parametrize("name", ["host certificate by the user CA", "an endpoint's host certificate"])
def test_host_certificate_shown_all_the_same(lab: Lab, where: str, name: str) -> None:
    """A client that does show a host certificate, as paramiko will, is refused for its kind."""
    door, key = DOORS[where], lab.key(name, lab.cases[name].make)
    keeper = door.keeper(lab.pair)
    assert keeper is not None
    credential = paramiko.Ed25519Key.from_private_key_file(str(key))
    credential.load_certificate(f"{key}-cert.pub")
    port = lab.pair.backend.endpoint()[1] if where == "endpoint" else int(lab.pair.system.hub.rpartition(":")[2])
    connection = paramiko.Transport(socket.create_connection(("127.0.0.1", port), timeout=10))
    before = len(keeper.lines())
    try:
        with pytest.raises(paramiko.AuthenticationException):
            connection.connect(username="knot", pkey=credential)
    finally:
        connection.close()
    assert any("wrong kind of certificate" in line for line in keeper.lines()[before:])
