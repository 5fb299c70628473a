"""The script of `knot space sshd`, run for real: what it leaves on a machine, and when it changes nothing."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.machines import machine, why_not
from tests.support.sshdsite import CERTIFICATE, KNOT_CONF, Site, generate, script_for
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "-")


def test_script_holds_no_token_after_it_was_run(site: Site) -> None:
    """Nothing on the machine keeps the join token, nor the folder that it lay in."""
    token = site.script.partition("TOKEN='")[2].partition("'")[0]
    assert token.startswith("knotjoin_")
    assert not [name for name, data in site.machine.files().items() if token.encode() in data]
    assert not list((site.machine.etc / "ssh/knot").glob(".*"))


def test_private_files_are_private(site: Site) -> None:
    """The registration key is root's alone; what sshd reads as another user can be read and not written."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in (site.machine.etc / "ssh/knot").iterdir()}
    assert {name for name, mode in modes.items() if mode & 0o077 == 0} == {"key", "key.pub", "refresh"}
    assert not [name for name, mode in modes.items() if mode & 0o022]


def test_script_run_twice_changes_nothing(site: Site) -> None:
    """The same script again, its token used up, leaves every file as it is, but for the list of what is revoked."""
    before = site.machine.files()
    again = site.machine.does("sh", stdin=site.script)
    after = site.machine.files()
    assert again.splitlines()[1:] == site.lines
    assert {name for name in after if after[name] != before.get(name)} <= {"ssh/knot/krl"}
    assert after.keys() == before.keys()


def test_script_run_again_later(site: Site) -> None:
    """A machine whose certificate is not of today is certified anew by its own key: the token in the script is not needed."""
    certificate = site.machine.etc / CERTIFICATE
    before = certificate.read_bytes()
    old = time.time() - 2 * 24 * 3600
    os.utime(certificate, (old, old))
    token = site.script.partition("TOKEN='")[2].partition("'")[0]
    site.machine.does("sh", stdin=site.script.replace(token, "knotjoin_expired"))
    assert certificate.read_bytes() != before


