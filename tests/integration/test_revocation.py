"""What is revoked ends at once, wherever it is used: the seconds from the order to the last byte; and what goes on."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knot_keys.certificates import read_certificate
from knot_keys.keyfiles import fingerprint
from knot_ssh.errors import NotAuthenticated
from tests.faults.beds import FULL
from tests.support.couples import LIMIT, Couple, ended_after
from tests.support.figures import Figure
from tests.support.ledger import Ledger
from tests.support.services import answering, ask, serving
from tests.support.system import AgentOf, System, running_system
from tests.support.waiting import until

PATHS = ["direct", "relay"]
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running_system(tmp_path_factory.mktemp("revocation")) as system:
        yield system


class Orders(Couple):
    """And what can be revoked of them."""

    def order(self, which: str) -> tuple[str, dict[str, str]]:
        """Who gives the order to revoke this, and the order."""
        source, target = self.source.identity(), self.target.identity()
        host = self.target.folder / "host_key-cert.pub"
        key = source[0].with_name(source[0].name + ".pub").read_text().strip()
        orders: dict[str, tuple[str, dict[str, str]]] = {
            "source's certificate": (self.owner, {"kind": "certificate", "serial": serial(source[1])}),
            "target's certificate": (self.owner, {"kind": "certificate", "serial": serial(host)}),
            "source": (self.owner, {"kind": "space", "space": self.source.name}),
            "target": (self.owner, {"kind": "space", "space": self.target.id}),
            "source's key": (self.owner, {"kind": "key", "key": key}),
            "target's key": ("admin", {"kind": "key", "key": certified_key(target[1])}),
            "target's host key": (self.owner, {"kind": "key", "key": certified_key(host)}),
            "user": ("admin", {"kind": "user", "user": self.owner}),
        }
        return orders[which]

    def revoke(self, which: str) -> dict[str, int]:
        who, order = self.order(which)
        voided: dict[str, int] = self.system.api(who).post("api", "revocations", body={**order, "reason": "a test"})
        return voided


def serial(certificate: Path) -> str:
    return str(read_certificate(certificate.read_text())._serial)


def has_ended(agent: AgentOf) -> bool:
    return agent.running is not None and agent.running.process.poll() is not None


def certified_key(certificate: Path) -> str:
    """The fingerprint of the key that it is for."""
    return fingerprint(read_certificate(certificate.read_text()).key)


CERTIFICATES = ["source's certificate", "target's certificate"]
ALL = [*CERTIFICATES, "source", "target", "source's key", "target's key", "target's host key", "user"]
"""The agents of the first two have other certificates made, for their keys are believed still."""
CASES = list(itertools.product(ALL, PATHS)) if FULL else list(zip(ALL, itertools.cycle(PATHS)))
"""Each on both paths, or each on one."""


@pytest.mark.fault("revocation", "last byte within 2 s")
@pytest.mark.parametrize(("which", "path"), CASES)
def test_live_streams_end(system: System, which: str, path: str, figure: Figure) -> None:
    """Streams that flow are cut on both sides within two seconds, and nothing new is served by what is void."""
    couple = Orders(system, path, f"owner-{next(_numbers)}")
    with Ledger() as ledger:
        local = couple.forward(ledger.service().port)
        lines = [ledger.served(local) for _ in range(4)]
        began = time.monotonic()
        voided = couple.revoke(which)
        took = ended_after(lines, began)
        figure(f"{took * 1000:.0f} ms")
        assert took < LIMIT
        assert voided["agents_told"] >= 1
        if which in CERTIFICATES:
            ledger.finish([ledger.served(local)])
        elif which != "user":
            line = ledger.open(local)
            until(lambda: has_ended(couple.source) or line.is_over, what="nothing serves it")
            assert not line.is_served


def test_what_is_printed(system: System) -> None:
    """The command says what has become void and how many agents were told; the list says why; the agent says so and ends."""
    couple = Couple(system, "direct", "paula")
    said = system.knot("revoke", "space", couple.target.name, "--reason", "laptop \x1b[31m lost", user="paula")
    assert said.startswith("Revoked 2 certificates, 1 enrolled key, 1 join token; told ")
    assert couple.target.running
    assert couple.target.running.wait() == 1
    assert "was revoked: laptop" in couple.target.running.lines()[-1]
    assert "\x1b" not in "".join(couple.target.running.lines())
    couple.target.start_without_waiting()
    assert couple.target.running.wait() == 1
    listing = json.loads(system.knot("revoke", "list", "--json", user="paula"))["revocations"]
    assert [entry["kind"] for entry in listing] == ["certificate", "certificate", "enrolled key"]
    assert {entry["reason"] for entry in listing} == {"laptop \\x1b[31m lost"}
    shown = system.knot("revoke", "list", user="paula")
    assert "laptop \\x1b[31m lost" in shown
    assert system.knot("revoke", "list", user="nadia") == "Nothing is revoked."
    assert "no space" in system.knot("revoke", "space", couple.source.name, user="nadia", code=1)


def test_bad_input(system: System, tmp_path: Path) -> None:
    """What is no serial, certificate or key is told in one line, with what to do; a private key is never sent."""
    couple = Couple(system, "direct", "quentin")
    key = couple.source.identity()[0]
    for words in (
        ("certificate", "x"),
        ("certificate", str(key)),
        ("key", str(key)),
        ("key", "SHA256:x"),
        ("space", "-"),
        ("key", ""),
    ):
        system.knot("revoke", *words, user="quentin", code=2)
    assert "serial 9999999999999999999" in system.knot("revoke", "certificate", "9999999999999999999", user="quentin", code=1)
    assert "only an administrator" in system.knot("revoke", "user", "paula", user="quentin", code=1)
    assert "Revoked 1 certificate;" in system.knot("revoke", "certificate", str(couple.source.identity()[1]), user="quentin")
    public = couple.source.folder / "host_key.pub"
    assert "Revoked 2 certificates;" in system.knot("revoke", "key", str(public), user="quentin")
    assert "not enrolled, and no certificate" in system.knot("revoke", "key", public.read_text().strip(), user="nadia", code=1)


def test_revoked_space_comes_back(system: System) -> None:
    """With a new token the space joins anew, in the same folder; its stored forward works again, and the one to it as well."""
    couple = Couple(system, "direct", "rita")
    with serving(answering(b"back")) as port:
        local = couple.forward(port, persistent=True)
        for agent in (couple.source, couple.target):
            system.knot("revoke", "space", agent.name, user="rita")
            assert agent.running
            assert agent.running.wait() == 1
            config = ("--config", str(agent.folder.with_suffix(".yaml")))
            agent.start(system.knot("space", "token", agent.name, user="rita"), options=config)
            until(lambda: couple.forwarded(local)["mode"] == "direct", what="the link is back")
            assert ask(local) == b"back"


def test_revoked_user(system: System) -> None:
    """A revoked user's token is refused, their agents end, and their spaces are there."""
    couple = Couple(system, "direct", "steve")
    api = couple.api
    said = system.knot("revoke", "user", "steve", "--reason", "left", user="admin")
    assert "1 API token" in said
    with pytest.raises(NotAuthenticated):
        api.get("api", "spaces")
    for agent in (couple.source, couple.target):
        assert agent.running
        assert agent.running.wait() == 1
    assert {"steve"} <= {user["name"] for user in system.api("admin").get("api", "users")["users"]}
    assert "nobody would be left" in system.knot("revoke", "user", "admin", user="admin", code=1)


