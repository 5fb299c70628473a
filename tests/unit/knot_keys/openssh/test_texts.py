"""What ssh makes of the files that are written for it: asked of ssh itself, with `ssh -G`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from knot_keys.openssh.places import Places
from knot_keys.openssh.texts import HUB_ALIAS, Space, known_hosts, ssh_config, stanzas
from knot_keys.openssh.userconfig import block
from knot_ssh.addresses import Address
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
ALICE = Principal(Owner("alice"), Zone("eu"))
FRONTEND = Space(SpaceName("frontend"), ALICE, SpaceId("11111111-2222-3333-4444-555555555555"))
HUB_SPACE = Space(SpaceName("hub"), ALICE, SpaceId("66666666-2222-3333-4444-555555555555"))
CA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqtFR2s8xnSTaqT1yWNzzsHd6cb3AcrnSkcTvXSfr9V"
SETTLED = {
    "stricthostkeychecking": "true", "globalknownhostsfile": "/dev/null", "verifyhostkeydns": "false",
    "updatehostkeys": "false", "checkhostip": "no", "hostkeyalgorithms": "ssh-ed25519-cert-v01@openssh.com",
    "casignaturealgorithms": "ssh-ed25519", "preferredauthentications": "publickey", "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no", "gssapiauthentication": "no", "hostbasedauthentication": "no",
    "identitiesonly": "yes", "addkeystoagent": "false", "forwardagent": "no", "forwardx11": "no",
    "permitlocalcommand": "no", "exitonforwardfailure": "yes", "serveraliveinterval": "15", "serveralivecountmax": "3",
    "canonicalizehostname": "false", "user": "knot", "pubkeyauthentication": "true", "tunnel": "false",
}  # fmt: skip


SPOILING = " HostKeyAlias x\n ForwardAgent yes\n PasswordAuthentication yes\n PubkeyAuthentication no\n Tunnel yes\n"
"""What somebody may want of all other hosts."""


class Config:
    """The files in a folder, with a program in the place of `knot` that writes down each run."""

    def __init__(self, home: Path) -> None:
        self.places = Places(home)
        self.places.folder.mkdir(parents=True)
        self.runs = home / "runs"
        self.program = home / "program"
        self.says("")
        self.places.spaces.write_text(stanzas([FRONTEND, HUB_SPACE]))
        self.write(has_krl=True)

    def says(self, script: str) -> None:
        """What a run does besides."""
        self.program.write_text(f'#!/bin/sh\necho "$*" >> {self.runs}\n{script}\n')
        self.program.chmod(0o755)

    def write(self, *, has_krl: bool, before: str = "", after: str = "", hub: str = "192.0.2.1:2222") -> None:
        text = ssh_config(self.places, Address.parse(hub), self.places.key, [str(self.program)], has_krl=has_krl)
        self.places.ssh_config.write_text(text)
        self.places.user_config.write_bytes(before.encode() + block(self.places.ssh_config) + after.encode())

    def of(self, host: str) -> dict[str, str]:
        """ssh's settings for this host."""
        command = ["ssh", "-F", str(self.places.user_config), "-T", "-G", host]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        assert result.stderr == ""
        return dict(line.split(" ", 1) for line in result.stdout.splitlines() if " " in line)

    def ran(self) -> list[str]:
        return self.runs.read_text().splitlines() if self.runs.exists() else []


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path)


@pytest.mark.parametrize("name", ["frontend.knot", "frontend.alice.eu.knot"])
def test_space_by_each_of_its_names(config: Config, name: str) -> None:
    """Either name leads to the id, checks the id, and goes through the hub; all that decides about trust is settled."""
    found = config.of(name)
    wanted = {"hostname": str(FRONTEND.space_id), "hostkeyalias": str(FRONTEND.space_id), "proxyjump": HUB_ALIAS, "port": "22"}
    files = {
        "identityfile": str(config.places.key),
        "certificatefile": str(config.places.certificate),
        "userknownhostsfile": str(config.places.known_hosts),
        "revokedhostkeys": str(config.places.krl),
    }
    assert found.items() >= (wanted | files | SETTLED).items()
    assert config.ran() == ["ssh refresh --if-due --quiet"]


@pytest.mark.parametrize("hub", ["192.0.2.1:2222", "[2001:db8::1]:22", "knot.example.com:2200"])
def test_the_hub(config: Config, hub: str) -> None:
    """The hub is dialled where it is, checked as `hub.knot`, and never through itself."""
    config.write(has_krl=True, hub=hub)
    found, address = config.of(HUB_ALIAS), Address.parse(hub)
    wanted = {"hostname": address.host, "port": str(address.port), "hostkeyalias": "hub.knot"}
    assert found.items() >= (wanted | SETTLED).items()
    assert "proxyjump" not in found
    assert config.ran() == []


def test_space_that_is_called_hub(config: Config) -> None:
    """`hub.knot` as something to type is the space of that name, under its id."""
    assert config.of("hub.knot")["hostkeyalias"] == str(HUB_SPACE.space_id)
    assert config.of("hub.knot")["proxyjump"] == HUB_ALIAS


