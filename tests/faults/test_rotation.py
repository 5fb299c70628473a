"""Both CAs, and the hub's key, are changed for others while streams run, agents are away, and the server is killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knot_keys.certificates import read_certificate, signer
from knot_ssh.errors import StillInUse
from tests.faults.beds import FULL
from tests.faults.sites import PATHS, Site, site, status
from tests.support.configured import ConfiguredAgent
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.system import System
from tests.support.waiting import until

LIFETIME = 10
"""Seconds, the least that the server takes: so long the old CA's certificates are waited for."""
REKEY_BYTES = 16 * 1024**2 if FULL else 1024**2
FORWARDS = 10
RATE = 60e6 if FULL else 10e6
"""Bytes a second, shared by all forwards, both ways."""
SECONDS = 300 if FULL else 5
"""For which the transfer goes on at least."""
CAS = ("user-ca", "host-ca")
FILES = {"user-ca": "user_ca", "host-ca": "host_ca", "hub-key": "hub_key"}
STEPS = ("prepare", "activate", "retire")
PATIENCE = 4 * LIFETIME

pytestmark = pytest.mark.timeout(SECONDS + 300)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = ("--certificate-lifetime", str(LIFETIME))
    with site(tmp_path_factory.mktemp("rotation"), *options, settings={"rekey_bytes": REKEY_BYTES}) as made:
        yield made


@pytest.mark.fault(
    f"both CAs rotated during a transfer on {FORWARDS} forwards, {LIFETIME} s certificates, rekeys", "nothing dropped"
)
def test_rotation_of_both_cas(own: Site, figure: Figure) -> None:
    """Streams on ten forwards, direct and relayed, both ways, last through every phase of a rotation of both CAs, and so do new
    connections. Afterwards what the old CAs sign is refused by endpoint, hub and link."""
    before = {what: copied(own, what) for what in CAS}
    with Ledger() as ledger:
        service = ledger.service()
        local = [own.forward(PATHS[number % 2], service.port, path=PATHS[number % 2]) for number in range(FORWARDS)]
        rate = RATE / FORWARDS / 2
        began = time.monotonic()
        lines = [ledger.open(port, Stream(rate=rate), Stream(rate=rate)) for port in local]
        with ledger.probing(local[0]) as direct, ledger.probing(local[1]) as relayed:
            waits = [rotate(own.system, what, step) for step in STEPS for what in CAS]
            until(lambda: time.monotonic() - began > SECONDS, SECONDS + 1, "the transfer has lasted")
        lost = direct.settled().lost() + relayed.settled().lost()
        moved = sum(stream.received for line in lines for stream in line.streams)
        figure(
            f"{moved / 1e6:.0f} MB in {time.monotonic() - began:.0f} s, {len(lost)} of "
            f"{len(direct.lines) + len(relayed.lines)} new ones lost; retiring waited {max(waits):.0f} s"
        )
        ledger.finish(lines)
        assert not lost, lost
        assert [status(own.near, port)["mode"] for port in local] == [PATHS[number % 2] for number in range(FORWARDS)]
    assert [standing(own.system, what)["phase"] for what in CAS] == ["stable", "stable"]
    for agent in own.agents.values():
        assert signers(agent) == {standing(own.system, what)["active"] for what in CAS}
    for refused in (by_endpoint, by_hub, by_link):
        refused(own, before)


def rotate(system: System, what: str, step: str) -> float:
    """Take a step as soon as nobody is left behind by it; gives the seconds that this took."""
    began = time.monotonic()
    until(lambda: took(system, what, step), PATIENCE, f"nobody is left behind by {step} of the {what}")
    return time.monotonic() - began


def took(system: System, what: str, step: str) -> bool:
    try:
        system.api("admin").post("api", "rotations", what, body={"step": step})
    except StillInUse:
        return False
    return True