def test_script_that_was_cut_off_does_nothing(site: Site) -> None:
    """Any part of the script but the whole changes nothing."""
    before = site.machine.files()
    lines = site.script.splitlines(keepends=True)
    for count in range(len(lines) // 2, len(lines), 40):
        site.machine.run("sh", stdin="".join(lines[:count]))
        assert site.machine.files() == before


def test_used_token_opens_no_other_machine(site: Site, tmp_path: Path) -> None:
    """The script on a second machine is refused in one line, and leaves that machine's sshd as it was."""
    with machine(site.system, tmp_path) as other:
        config = {name: data for name, data in other.files().items() if "sshd_config" in name}
        result = other.run("sh", stdin=site.script)
        assert result.returncode == 1
        assert "knot: that join token was used already; make a new one with `knot space sshd db`" in result.stderr
        assert not list((other.etc / "ssh/knot").glob(".*"))
        assert {name: data for name, data in other.files().items() if "sshd_config" in name} == config
        assert site.db.is_running()


def test_hub_that_is_not_ours_is_told_nothing(site: Site, tmp_path: Path) -> None:
    """A hub that the CA in the script has not certified gets no token; the right script then still has a good one."""
    site.system.space("cautious", run=False)
    script = script_for(site.system, "cautious")
    ca = script.partition("HOST_CA='")[2].partition("'")[0]
    other_ca = " ".join(generate(tmp_path / "ca").with_suffix(".pub").read_text().split()[:2])
    (tmp_path / "machine").mkdir()
    with machine(site.system, tmp_path / "machine") as other:
        result = other.run("sh", stdin=script.replace(ca, other_ca))
        assert result.returncode == 1
        assert "Host key verification failed" in result.stderr
        assert not (other.etc / KNOT_CONF).exists()
        other.does("sh", stdin=script)


def test_token_is_in_no_process_list(site: Site, tmp_path: Path) -> None:
    """While the script runs the token is in no program's arguments or environment."""
    site.system.space("discreet", run=False)
    script = script_for(site.system, "discreet")
    token = script.partition("TOKEN='")[2].partition("'")[0].encode()
    with machine(site.system, tmp_path) as other:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            run = pool.submit(other.run, "sh", stdin=script)
            seen: set[bytes] = set()
            while not run.done():
                seen |= process_texts()
        assert run.result().returncode == 0, run.result().stderr
    assert any(b"knot-join-sshd" in text for text in seen)
    assert not [text for text in seen if token in text]


def process_texts() -> set[bytes]:
    """The arguments and the environment of every process that there is at this moment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                found.add((folder / name).read_bytes())
    return found


def test_sshd_config_without_include_is_left_alone(site: Site, tmp_path: Path) -> None:
    """Where sshd does not read the folder, or only behind a Match, the script says so and changes nothing."""
    with machine(site.system, tmp_path) as other:
        file = other.etc / "ssh/sshd_config"
        text = file.read_text()
        without = text.replace("Include", "#Include")
        for wrong in (without, without + "\nMatch User nobody\nInclude /etc/ssh/sshd_config.d/*.conf\n"):
            file.write_text(wrong)
            before = other.files()
            result = other.run("sh", stdin=site.script)
            assert result.returncode == 1
            assert "does not include /etc/ssh/sshd_config.d/*.conf" in result.stderr
            assert other.files() == before


def test_sshd_that_is_overruled_is_put_back(site: Site, tmp_path: Path) -> None:
    """Where another of sshd's files says otherwise, the script names the line, puts sshd back as it was, and has not joined."""
    space = site.system.space("overruled", run=False)
    with machine(site.system, tmp_path) as other:
        (other.etc / "ssh/sshd_config.d/00-earlier.conf").write_text("Match User knot\n  PermitTTY yes\nMatch all\n")
        result = other.run("sh", stdin=script_for(site.system, "overruled"))
        assert result.returncode == 1
        assert "knot: another file of sshd's overrules: PermitTTY no" in result.stderr
        assert not (other.etc / KNOT_CONF).exists()
    assert not {entry["id"]: entry["agentless"] for entry in site.system.spaces("alice")}[space.id]


def test_lines_for_other_addresses(site: Site, tmp_path: Path) -> None:
    """What another file grants to those who come from some network is not granted to the account."""
    site.system.space("networked", run=False)
    with machine(site.system, tmp_path) as other:
        theirs = "Match Address 10.0.0.0/8\n  PermitTTY yes\n  PermitOpen any\n  AllowTcpForwarding yes\nMatch all\n"
        (other.etc / "ssh/sshd_config.d/50-site.conf").write_text(theirs)
        other.does("sh", stdin=script_for(site.system, "networked"))
        shown = [
            other.does("sshd", "-T", "-C", f"user={user},host=x,addr=10.0.0.1,laddr=10.0.0.2,lport=22").splitlines()
            for user in ("knot", "nobody")
        ]
    for line in ("permittty no", "allowtcpforwarding local", "permitopen 127.0.0.1:* [::1]:* localhost:*"):
        assert [line in lines for lines in shown] == [True, False]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_units(site: Site, tmp_path: Path) -> None:
    """systemd has nothing to say against the units that the script writes where it runs."""
    with machine(site.system, tmp_path) as other:
        functions = site.script.rpartition("\nmain\n")[0]
        work = 'HOST_KEY=- && mkdir -p "$UNITS" "$ETC" && write_refresh | put "$ETC/refresh" 0700 && write_units'
        other.does("sh", stdin=f"{functions}\n{work}\n")
        units = ["knot-sshd.service", "knot-sshd-refresh@krl.service", "knot-sshd-krl.timer", "knot-sshd-certificate.timer"]
        result = other.run("systemd-analyze", "verify", "--man=no", *(f"/etc/systemd/system/{name}" for name in units))
        assert (result.returncode, [line for line in result.stderr.splitlines() if "knot" in line]) == (0, [])


def test_sshd_that_lets_in_named_users_alone(site: Site, tmp_path: Path) -> None:
    """Where sshd has a list of who may log in, the script shows it, and says who has to be on it."""
    site.system.space("listed", run=False)
    with machine(site.system, tmp_path) as other:
        (other.etc / "ssh/sshd_config.d/site.conf").write_text("AllowUsers root\n")
        result = other.run("sh", stdin=script_for(site.system, "listed"))
        assert result.returncode == 0
        said = result.stderr.splitlines()
        assert said[-2:] == ["allowusers root", "knot: see that these lines of sshd let the account knot in"]


def test_sshd_that_does_not_run(site: Site, tmp_path: Path) -> None:
    """Where sshd is not there to be told, no process that has its number by now is; the script says what is left to do."""
    site.system.space("stopped", run=False)
    with machine(site.system, tmp_path) as other:
        other.stop()
        bystander = subprocess.Popen(["sleep", "infinity"])
        try:
            (other.etc / "sshd.pid").write_text(f"{bystander.pid}\n")
            result = other.run("sh", stdin=script_for(site.system, "stopped"))
            assert (result.returncode, "sshd does not run" in result.stderr) == (0, True)
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


def test_account_of_somebody_is_left_alone(site: Site, tmp_path: Path) -> None:
    """A machine on which somebody is called knot is not taken over."""
    with machine(site.system, tmp_path) as other:
        for theirs in (("--shell", "/bin/sh"), ("--home-dir", "/var/lib/knot", "--shell", "/usr/sbin/nologin")):
            other.does("useradd", "--no-create-home", *theirs, "knot")
            result = other.run("sh", stdin=site.script)
            assert (result.returncode, "an account knot already, of something else" in result.stderr) == (1, True)
            assert not (other.etc / "ssh/knot").exists()
            other.does("userdel", "knot")


def test_first_run_says_nothing_but_what_is_left_to_do(site: Site, tmp_path: Path) -> None:
    """Where all goes well there is nothing on stderr, of ours or of sshd."""
    site.system.space("silent", run=False)
    with machine(site.system, tmp_path) as other:
        result = other.run("sh", stdin=script_for(site.system, "silent"))
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGKILL])
def test_script_that_is_ended(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    """Ended while it joins it leaves neither token nor lines for sshd, but when killed; run again it does all that was left."""
    name = f"ended-{number.name.lower()}"
    site.system.space(name, run=False)
    script = script_for(site.system, name)
    with machine(site.system, tmp_path) as other, socket.create_server(("127.0.0.1", 0)) as silent:
        port = site.system.hub.rpartition(":")[2]
        stuck = script.replace(f"HUB_PORT='{port}'", f"HUB_PORT='{silent.getsockname()[1]}'")
        (tmp_path / "script").write_text(stuck)
        running = other.start("sh", str(tmp_path / "script"))
        knot, drop_in = other.etc / "ssh/knot", other.etc / KNOT_CONF
        until(lambda: list(knot.glob(".join.*/certificate")), what="it joins")
        os.killpg(running.process.pid, number)
        running.wait()
        assert (bool(list(knot.glob(".join.*"))), drop_in.exists()) == ((number == signal.SIGKILL,) * 2)
        other.does("sh", stdin=script)
        assert drop_in.exists()
        assert not [*knot.glob(".join.*"), *knot.glob("before")]
        assert "Received SIGHUP" in (other.folder / "sshd.log").read_text()


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is not installed")
def test_script_run_twice_at_once(site: Site, tmp_path: Path) -> None:
    """While one run waits for the hub another stops in one line, and takes nothing from it."""
    with machine(site.system, tmp_path) as other, socket.create_server(("127.0.0.1", 0)) as silent:
        port = site.system.hub.rpartition(":")[2]
        (tmp_path / "script").write_text(site.script.replace(f"HUB_PORT='{port}'", f"HUB_PORT='{silent.getsockname()[1]}'"))
        first = other.start("sh", str(tmp_path / "script"))
        until(lambda: list((other.etc / "ssh/knot").glob(".join.*/certificate")), what="it joins")
        before = other.files()
        second = other.run("sh", stdin=site.script)
        assert (second.returncode, "another run of this script is under way" in second.stderr) == (1, True)
        assert other.files() == before
        os.killpg(first.process.pid, signal.SIGTERM)
        first.wait()


def test_host_certificate_of_somebody_else(site: Site, tmp_path: Path) -> None:
    """Where sshd shows a certificate for the host key already, of another CA, the script says so and changes nothing."""
    with machine(site.system, tmp_path) as other:
        certify = ("ssh-keygen", "-q", "-s", str(generate(tmp_path / "ca")), "-I", "theirs", "-h", "-n", "theirs")
        other.does(*certify, "/etc/ssh/ssh_host_ed25519_key.pub")
        file = other.etc / "ssh/sshd_config"
        file.write_text(file.read_text() + "\nHostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub\n")
        before = other.files()
        result = other.run("sh", stdin=site.script)
        assert result.returncode == 1
        assert result.stderr.startswith("knot: sshd shows /etc/ssh/ssh_host_ed25519_key-cert.pub for its ed25519 host key")
        assert other.files() == before


@pytest.mark.parametrize(("version", "enough"), [("7.9p1", False), ("8.0p1", False), ("8.3p1", False), ("8.4p1", True)])
def test_old_openssh(site: Site, tmp_path: Path, version: str, enough: bool) -> None:
    """An OpenSSH that cannot do it is named before anything is changed."""
    for program, body in {"ssh": f"echo OpenSSH_{version} >&2", "sshd": "exit 1"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / program).chmod(0o755)
    result = site.machine.run("env", f"PATH={tmp_path}:{os.environ['PATH']}", "sh", stdin=site.script)
    assert result.returncode == 1
    assert ("this takes OpenSSH 8.4 or later" in result.stderr) is not enough


def test_sshd_that_systemd_listens_for(site: Site, tmp_path: Path) -> None:
    """Where a socket unit starts sshd for each who comes, there is nobody to be told, and nothing to be said."""
    systemctl = tmp_path / "systemctl"
    systemctl.write_text('#!/bin/sh\ncase "$*" in "is-active --quiet ssh.socket sshd.socket") ;; *) exit 3 ;; esac\n')
    systemctl.chmod(0o755)
    result = site.machine.run("env", f"PATH={tmp_path}:{os.environ['PATH']}", "/etc/ssh/knot/refresh", "reload")
    assert (result.returncode, result.stderr) == (0, "")
