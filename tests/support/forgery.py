"""Client certificates that the server would not make: by `ssh-keygen`, with the CA keys in its data folder."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knot_keys.authority import HOST_CA_FILE, USER_CA_FILE
from tests.support.system import AgentOf, System

RIGHT_ID = "person/alice/eu/-/-"


@dataclass(frozen=True, slots=True)
class Forge:
    """Where keys are made, and whose CAs sign them."""

    system: System
    folder: Path

    @property
    def cas(self) -> Path:
        """The folder of the server's CA keys."""
        return self.system.folder / "server"

    def key(self, name: str = "id") -> Path:
        """A new key, certified by nobody."""
        key = self.folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key)], check=True)
        return key

    def copied(self, key: Path, certificate: Path | None = None) -> Path:
        """Somebody else's key as one's own."""
        copy = self.folder / "id"
        shutil.copy(key, copy)
        if certificate:
            shutil.copy(certificate, f"{copy}-cert.pub")
        return copy

    def certified(self, key: Path, ca: Path, *words: str) -> Path:
        """Sign the key's public half with these words of ssh-keygen(1); the certificate lies beside the key."""
        public = key.with_name(f"{key.name}.pub")
        if not public.exists():
            derived = subprocess.run(["ssh-keygen", "-y", "-f", str(key)], capture_output=True, check=True)
            public.write_bytes(derived.stdout)
        subprocess.run(["ssh-keygen", "-q", "-s", str(ca), "-z", "4711", *words, str(public)], check=True)
        return key


Made = Callable[[Forge], Path]
"""Makes a key, with a certificate beside it or not."""


def user_ca(forge: Forge) -> Path:
    """The CA that certifies people and agents."""
    return forge.cas / USER_CA_FILE


def host_ca(forge: Forge) -> Path:
    """The CA that certifies endpoints and the hub."""
    return forge.cas / HOST_CA_FILE


def own_ca(forge: Forge) -> Path:
    """A CA of one's own."""
    return forge.key("own_ca")


def plain_key(forge: Forge) -> Path:
    """No certificate at all."""
    return forge.key()


def user_ca_key(forge: Forge) -> Path:
    """The CA's key as one's own."""
    return forge.copied(user_ca(forge))


def signed(
    *,
    principals: str = "alice@eu",
    key_id: str = RIGHT_ID,
    valid: str = "-1m:+10m",
    options: tuple[str, ...] = ("clear", "permit-port-forwarding"),
    ca: Made = user_ca,
    key: Made = plain_key,
    kind: tuple[str, ...] = (),
) -> Made:
    """A certificate of the kind that the server makes for people, but for what is named."""

    def make(forge: Forge) -> Path:
        words = [*kind, "-I", key_id, "-V", valid, *(("-n", principals) if principals else ())]
        words += [word for option in options for word in ("-O", option)]
        return forge.certified(key(forge), ca(forge), *words)

    return make


def host_certificate_of(agent: AgentOf) -> Made:
    """An endpoint's host key and its certificate."""
    return lambda forge: forge.copied(agent.folder / "host_key", agent.folder / "host_key-cert.pub")


def copied_from(agent: AgentOf) -> Made:
    """An agent's key and client certificate."""
    return lambda forge: forge.copied(*agent.identity())
