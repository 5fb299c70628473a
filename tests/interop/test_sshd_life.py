"""The life of a space with an ordinary sshd: restarts, renewals, renames, other keys, and how it ends."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE
from tests.support.machines import why_not
from tests.support.services import (
    answering,
    ask,
    connect,
    free_port,
    outcome,
    read_all,
    serving,
)
from tests.support.sshdsite import CERTIFICATE, Site, certified, joined, restart_server, script_for
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


# How it goes on


def test_server_without_ssh_keygen(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server cannot make a list the hub says so, and the old list stays; the certificate is renewed all the same."""
    krl = site.machine.etc / "ssh/knot/krl"
    before = krl.read_bytes()
    monkeypatch.setenv("PATH", "/nowhere")
    restart_server(site, monkeypatch)
    result = site.cron(1)
    assert result.returncode == 1
    assert "ssh-keygen" in result.stderr.splitlines()[0]
    assert result.stderr.splitlines()[1:] == ["knot: the hub gave no answer to knot-krl; what is there stays"]
    assert krl.read_bytes() == before
    assert site.cron(2).returncode == 0
    restart_server(site)
    assert site.cron(1).returncode == 0


def test_restarts(site: Site) -> None:
    """sshd, the registration and the server may each be started anew: the forward that stands works again."""
    with serving(answering(b"again")) as port:
        local = site.forward(port)
        assert ask(local) == b"again"
        assert site.machine.sshd
        assert site.machine.registration
        site.machine.sshd.stop()
        site.machine.start_sshd()
        until(lambda: ask(local) == b"again", what="after sshd's restart")
        site.machine.registration.kill()
        until(lambda: not site.db.is_running(), what="the hub has noticed")
        error = site.system.knot("port", "forward", "frontend", str(free_port()), "db", str(port), user="alice", code=1)
        assert "is not running" in error
        site.machine.start_registration(site.lines[0])
        until(lambda: ask(local) == b"again", what="after the registration's restart")
        restart_server(site)
        until(lambda: ask(local) == b"again", what="after the server's restart")
    assert site.db.is_running()


def test_waiting_forward_hears_of_it(site: Site) -> None:
    """A forward to a machine that is away waits; a connection that waits, too, is served once it has registered."""
    with serving(answering(b"here")) as port:
        local = site.forward(port)
        assert site.machine.registration
        site.machine.registration.kill()
        until(lambda: {f["local_port"]: f["state"] for f in site.frontend.forwards()}[local] == "waiting", what="waiting")
        with connect(local) as sock:
            site.machine.start_registration(site.lines[0])
            since = time.monotonic()
            assert read_all(sock) == ("fin", b"here")
            assert time.monotonic() - since < 2


def test_renewal(site: Site) -> None:
    """The third line puts a fresh certificate for the same host key in place, which sshd shows from then on."""
    before = (site.machine.etc / CERTIFICATE).read_bytes()
    assert site.cron(2).returncode == 0
    after = (site.machine.etc / CERTIFICATE).read_bytes()
    assert after != before
    lines = site.machine.does("ssh-keygen", "-L", "-f", "/etc/ssh/knot/host-cert.pub").splitlines()
    serial = next(line.split()[1] for line in lines if "Serial:" in line)
    key = site.frontend.folder.with_name("scan")

    def shown() -> bool:
        with contextlib.suppress(OSError):
            key.with_name("known_hosts").unlink()
        command = [*("ssh", "-v", "-F", "none", "-p", str(site.machine.port), "-o", "BatchMode=yes"), "x@127.0.0.1"]
        return f"serial {serial}" in subprocess.run(command, capture_output=True, text=True, check=False).stderr

    until(shown, what="sshd shows the new certificate")


def test_renamed_space(site: Site) -> None:
    """Under another name it goes on at once, for agents; its certificate has the new name when it is renewed."""
    with serving(answering(b"same")) as port:
        local = site.forward(port)
        assert ask(local) == b"same"
        site.system.knot("space", "rename", "db", "database", user="alice")
        try:
            assert ask(local) == b"same"
            assert ask(site.forward(port, "database")) == b"same"
            assert site.cron(2).returncode == 0
            shown = site.machine.does("ssh-keygen", "-L", "-f", "/etc/ssh/knot/host-cert.pub")
            assert "database.alice.eu.knot" in shown
        finally:
            site.system.knot("space", "rename", "database", "db", user="alice")
            assert site.cron(2).returncode == 0


def test_answers_that_are_not_whole(site: Site) -> None:
    """Where the hub gives no answer, the old list and the old certificate stay, and one line says so."""
    config = site.machine.etc / "ssh/knot/ssh_config"
    text, before = config.read_text(), site.machine.files()
    config.write_text(text.replace("Port ", "Port 1 # "))
    for which in (1, 2):
        result = site.cron(which)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("knot: the hub gave no answer to knot-")
    config.write_text(text)
    assert site.machine.files() == before


