"""Both CAs, and the hub's key, are changed for others while streams run, agents are away, and the server is killed."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from knot_keys.certificates import read_certificate, signer
from knot_ssh.errors import StillInUse, Unavailable
from tests.faults.beds import FULL
from tests.faults.sites import PATHS, Site, certified_until, site, status
from tests.support.configured import ConfiguredAgent
from tests.support.figures import Figure
from tests.support.ledger import Ledger, Stream
from tests.support.plainssh import Desk, set_up, through_the_hub
from tests.support.services import answering, serving
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
LONG = 120
"""Seconds; the same where the server is to be away for a while."""
AFTER = dict(zip(STEPS, ("prepared", "activated", "stable"), strict=True))
MOMENTS = dict.fromkeys(STEPS, range(8)) if FULL else {"prepare": [1], "activate": [1], "retire": [0]}
"""Changes of files that a step may make before the server is killed."""
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
    connections. Afterwards what the old user CA signs is refused by endpoint and hub."""
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
    for refused in (by_endpoint, by_hub):
        refused(own, before["user-ca"])


@pytest.mark.fault("an agent is away while both CAs are prepared and activated", "comes back and follows")
def test_agent_that_was_away(own: Site, figure: Figure) -> None:
    """It is let in by the old CA's certificate of the hub, learns of the new CAs and is certified by them; meanwhile they are
    not activated without force, and nothing is retired before it is back."""
    away = own.agents["relay"]
    away.stop()
    for what in CAS:
        rotate(own.system, what, "prepare")
        until(lambda: left(own.system, what) == {"spaces": [f"{away.owner}/relay"]}, PATIENCE, "all others know")  # noqa: B023
        assert not took(own.system, what, "activate")
        assert took(own.system, what, "activate", force=True)
    assert not any(took(own.system, what, "retire") for what in CAS)
    back = own.start("relay")
    active = {standing(own.system, what)["active"] for what in CAS}
    until(lambda: signers(away) == active, PATIENCE, "it is certified by the new CAs")
    figure(f"certified by the new CAs {time.monotonic() - back:.1f} s after its start")
    for what in CAS:
        rotate(own.system, what, "retire")
    own.wait_connected()


@pytest.mark.fault("an agent is away until both CAs are retired by force", "says what to do; goes on with a new token")
def test_agent_that_missed_it_all(own: Site) -> None:
    """Its log says that the hub's CA was changed and what to do, and with a new token it joins again; the others go on."""
    away = own.agents["relay"]
    away.stop()
    for step in STEPS:
        for what in CAS:
            assert took(own.system, what, step, force=True)
    own.start("relay")
    assert away.running
    line = away.running.wait_for("its CA was changed while this agent was away")
    assert "knot space token NAME" in line
    assert away.running.stop() == 0
    token = own.system.knot("space", "token", away.name, user=away.owner)
    away.start(token)
    assert signers(away) == signers(own.near)
    away.stop()
    own.start("relay")
    own.wait_connected()


@pytest.mark.fault("stock ssh during a rotation of both CAs", "follows by itself")
@pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
def test_stock_ssh_follows(own: Site, tmp_path: Path) -> None:
    """The host CA waits for a person whose ssh has not heard of it; ssh refreshes by itself, and reaches the space after each
    step."""
    (tmp_path / "home").mkdir()
    desk = set_up(own.system, tmp_path / "home", own.near.owner)
    with serving(answering(b"here")) as port:
        reaches = partial(reached, desk, own.agents["direct"], port)
        until(reaches, PATIENCE, "ssh gets through")
        rotate(own.system, "host-ca", "prepare")
        rotate(own.system, "user-ca", "prepare")
        until(lambda: set(left(own.system, "host-ca")) <= {"people"}, PATIENCE, "all agents know")
        assert left(own.system, "host-ca") == {"people": [own.near.owner]}
        assert not took(own.system, "host-ca", "activate")
        for step in STEPS[1:]:
            for what in CAS:
                until(lambda: reaches() and took(own.system, what, step), 2 * PATIENCE, f"{step} of the {what}")  # noqa: B023
                until(reaches, PATIENCE, f"ssh gets through after {step} of the {what}")
    known = [line.split()[-1] for line in (desk.folder / "known_hosts").read_text().splitlines()]
    assert known[0] == own.system.api("admin").get("api", "ca")["host_ca"].split()[1]


@pytest.mark.fault("host keys of the targets rotated during a transfer", "nothing dropped")
def test_host_keys_of_spaces(own: Site, figure: Figure) -> None:
    """Each target's next key is listed before it is shown and the former one until it is retired; streams and new connections
    go on, direct and relayed."""
    with Ledger() as ledger:
        service = ledger.service()
        local = {path: own.forward(path, service.port) for path in PATHS}
        lines = [ledger.open(port, Stream(rate=RATE / 4), Stream(rate=RATE / 4)) for port in local.values()]
        with ledger.probing(local["direct"]) as direct, ledger.probing(local["relay"]) as relayed:
            for path in PATHS:
                first, second = host_key(own, path, "prepare")
                assert host_key(own, path, "activate") == [second, first]
                assert host_key(own, path, "retire") == [second]
                assert (own.agents[path].folder / "host_key.pub").read_text().split()[:2] == second.split()
            until(lambda: all(stream.received for line in lines for stream in line.streams), what="all streams flow")
        lost = direct.settled().lost() + relayed.settled().lost()
        figure(f"{len(lost)} of {len(direct.lines) + len(relayed.lines)} new ones lost")
        ledger.finish(lines)
        assert not lost, lost