def test_remembered_over_restarts(tmp_path: Path) -> None:
    """An agent that starts without the server refuses what was revoked before."""
    with running_system(tmp_path) as system, serving(answering(b"x")) as port:
        couple = Couple(system, "direct", "tina")
        local = couple.forward(port, persistent=True)
        until(lambda: ask(local) == b"x", what="it works")
        certificate = couple.source.identity()[1]
        void = certificate.read_text()
        system.knot("revoke", "certificate", str(certificate), user="tina")
        until(lambda: certificate.read_text() != void and ask(local) == b"x", what="it works with another certificate")
        assert system.server
        system.server.stop()
        for agent in (couple.source, couple.target):
            assert agent.running
            agent.running.stop()
        certificate.write_text(void)
        options = ("--config", str(couple.target.folder.with_suffix(".yaml")))
        target = couple.target.start_without_waiting(options=options)
        target.wait_for("endpoint open")
        source = couple.source.start_without_waiting()
        source.wait_for("hub not reachable")
        until(lambda: couple.forwarded(local)["state"] == "waiting", what="it waits")
        assert ask(local) == b""
        key = couple.source.identity()[0]
        host, endpoint = couple.target.endpoint()
        command = [
            "ssh", "-F", "none", "-i", str(key), "-o", f"CertificateFile={certificate}", "-o", "IdentitiesOnly=yes", "-o",
            "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-p", str(endpoint), "-W",
            f"127.0.0.1:{port}", f"knot@{host}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert "Permission denied" in done.stderr
        assert "reason=revoked" in target.wait_for("login refused")
