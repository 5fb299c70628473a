"""Stock OpenSSH against an agent's endpoint and the hub, dialled directly."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Pair
from tests.faults.beds import start_agent
from tests.support.services import (
    Ends,
    answering,
    connect,
    free_port,
    outcome,
    read_all,
    serving,
)
from tests.support.system import AgentOf, Running
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")


class Ssh:
    """ssh with a certificate, towards one endpoint whose host certificate is checked against the CA."""

    def __init__(self, pair: Pair, folder: Path, key: Path, endpoint: tuple[str, int], alias: str) -> None:
        ca = pair.system.api("alice").get("api", "ca")["host_ca"]
        (folder / "known_hosts").write_text(f"@cert-authority * {ca}\n")
        certificate = key.with_name(key.name + "-cert.pub")
        self.pair = pair
        self.folder = folder
        self.host = f"knot@{endpoint[0]}"
        self.options = [
            *("-F", "none", "-p", str(endpoint[1]), "-i", str(key), "-o", f"CertificateFile={certificate}"),
            *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes"),
            *("-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes"),
            *("-o", f"HostKeyAlias={alias}", "-o", "ExitOnForwardFailure=yes"),
        ]

    def run(self, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = ["ssh", *self.options, *words]
        return subprocess.run(command, input=data, capture_output=True, timeout=30, check=False)

    @contextlib.contextmanager
    def background(self, *words: str) -> Iterator[Running]:
        environment = self.pair.system.environment({})
        running = Running(["ssh", "-N", *self.options, *words, self.host], self.folder / "ssh.log", environment)
        try:
            yield running
        finally:
            running.kill()


@pytest.fixture
def alice(pair: Pair, tmp_path: Path) -> Ssh:
    """alice's own certificate, towards backend-api."""
    key = pair.system.certificate("alice", tmp_path)
    return Ssh(pair, tmp_path, key, pair.backend.endpoint(), "backend-api.alice.eu.knot")


def with_agent_certificate(pair: Pair, folder: Path, agent: AgentOf) -> Ssh:
    """ssh towards backend-api with the certificate of another agent."""
    identity, certificate = agent.identity()
    key = folder / "id_agent"
    shutil.copy(identity, key)
    shutil.copy(certificate, folder / "id_agent-cert.pub")
    return Ssh(pair, folder, key, pair.backend.endpoint(), "backend-api.alice.eu.knot")


def test_certificates_show_what_they_are_and_nothing_else(pair: Pair) -> None:
    """`ssh-keygen -L` shows principal, key id and the one extension of an agent's certificate."""
    _, certificate = pair.frontend.identity()
    shown = subprocess.run(["ssh-keygen", "-L", "-f", str(certificate)], capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in shown.splitlines()]
    assert f'Key ID: "agent/alice/eu/frontend/{pair.frontend.id}"' in lines
    after = lines[lines.index("Principals:") :]
    assert after == ["Principals:", "alice@eu", "Critical Options: (none)", "Extensions:", "permit-port-forwarding"]


def test_host_certificate_names_the_space(pair: Pair) -> None:
    """The endpoint's host certificate has the space's id and full name as principals."""
    certificate = pair.backend.folder / "host_key-cert.pub"
    shown = subprocess.run(["ssh-keygen", "-L", "-f", str(certificate)], capture_output=True, text=True, check=True).stdout
    lines = [line.strip() for line in shown.splitlines()]
    after = lines[lines.index("Principals:") + 1 :]
    assert after == [pair.backend.id, "backend-api.alice.eu.knot", "Critical Options: (none)", "Extensions: (none)"]


def test_no_reverse_forward(alice: Ssh) -> None:
    """`ssh -R` is refused, for TCP and for unix sockets."""
    for what in (f"{free_port()}:127.0.0.1:1", f"{alice.folder / 'r.sock'}:127.0.0.1:1"):
        result = alice.run("-N", "-R", what, alice.host)
        assert result.returncode == 255
        assert b"remote port forwarding failed" in result.stderr or b"Error" in result.stderr


def test_no_unix_sockets(alice: Ssh) -> None:
    """`-W` style forwarding to a unix socket of the target is refused."""
    local = alice.folder / "l.sock"
    target = alice.pair.backend.folder / "agent.sock"
    with alice.background("-L", f"{local}:{target}") as running:
        until(local.exists, what="ssh listens")
        import socket

        with socket.socket(socket.AF_UNIX) as sock:
            until(lambda: sock.connect_ex(str(local)) == 0, what="ssh accepts")
            sock.settimeout(10)
            assert sock.recv(1) == b""
        running.wait_for("open failed")


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "0.0.0.0", "::", "127.1", "127.0.0.2", "0x7f.1", "::ffff:127.0.0.1", "localhost.evil", "10.0.0.1"],
)
def test_channels_go_to_loopback_alone(alice: Ssh, host: str) -> None:
    """A channel to anything but 127.0.0.1, ::1 and localhost is refused, and no connection is made."""
    ends = Ends(b"leak")
    with serving(ends) as port:
        result = alice.run("-W", f"[{host}]:{port}" if ":" in host else f"{host}:{port}", alice.host)
        assert result.stdout == b""
        assert b"administratively prohibited" in result.stderr
        assert ends.seen == []


def test_an_agents_certificate_of_the_same_owner_and_zone_is_let_in(pair: Pair, tmp_path: Path) -> None:
    """An agent's certificate of the right owner and zone opens the channel, too."""
    ssh = with_agent_certificate(pair, tmp_path, pair.frontend)
    with serving(answering(b"in")) as port:
        assert ssh.run("-W", f"127.0.0.1:{port}", ssh.host).stdout == b"in"


