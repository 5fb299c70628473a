"""An ordinary sshd as a space: what it is for, who is let in, and what they may do there."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from knot_keys.authority import HOST_CA_FILE
from tests.support.machines import why_not
from tests.support.plainssh import set_up, through_the_hub
from tests.support.services import (
    Ends,
    answering,
    connect,
    free_port,
    noise,
    outcome,
    read_all,
    resetting,
    send_all,
    sending,
    serving,
)
from tests.support.sshdsite import Site, Ssh, certified, generate
from tests.support.system import Running
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


@pytest.fixture
def alice(site: Site, tmp_path: Path) -> Ssh:
    """A certificate that the server has issued to alice herself."""
    return Ssh(site, site.system.certificate("alice", tmp_path))


# What it is for


def test_agents_forward_carries_both_ways(site: Site) -> None:
    """A knot agent's forward to the machine goes by relay, and carries hashed data both ways with half-close."""
    data, question = noise(5_000_000), noise(3_000_000, seed=2)
    with serving(sending(data)) as port:
        local = site.forward(port)
        with connect(local) as sock:
            send_all(sock, question)
            how, answer = read_all(sock)
    assert (how, answer[:32], answer[32:]) == ("fin", hashlib.sha256(question).digest(), data)
    [forward] = [entry for entry in site.frontend.forwards() if entry["local_port"] == local]
    assert (forward["mode"], forward["state"]) == ("relay", "listening")


def test_refused_port_is_a_reset(site: Site) -> None:
    """Where nothing listens on the machine, the local connection is reset, and the link stays."""
    local = site.forward(free_port())
    assert outcome(local) == ("reset", b"")
    assert site.db.is_running()


def test_session_that_dies_is_a_reset(site: Site) -> None:
    """When the machine's sshd dies within a transfer the local connection is reset: half a stream never looks whole."""
    with serving(Ends(b"first")) as port:
        local = site.forward(port)
        with connect(local) as sock:
            assert sock.recv(5) == b"first"
            assert site.machine.sshd
            monitors = site.machine.does("pgrep", "-P", str(site.machine.sshd.process.pid)).split()
            sessions = site.machine.does("pgrep", "-u", "knot", "-P", ",".join(monitors)).split()  # and no other machine's
            site.machine.does("kill", "-9", *sessions)
            assert read_all(sock) == ("reset", b"")


def test_service_that_resets(site: Site) -> None:
    """Where the service resets its connection, OpenSSH's sshd sends the same as for a proper end; agents do better."""
    with serving(resetting(b"half")) as port, connect(site.forward(port)) as sock:
        assert sock.recv(4) == b"half"
        sock.sendall(b"x")
        assert read_all(sock) == ("fin", b"")


def test_list_shows_what_serves_it(site: Site) -> None:
    """`knot space list` shows that it runs, and that it is an sshd; --json and the API say so, too, with its host key."""
    listing = site.system.knot("space", "list", user="alice")
    assert any(line.split()[:4] == ["db", "eu", "yes", "(sshd)"] for line in listing.splitlines())
    spaces = {space["name"]: space for space in json.loads(site.system.knot("space", "list", "--json", user="alice"))["spaces"]}
    assert [(spaces[name]["running"], spaces[name]["agentless"]) for name in ("db", "frontend")] == [
        (True, True),
        (True, False),
    ]
    until(lambda: {s["name"]: s["last_seen"] for s in site.system.spaces("alice")}["db"], what="last seen")
    host_key = (site.machine.etc / "ssh/ssh_host_ed25519_key.pub").read_text()
    assert spaces["db"]["host_key"].split() == host_key.split()[:2]


@pytest.mark.parametrize("options", [(), ("--persistent",), ("--persistent", "--force")])
def test_no_forwards_start_from_it(site: Site, options: tuple[str, ...]) -> None:
    """As a source it is refused in a line that does not tell anybody to start it; nothing is stored."""
    with serving(answering(b"")) as port:
        error = site.system.knot("port", "forward", "db", "8080", "frontend", str(port), *options, user="alice", code=1)
    assert error == "knot: the space 'db' has an ordinary sshd and no agent: forwards can lead to it, not start from it"
    assert "No active port forwards" in site.system.knot("port", "list", "db", user="alice")


def test_stock_ssh_reaches_it_directly(alice: Ssh) -> None:
    """A person's certificate opens it on its own port, with the host certificate verified, under its full name."""
    assert alice.reaches()


def test_stock_ssh_through_the_hub(site: Site, tmp_path: Path) -> None:
    """With the settings of `knot ssh setup` stock ssh reaches it by name through the hub, and checks its host certificate."""
    way = through_the_hub(set_up(site.system, tmp_path, "alice"), site.db)
    with serving(answering(b"by name")) as port:
        result = way.run("-W", f"localhost:{port}")
    assert result.stdout == b"by name", result.stderr


def test_plain_host_key_stays_what_it_was(site: Site, tmp_path: Path) -> None:
    """Clients that know the machine by its plain host key are served as before."""
    kept = (site.machine.etc / "ssh/ssh_host_ed25519_key.pub").read_text()
    port = site.machine.port
    assert Ssh(site, site.system.certificate("alice", tmp_path), known_hosts=f"[127.0.0.1]:{port} {kept}").reaches()


# Who is let in


CASES = {
    "good": (["-n", "alice@eu"], True),
    "good among others": (["-n", "alice@us,alice@eu"], True),
    "wrong owner": (["-n", "bob@eu"], False),
    "wrong zone": (["-n", "alice@us"], False),
    "expired": (["-n", "alice@eu", "-V", "-2h:-1h"], False),
    "not yet valid": (["-n", "alice@eu", "-V", "+1h:+2h"], False),
    "no principals": ([], False),
    "the account's name": (["-n", "knot"], False),
    "everybody": (["-n", "*"], False),
}