def test_certificate_for_another_key_is_not_taken(site: Site, tmp_path: Path) -> None:
    """A certificate for another host key, of another CA or for users is not put in place."""
    before = site.machine.files()
    for ca, kind, name in ((HOST_CA_FILE, "host", "a"), (USER_CA_FILE, "host", "b"), (USER_CA_FILE, "", "c")):
        (tmp_path / name).mkdir()
        wrong = certified(site, tmp_path / name, "-n", site.db.id, ca=ca, kind=kind)
        result = site.machine.run("/etc/ssh/knot/refresh", "certificate", f"{wrong}-cert.pub")
        assert (result.returncode, "not for this machine" in result.stderr) == (1, True)
    assert site.machine.files() == before


def test_new_host_key(site: Site, tmp_path: Path) -> None:
    """A machine with a new host key is enrolled by a new script, and reached again; the old key's certificate is void."""
    with joined(site.system, tmp_path / "m", site.frontend, "rekeyed") as rekeyed, serving(answering(b"x")) as port:
        local = rekeyed.forward(port, "rekeyed")
        assert ask(local) == b"x"
        etc = rekeyed.machine.etc
        shutil.copy(etc / CERTIFICATE, tmp_path / "old-cert.pub")
        for name in ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"):
            (etc / "ssh" / name).unlink()
        rekeyed.machine.does("ssh-keygen", "-A")
        result = rekeyed.cron(2)
        assert (result.returncode, "not for this machine" in result.stderr) == (1, True)
        rekeyed.machine.does("sh", stdin=script_for(site.system, "rekeyed"))
        shown = subprocess.run(
            ["ssh-keygen", "-Q", "-f", etc / "ssh/knot/krl", tmp_path / "old-cert.pub"], capture_output=True, check=False
        )
        assert b"REVOKED" in shown.stdout
        until(lambda: ask(local) == b"x", what="under the new host key")


# How it ends


def test_deleted_space_is_cut_off(site: Site, tmp_path: Path) -> None:
    """Deleting the space ends its registration, refuses its key, and has forwards to it say that it is gone."""
    with joined(site.system, tmp_path / "m", site.frontend, "short-lived") as short, serving(answering(b"x")) as port:
        local = short.forward(port, "short-lived")
        assert ask(local) == b"x"
        site.system.knot("space", "delete", "short-lived", user="alice")
        assert short.machine.registration
        assert short.machine.registration.wait(5) == 255
        until(lambda: {f["local_port"]: f["state"] for f in site.frontend.forwards()}[local] == "failed", what="target gone")
        assert outcome(local) == ("reset", b"")
        result = short.cron(1)
        assert (result.returncode, "Permission denied" in result.stderr) == (1, True)
        site.frontend.knot("port", "stop", str(local))


def test_agent_takes_its_place_and_gives_it_back(site: Site, tmp_path: Path) -> None:
    """An agent that joins as the space ends the sshd's registration and voids its certificates; and the other way round."""
    with joined(site.system, tmp_path / "m", site.frontend, "both") as both, serving(answering(b"x")) as port:
        local = both.forward(port, "both")
        assert ask(local) == b"x"
        agent = both.db
        agent.start(site.system.knot("space", "token", "both", user="alice"))
        assert both.machine.registration
        assert both.machine.registration.wait(5) == 255
        assert not {s["name"]: s["agentless"] for s in site.system.spaces("alice")}["both"]
        until(lambda: ask(local) == b"x", what="by the agent")
        assert both.cron(2).returncode == 1
        again = script_for(site.system, "both")
        result = both.machine.run("sh", stdin=again)
        assert (result.returncode, "remove /etc/ssh/knot/key" in result.stderr) == (1, True)
        both.machine.does("rm", "/etc/ssh/knot/key", "/etc/ssh/knot/key.pub")
        both.machine.does("sh", stdin=again)
        assert agent.running
        assert agent.running.wait() == 1
        both.machine.start_registration(both.lines[0])
        until(lambda: ask(local) == b"x", what="by sshd again")


def test_other_subsystems_are_refused(site: Site) -> None:
    """A machine's key may not be an agent; an agent's key gets neither certificate nor list."""
    config = ("-F", "/etc/ssh/knot/ssh_config", "-s", "hub")
    hello = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "agent.hello", "params": {"version": "1", "addresses": []}})
    answer = json.loads(site.machine.first_answer("ssh", *config, "knot-control", line=hello))
    assert answer["error"]["data"]["code"] == "key_refused"
    identity, _ = site.frontend.identity()
    known = site.machine.etc / "ssh/knot/known_hosts"
    for subsystem in ("knot-krl", "knot-host-certificate"):
        port = site.system.hub.rsplit(":", 1)[1]
        command = [
            *("ssh", "-F", "none", "-p", port, "-i", str(identity), "-o", "CertificateFile=none", "-o", "IdentitiesOnly=yes"),
            *("-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlias=hub.knot", "-o", "BatchMode=yes"),
            *("-s", f"{site.frontend.id}@127.0.0.1", subsystem),
        ]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
        assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (1, b"", 1)