def test_hub_asks_join_alone_for_a_password(pair: Pair, alice: Ssh) -> None:
    """A certificate opens nothing under `join`, which takes a token."""
    result = to_the_hub(pair, alice).run("-W", "backend-api:22", "join@127.0.0.1")
    assert b"Permission denied (password)" in result.stderr


@pytest.mark.parametrize("login", ["alice", "knot"])
def test_hub_relays_to_endpoints_alone(pair: Pair, alice: Ssh, login: str) -> None:
    """Under any other name it does, without a shell: but to no other host or port than those of spaces."""
    ssh = to_the_hub(pair, alice)
    for place in ("127.0.0.1:1", "backend-api:23", "backend-api.other:22", "nobody:22", "backend-api.bob.eu.knot:22"):
        assert b"no space of yours" in ssh.run("-W", place, f"{login}@127.0.0.1").stderr
    assert ssh.run(f"{login}@127.0.0.1", "true").returncode != 0


def to_the_hub(pair: Pair, ssh: Ssh) -> Ssh:
    """The same, towards the hub."""
    options = [word.replace("backend-api.alice.eu.knot", "hub.knot") for word in ssh.options]
    options[options.index("-p") + 1] = pair.system.hub.rsplit(":", 1)[1]
    ssh.options = options
    return ssh


def through_the_hub(pair: Pair, ssh: Ssh, target: str) -> list[str]:
    """Options for a jump, in a file: with -J alone the jump host would get none of ours."""
    hub_port = pair.system.hub.rsplit(":", 1)[1]
    key = ssh.options[ssh.options.index("-i") + 1]
    config = ssh.folder / "config"
    common = {
        "IdentityFile": key,
        "CertificateFile": f"{key}-cert.pub",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "UserKnownHostsFile": f"{ssh.folder}/known_hosts",
        "StrictHostKeyChecking": "yes",
        "ExitOnForwardFailure": "yes",
        "User": "knot",
    }
    hub = {"HostName": "127.0.0.1", "Port": hub_port, "HostKeyAlias": "hub.knot", "ProxyJump": "none"}
    space = {"HostName": target, "HostKeyAlias": "backend-api.alice.eu.knot", "ProxyJump": "hub"}
    blocks = {"*": common, "hub": hub, "target": space}
    lines = [f"Host {name}\n" + "".join(f" {key} {value}\n" for key, value in block.items()) for name, block in blocks.items()]
    config.write_text("".join(lines))
    return ["-F", str(config)]


@pytest.mark.parametrize("name", ["backend-api", "backend-api.knot", "backend-api.alice.eu.knot", ""])
def test_jump_through_the_hub(pair: Pair, alice: Ssh, name: str) -> None:
    """`ssh -J` through the hub reaches a space by each of its names, and checks the space's own host certificate."""
    options = through_the_hub(pair, alice, name or pair.backend.id)
    with serving(answering(b"through the hub")) as port:
        command = ["ssh", *options, "-W", f"localhost:{port}", "target"]
        assert subprocess.run(command, capture_output=True, timeout=30, check=False).stdout == b"through the hub"


def test_stock_ssh_registers_an_endpoint(pair: Pair, tmp_path: Path) -> None:
    """`ssh -R` with an enrolled key is all that it takes to be relayed to: an agent's forward goes through it."""
    system = pair.system
    stand_in = start_agent(system, "stand-in", {"advertise": ["127.0.0.1:1"]})
    address, port = stand_in.endpoint()
    identity, _ = stand_in.identity()
    (tmp_path / "known_hosts").write_text(f"@cert-authority * {system.api('alice').get('api', 'ca')['host_ca']}\n")
    command = ["ssh", "-v", "-N", "-F", "none", "-p", system.hub.rsplit(":", 1)[1], "-i", str(identity)]
    for option in ("IdentitiesOnly=yes", "CertificateFile=none", "BatchMode=yes", "ExitOnForwardFailure=yes"):
        command += ["-o", option]
    command += ["-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}", "-o", "HostKeyAlias=hub.knot"]
    command += [f"{stand_in.id}@127.0.0.1", "-R"]
    somebody_else = [*command, f"frontend.alice.eu.knot:22:{address}:{port}"]
    assert subprocess.run(somebody_else, capture_output=True, timeout=30, check=False).returncode == 255
    own_name = [*command, f"stand-in.alice.eu.knot:22:{address}:{port}"]
    running = Running(own_name, tmp_path / "ssh.log", system.environment({}))
    system.processes.append(running)
    running.wait_for("remote forward success")
    local = free_port()
    with serving(answering(b"by stock ssh")) as service:
        system.knot("port", "forward", "frontend", str(local), "stand-in", str(service), user="alice")
        with connect(local) as sock:
            assert read_all(sock) == ("fin", b"by stock ssh")
        running.wait_for("client_request_forwarded_tcpip")
        running.kill()
        until(lambda: outcome(local) == ("fin", b"by stock ssh"), what="the agent's own registration serves again")


def test_forward_to_a_service_with_an_ssh_client_in_between(alice: Ssh) -> None:
    """A refused port behind the endpoint is told as such, not as a prohibition."""
    result = alice.run("-W", f"127.0.0.1:{free_port()}", alice.host)
    assert b"connection refused" in result.stderr


def test_six_tries_to_log_in(alice: Ssh, tmp_path: Path) -> None:
    """A client that offers key after key is told to go after the sixth."""
    keys = [str(tmp_path / f"try-{number}") for number in range(8)]
    for key in keys:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    place = alice.options.index("-i")
    alice.options[place : place + 4] = [word for key in keys for word in ("-i", key)]
    result = alice.run("-v", "-W", "127.0.0.1:1", alice.host)
    assert result.returncode == 255
    assert b"Too many attempts to log in" in result.stderr
    assert result.stderr.count(b"Offering public key") == 7