@pytest.mark.fault("the server is killed in the middle of each step of a rotation", "the phase before or the one after")
def test_server_killed_in_a_step(tmp_path: Path, figure: Figure) -> None:
    """Killed before it changes a file of the ring, the server starts again in the phase before the step or the one after it,
    and the step can be taken."""
    counter = tmp_path / "counter"
    system = System(tmp_path)
    system.program = [sys.executable, "-m", "tests.support.dying", str(counter)]
    kills = 0
    with contextlib.closing(system):
        system.start()
        for step in STEPS:
            before = standing(system, "host-ca")["phase"]
            for moment in MOMENTS[step]:
                counter.write_text(str(moment))
                try:
                    system.api("admin").post("api", "rotations", "host-ca", body={"step": step})
                except Unavailable:
                    kills += 1
                    assert system.server
                    assert system.server.wait() == -signal.SIGKILL
                    counter.write_text("")
                    system.start()
                counter.write_text("")
                phase = standing(system, "host-ca")["phase"]
                assert phase in (before, AFTER[step])
                if phase == AFTER[step]:
                    break
            if standing(system, "host-ca")["phase"] == before:
                rotate(system, "host-ca", step)
    figure(f"{kills} kills")
    assert kills >= len(STEPS)


@pytest.mark.skipif(not FULL, reason="needs a server that stays away for longer than short runs have; set KNOT_FULL=1")
@pytest.mark.fault("a host certificate by a host CA that was retired", "refused by links")
def test_link_refuses_the_old_ca(own: Site) -> None:
    """A link takes no host certificate by the old CA: the target's agent, with the server away, shows such a one."""
    target = own.agents["direct"]
    own.system.options = ("--certificate-lifetime", str(LONG))  # agents are to be good for as long as this takes
    own.restart_server(kill=False)
    own.wait_connected()
    own.forward("direct", 1)
    stolen = copied(own, "host-ca")
    for step in STEPS:
        assert took(own.system, "host-ca", step, force=True)
    active = {standing(own.system, what)["active"] for what in CAS}
    until(lambda: signers(own.near) == active and certified_until(own.near) > time.time() + LONG / 2, PATIENCE, "near is good")
    own.stop_server(kill=True)  # first, or the source would know that the target is not running
    target.kill()
    certify_host(target, stolen)
    before = refusals(own.near)  # by force, some may have been left behind for a moment
    own.start("direct")
    until(lambda: refusals(own.near) > before, PATIENCE, "the link refuses the target")
    own.start_server()
    own.wait_connected()
    until(lambda: signers(target) == active, PATIENCE, "the target is certified anew")


def reached(desk: Desk, agent: ConfiguredAgent, port: int) -> bool:
    """Whether stock ssh gets through to this port of the agent's space."""
    return through_the_hub(desk, agent).run("-W", f"127.0.0.1:{port}").stdout == b"here"


def host_key(own: Site, path: str, step: str) -> list[str]:
    """Take a step with the host key of this target; gives those that are listed then."""
    said = own.system.api(own.near.owner).post("api", "spaces", path, "host-key", body={"step": step})
    found: list[str] = said["host_keys"]
    return found


def left(system: System, what: str) -> dict[str, list[str]]:
    """Whom the step that is due would leave behind, by kind."""
    return {found["kind"]: found["names"] for found in standing(system, what)["dependents"]}


def rotate(system: System, what: str, step: str) -> float:
    """Take a step as soon as nobody is left behind by it; gives the seconds that this took."""
    began = time.monotonic()
    until(lambda: took(system, what, step), PATIENCE, f"nobody is left behind by {step} of the {what}")
    return time.monotonic() - began


def took(system: System, what: str, step: str, *, force: bool = False) -> bool:
    try:
        system.api("admin").post("api", "rotations", what, body={"step": step, "force": force})
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


def by_endpoint(own: Site, before: Path) -> None:
    """A client certificate by the old CA does not open an endpoint, and one by the new CA does."""
    endpoint = own.agents["direct"].endpoint()
    assert not logs_in(endpoint, as_client(own, before))
    assert logs_in(endpoint, as_client(own, own.system.folder / "server" / "user_ca"))


def by_hub(own: Site, before: Path) -> None:
    """Nor the hub."""
    host, _, port = own.system.hub.rpartition(":")
    assert not logs_in((host, int(port)), as_client(own, before))
    assert logs_in((host, int(port)), as_client(own, own.system.folder / "server" / "user_ca"))


def certify_host(agent: ConfiguredAgent, ca: Path) -> None:
    """Give an agent a host certificate of the thief's making, good in everything but its CA."""
    names, name = f"{agent.id},{agent.name}.{agent.owner}.eu.knot", f"host/{agent.owner}/eu/{agent.name}/{agent.id}"
    public = agent.folder / "host_key.pub"
    command = ["ssh-keygen", "-q", "-s", str(ca), "-h", "-V", "-1m:+1h", "-I", name, "-n", names, str(public)]
    subprocess.run(command, check=True)


def refusals(agent: ConfiguredAgent) -> int:
    """How often the link to that target was refused for its CA."""
    assert agent.running
    return sum("target=direct" in line and "unknown CA" in line for line in agent.running.lines())