def test_first_value_wins_over_what_follows(config: Config) -> None:
    """What a person has set for all hosts further down changes nothing of this."""
    loose = "Host *\n StrictHostKeyChecking no\n ProxyCommand nc %h %p\n User root\n UserKnownHostsFile /dev/null\n Port 1\n"
    config.write(has_krl=True, after=loose + SPOILING)
    for host in ("frontend.knot", "frontend.alice.eu.knot", HUB_ALIAS, "unknown.knot"):
        found = config.of(host)
        assert found.items() >= SETTLED.items()
        assert "proxycommand" not in found
        assert found["userknownhostsfile"] == str(config.places.known_hosts)
    assert config.of(HUB_ALIAS)["hostkeyalias"] == "hub.knot"


def test_own_block_before_ours(config: Config) -> None:
    """Who moves our lines below a block of their own adds to it, for hub and spaces alike, and loses nothing of ours."""
    config.write(has_krl=True, before="Host *.knot\n    ConnectTimeout 7\nHost knot-hub\n    Port 4022\n")
    hub, space = config.of(HUB_ALIAS), config.of("frontend.knot")
    assert (hub["port"], hub["hostkeyalias"], hub["hostname"]) == ("4022", "hub.knot", "192.0.2.1")
    assert (space["connecttimeout"], space["hostname"]) == ("7", str(FRONTEND.space_id))
    assert all(found.items() >= SETTLED.items() for found in (hub, space))


def test_other_hosts_are_not_touched(config: Config, tmp_path: Path) -> None:
    """For any other host ssh's settings are what they are without us, and nothing runs."""
    bare = tmp_path / "bare"
    bare.write_text("User me\nHost other\n Port 1\n")
    config.write(has_krl=True, after=bare.read_text())
    for host in ("other", "knot", "xknot", "frontend", str(FRONTEND.space_id)):
        said = subprocess.run(["ssh", "-F", str(bare), "-T", "-G", host], capture_output=True, text=True, check=True).stdout
        assert config.of(host) == dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
    assert config.ran() == []


def test_new_space_is_found_at_once(config: Config) -> None:
    """A name without stanza makes ssh ask, once; what is learnt by that serves the same connection."""
    later = Space(SpaceName("later"), ALICE, SpaceId.new())
    config.says(f'[ "$3" = --quiet ] && cat > {config.places.spaces} <<END\n{stanzas([FRONTEND, later])}END')
    assert config.of("later.knot")["hostname"] == str(later.space_id)
    assert config.ran() == ["ssh refresh --if-due --quiet", "ssh refresh --quiet"]


def test_refresh_that_fails_changes_nothing(config: Config) -> None:
    """When `knot` fails, or is gone, ssh goes on with what it has."""
    before = config.of("frontend.knot")
    config.says("exit 1")
    assert config.of("frontend.knot") == before
    config.program.unlink()
    command = ["ssh", "-F", str(config.places.user_config), "-G", "frontend.knot"]
    assert f"hostname {FRONTEND.space_id}\n" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("host", ["$(touch owned).knot", "`touch owned`.knot", "';touch owned;'.knot", '";touch owned;".knot'])
def test_host_names_reach_no_shell(config: Config, tmp_path: Path, host: str) -> None:
    """What is typed for a host stands in no command."""
    command = ["ssh", "-F", str(config.places.user_config), "-G", host]
    subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, timeout=20)
    assert not (tmp_path / "owned").exists()
    assert set(config.ran()) <= {"ssh refresh --if-due --quiet", "ssh refresh --quiet"}


def test_without_revocation_list(config: Config) -> None:
    """Where there is no list none is named: ssh refuses every host when a named one is missing."""
    config.write(has_krl=False)
    assert "revokedhostkeys" not in config.of("frontend.knot")


@pytest.mark.parametrize("name", ["hub.knot", "frontend.alice.eu.knot", str(FRONTEND.space_id)])
def test_one_ca_for_hub_and_spaces(tmp_path: Path, name: str) -> None:
    """`ssh-keygen -F` finds the CA for the hub, for full names and for ids."""
    (tmp_path / "known_hosts").write_text(known_hosts([CA]))
    command = ["ssh-keygen", "-F", name, "-f", str(tmp_path / "known_hosts")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"@cert-authority hub.knot,*.knot,????????-????-????-????-???????????? {CA}" in said


@pytest.mark.parametrize("name", ["example.com", "192.0.2.1", "knot", "11111111-2222-3333-4444-5555555555556"])
def test_the_ca_vouches_for_nothing_else(tmp_path: Path, name: str) -> None:
    """For no other name is it trusted."""
    (tmp_path / "known_hosts").write_text(known_hosts([CA]))
    command = ["ssh-keygen", "-F", name, "-f", str(tmp_path / "known_hosts")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 1


def test_stanzas_are_in_order() -> None:
    """The same spaces make the same file, whatever order they came in."""
    assert stanzas([HUB_SPACE, FRONTEND]) == stanzas([FRONTEND, HUB_SPACE])
    assert stanzas([]) == ""
