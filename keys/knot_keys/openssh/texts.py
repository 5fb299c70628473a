"""The files that ssh reads, as texts: ssh_config(5), and the known_hosts format of sshd(8).

ssh takes the first value that it finds for a setting, so the order of blocks is the order of precedence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from knot_keys.openssh.places import Places
from knot_keys.openssh.quoting import quoted, quoted_command
from knot_ssh.addresses import Address
from knot_ssh.names import HUB_PRINCIPAL, RELAY_PORT, SUFFIX, Principal, SpaceId, SpaceName, qualified_name

HUB_ALIAS = "knot-hub"
"""What ssh jumps through. It lies outside `*.knot`: inside, ssh would jump through it to reach it, without end."""
LOGIN = "knot"
"""The login name; hub and endpoint go by the certificate, and take any but `join` and an id."""
ALIVE_SECONDS = 15
"""Between keepalives; three without an answer end the connection, so that autossh and scripts notice."""
ID_PATTERN = "-".join("?" * length for length in (8, 4, 4, 4, 12))
_SETTINGS = (
    ("IdentitiesOnly", "yes"),
    ("GlobalKnownHostsFile", "/dev/null"),
    ("KnownHostsCommand", "none"),
    ("StrictHostKeyChecking", "yes"),
    ("VerifyHostKeyDNS", "no"),
    ("UpdateHostKeys", "no"),
    ("CheckHostIP", "no"),
    ("CanonicalizeHostname", "no"),
    ("HostKeyAlgorithms", "ssh-ed25519-cert-v01@openssh.com"),
    ("CASignatureAlgorithms", "ssh-ed25519"),
    ("PreferredAuthentications", "publickey"),
    ("PubkeyAuthentication", "yes"),
    ("PasswordAuthentication", "no"),
    ("KbdInteractiveAuthentication", "no"),
    ("GSSAPIAuthentication", "no"),
    ("HostbasedAuthentication", "no"),
    ("AddKeysToAgent", "no"),
    ("ForwardAgent", "no"),
    ("ForwardX11", "no"),
    ("PermitLocalCommand", "no"),
    ("Tunnel", "no"),
    ("ExitOnForwardFailure", "yes"),
    ("ServerAliveInterval", str(ALIVE_SECONDS)),
    ("ServerAliveCountMax", "3"),
)
"""What holds for hub and spaces alike: all known since OpenSSH 8.5. `PubkeyAcceptedAlgorithms` is not among them, since with
certificates alone in it ssh drops the private key, too, and has nothing to sign with."""


@dataclass(frozen=True, slots=True, order=True)
class Space:
    """A space as a stanza needs it."""

    name: SpaceName
    principal: Principal
    space_id: SpaceId

    @property
    def full_name(self) -> str:
        return qualified_name(self.name, self.principal)


def stanzas(spaces: Sequence[Space]) -> str:
    """A stanza for each space. Its id is what the hub is asked for and what the host certificate must name: a name that has
    passed to another space leads to the one that was meant, or nowhere."""
    return "".join(
        f"Host {space.name}.{SUFFIX} {space.full_name}\n    HostName {space.space_id}\n    HostKeyAlias {space.space_id}\n"
        for space in sorted(spaces)
    )


def known_hosts(host_cas: Sequence[str]) -> str:
    """Trust in these CAs for the hub, for spaces by id, and for full names. They are public key lines of ours."""
    return "".join(f"@cert-authority {HUB_PRINCIPAL},*.{SUFFIX},{ID_PATTERN} {host_ca}\n" for host_ca in host_cas)


def ssh_config(places: Places, hub: Address, identity: Path, command: Sequence[str], *, has_krl: bool) -> str:
    """How ssh reaches hub and spaces. `command` runs `knot`; raises BadInput for a path that cannot stand here.

    An Include is read once the lines above it have run their commands; a `Match exec` whose command fails drops its block,
    so nothing else stands in one. No token of the command line goes into a command: a host name can hold anything.
    """
    files = [
        ("IdentityFile", quoted(identity)),
        ("CertificateFile", quoted(places.certificate)),
        ("UserKnownHostsFile", quoted(places.known_hosts)),
        *([("RevokedHostKeys", quoted(places.krl))] if has_krl else []),
    ]
    include = block("Match all", [("Include", quoted(places.spaces))])
    refresh = [*command, "ssh", "refresh"]
    direct = [("ProxyJump", "none"), ("ProxyCommand", "none")]  # either alone leaves room for the other further down
    hub_settings = [("HostName", hub.host), ("Port", str(hub.port)), ("HostKeyAlias", HUB_PRINCIPAL), *direct]
    return (
        "# Written by `knot ssh setup` and `knot ssh refresh`: changes are lost.\n"
        f"Match originalhost *.{SUFFIX} exec {quoted_command([*refresh, '--if-due', '--quiet'])}\n"
        + include
        + f"# A name that has no stanza yet still ends in .{SUFFIX}: it may be that of a new space.\n"
        f"Match host *.{SUFFIX} exec {quoted_command([*refresh, '--quiet'])}\n"
        + include
        + block(f"Host {HUB_ALIAS}", hub_settings)
        + block(f"Host *.{SUFFIX}", [("ProxyJump", HUB_ALIAS), ("Port", str(RELAY_PORT))])
        + block(f"Host *.{SUFFIX} {HUB_ALIAS}", [("User", LOGIN), *files, *_SETTINGS])
    )


def block(head: str, settings: Sequence[tuple[str, str]]) -> str:
    """A Host or Match block."""
    return head + "\n" + "".join(f"    {name} {value}\n" for name, value in settings)