def standing(system: System, what: str) -> dict[str, Any]:
    """How the key stands, as an administrator is told."""
    listing: list[dict[str, Any]] = system.api("admin").get("api", "rotations")["rotations"]
    return next(entry for entry in listing if entry["what"] == what)


def copied(own: Site, what: str) -> Path:
    """The private key as it is now, as a thief would have it."""
    copy = own.system.folder / f"stolen-{what}"
    copy.write_bytes((own.system.folder / "server" / FILES[what]).read_bytes())
    copy.chmod(0o600)
    return copy


def signers(agent: ConfiguredAgent) -> set[str]:
    """Which CAs have signed the certificates that an agent has."""
    files = [*agent.folder.glob("identity-*-cert.pub"), agent.folder / "host_key-cert.pub"]
    return {signer(read_certificate(file.read_text())) for file in files}


def as_client(own: Site, ca: Path) -> Path:
    """A key with a client certificate by this CA, as an agent has it; gives the key's file."""
    key = own.system.folder / f"forged-{time.monotonic_ns()}"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    name, rights = f"agent/{own.near.owner}/eu/near/{own.near.id}", ["-O", "clear", "-O", "permit-port-forwarding"]
    command = ["ssh-keygen", "-q", "-s", str(ca), "-V", "-1m:+1h", "-I", name, "-n", f"{own.near.owner}@eu", *rights]
    subprocess.run([*command, f"{key}.pub"], check=True)
    return key


def logs_in(address: tuple[str, int], key: Path) -> bool:
    """Whether stock ssh gets in with this key and its certificate."""
    options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "IdentitiesOnly=yes"]
    words = [word for option in options for word in ("-o", option)]
    command = ["ssh", "-v", "-F", "none", *words, "-i", str(key), "-p", str(address[1]), "-l", "knot", "-N"]
    command += ["-o", "ExitOnForwardFailure=yes", "-R", "1:127.0.0.1:1", address[0]]  # which neither takes, and so it ends
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False).stderr
    assert "Authenticated to" in told or "Permission denied (publickey" in told, told
    return "Authenticated to" in told


def by_endpoint(own: Site, before: dict[str, Path]) -> None:
    """A client certificate by the old CA does not open an endpoint, and one by the new CA does."""
    endpoint = own.agents["direct"].endpoint()
    assert not logs_in(endpoint, as_client(own, before["user-ca"]))
    assert logs_in(endpoint, as_client(own, own.system.folder / "server" / "user_ca"))


def by_hub(own: Site, before: dict[str, Path]) -> None:
    """Nor the hub."""
    host, _, port = own.system.hub.rpartition(":")
    assert not logs_in((host, int(port)), as_client(own, before["user-ca"]))
    assert logs_in((host, int(port)), as_client(own, own.system.folder / "server" / "user_ca"))


def by_link(own: Site, before: dict[str, Path]) -> None:
    """A link takes no host certificate by the old CA: the target's agent, with the server away, shows such a one."""
    target = own.agents["direct"]
    assert target.running
    assert own.near.running
    target.stop()
    certify_host(target, before["host-ca"])
    own.stop_server(kill=True)
    own.start("direct")
    until(lambda: refused_by(own.near), LIFETIME, "the link refuses the target")
    own.start_server()
    own.wait_connected()
    until(lambda: signers(target) == signers(own.near), PATIENCE, "the target is certified anew")


def certify_host(agent: ConfiguredAgent, ca: Path) -> None:
    """Give an agent a host certificate of the thief's making, good in everything but its CA."""
    names, name = f"{agent.id},{agent.name}.{agent.owner}.eu.knot", f"host/{agent.owner}/eu/{agent.name}/{agent.id}"
    public = agent.folder / "host_key.pub"
    command = ["ssh-keygen", "-q", "-s", str(ca), "-h", "-V", "-1m:+1h", "-I", name, "-n", names, str(public)]
    subprocess.run(command, check=True)


def refused_by(agent: ConfiguredAgent) -> bool:
    assert agent.running
    return any("unknown CA" in line for line in agent.running.lines())