@pytest.mark.parametrize("case", CASES)
def test_certificates(site: Site, tmp_path: Path, case: str) -> None:
    """Of certificates that our CA has signed, those for this owner and zone are let in, at their time, and no others."""
    options, good = CASES[case]
    assert Ssh(site, certified(site, tmp_path, *options)).reaches() is good


def test_other_cas_and_kinds(site: Site, tmp_path: Path) -> None:
    """No CA of one's own, not the CA of hosts, no host certificate and no plain key opens it."""
    for name in ("own", "hosts", "host", "plain"):
        (tmp_path / name).mkdir()
    own = str(generate(tmp_path / "ca"))
    assert not Ssh(site, certified(site, tmp_path / "own", "-n", "alice@eu", ca=own)).reaches()
    assert not Ssh(site, certified(site, tmp_path / "hosts", "-n", "alice@eu", ca=HOST_CA_FILE)).reaches()
    assert not Ssh(site, certified(site, tmp_path / "host", "-n", "alice@eu", kind="host")).reaches()
    plain = generate(tmp_path / "plain" / "id")
    (site.machine.etc / "ssh/keys_of_knot").write_text(plain.with_suffix(".pub").read_text())
    assert not Ssh(site, plain).reaches()


def test_other_accounts_are_not_opened(site: Site, tmp_path: Path) -> None:
    """Our CA opens no other account, whatever its certificate names; that account's own keys do as before."""
    key = certified(site, tmp_path, "-n", "alice@eu,root")
    root = Ssh(site, key, "root")
    assert not root.reaches()
    (site.machine.etc / "ssh/keys_of_root").write_text(key.with_suffix(".pub").read_text())
    Path(f"{key}-cert.pub").unlink()
    assert root.reaches()
    shown = site.machine.does("sshd", "-T", "-C", "user=root,host=a,addr=127.0.0.1,laddr=127.0.0.1,lport=22")
    for line in ("trustedusercakeys none", "revokedkeys none", "maxsessions 10", "allowtcpforwarding yes"):
        assert line in shown.splitlines()


def test_revoked_certificate(site: Site, tmp_path: Path) -> None:
    """A deleted space's certificate is refused once the KRL line has run; others are let in as before."""
    doomed = site.system.space("doomed")
    identity, certificate = doomed.identity()
    key = tmp_path / "id"
    shutil.copy(identity, key)
    shutil.copy(certificate, f"{key}-cert.pub")
    ssh = Ssh(site, key)
    assert ssh.reaches()
    site.system.knot("space", "delete", "doomed", user="alice")
    assert site.cron(1).returncode == 0
    assert not ssh.reaches()
    (tmp_path / "other").mkdir()
    assert Ssh(site, certified(site, tmp_path / "other", "-n", "alice@eu")).reaches()


def test_nobody_without_a_revocation_list(site: Site, alice: Ssh) -> None:
    """A machine whose KRL is gone lets nobody in under that account, until it is there again."""
    (site.machine.etc / "ssh/knot/krl").unlink()
    assert not alice.reaches()
    assert site.cron(1).returncode == 0
    assert alice.reaches()


# What they may do


@pytest.mark.parametrize(
    ("options", "command"),
    [((), ()), ((), ("id",)), (("-tt",), ()), (("-s",), ("sftp",)), (("-A",), ("id",)), (("-X",), ("id",))],
    ids=["shell", "exec", "pty", "sftp", "agent", "X11"],
)
def test_no_session_of_any_kind(alice: Ssh, options: tuple[str, ...], command: tuple[str, ...]) -> None:
    """Shell, command, terminal, file transfer, agent and X11 are refused with the session they would be in."""
    result = alice.run(*options, command=command)
    assert (result.returncode, result.stdout) == (255, b"")
    assert b"open failed" in result.stderr


def test_no_reverse_forward(alice: Ssh) -> None:
    """`ssh -R` is refused, for TCP and for unix sockets."""
    for what in (f"{free_port()}:127.0.0.1:1", f"{alice.folder / 'r.sock'}:127.0.0.1:1"):
        result = alice.run("-N", "-R", what)
        assert result.returncode == 255
        assert b"remote port forwarding failed" in result.stderr


def test_no_unix_sockets(site: Site, alice: Ssh) -> None:
    """A unix socket of the machine cannot be reached."""
    local = alice.folder / "l.sock"
    command = [alice.command[0], "-v", "-N", "-L", f"{local}:/run/x.sock", *alice.command[1:]]
    running = Running(command, alice.folder / "ssh.log", site.system.environment({}))
    try:
        until(local.exists, what="ssh listens")
        subprocess.run(["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({str(local)!r})"], check=True)
        running.wait_for("open failed")
    finally:
        running.kill()


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "0.0.0.0", "127.1", "127.0.0.2", "10.0.0.1", "::ffff:127.0.0.1", "ip6-localhost"]
)
def test_channels_go_to_loopback_alone(alice: Ssh, host: str) -> None:
    """A channel to anything but 127.0.0.1, ::1 and localhost is refused, and no connection is made."""
    ends = Ends(b"leak")
    with serving(ends) as port:
        result = alice.run("-W", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    assert result.stdout == b""
    assert b"administratively prohibited" in result.stderr
    assert ("fin", b"") not in ends.seen  # as ssh would end it; others on this machine may dial any port
