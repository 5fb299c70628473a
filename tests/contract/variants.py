"""Every way to make a forward: our two data planes with each other, and each with OpenSSH and paramiko at the other end."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support import knot_forward, paramiko_forward
from tests.support.configured import ConfiguredAgent
from tests.support.doors import Doors, Ports
from tests.support.openssh import RUNNER, Sshd, ssh_forwarding
from tests.support.ports import free_ports
from tests.support.system import AgentOf, Running, System

OWNER = "contract"
REKEY_BYTES = 3_000_000
"""So little that a transfer of 9 MB lives through one key exchange at least. (They come late: what the windows allow is on
its way already.)"""
AES_GCM, CHACHA, AES_CTR = "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"
EVERY_CIPHER = [AES_GCM, CHACHA, AES_CTR]

Ciphers = Callable[[], list[str]]
"""Gives the cipher agreed upon in each key exchange so far."""
Opened = tuple[Ports, Ciphers | None]
"""The local ports of forwards, one to each door; and the ciphers, where the program tells them."""
Opening = contextlib.AbstractContextManager[Opened]


@dataclass(frozen=True, slots=True)
class Tells:
    """Which broken ends this way of forwarding passes on as resets. Where it cannot, they look like ordinary ends."""

    client_reset: bool = True
    service_reset: bool = True
    refusal: bool = True


EVERYTHING = Tells()
OPENSSH_CLIENT = Tells(client_reset=False, service_reset=False, refusal=False)
"""OpenSSH has one thing to do when reading from a socket fails, an end of stream or a reset: it sends CHANNEL_EOF
(channels.c, channel_handle_rfd). And it has one way to end a socket, close(2), whether its channel has ended, was closed
without an end, or was refused (nchan.c)."""
OPENSSH_SERVER = Tells(client_reset=False, service_reset=False)
"""The same program from the other side; but a refusal is passed on by us."""


class Lab:
    """What the variants share: the services, and agents that are started when first asked for."""

    def __init__(self, system: System, doors: Doors, new_folder: Callable[[str], Path]) -> None:
        self.system = system
        self.doors = doors
        self.new_folder = new_folder
        self._agents: dict[str, AgentOf] = {}

    def agent(self, plane: str, ciphers: list[str], name: str) -> AgentOf:
        """The agent of this name; started with this data plane and these ciphers if it has not been yet."""
        if name not in self._agents:
            settings = {"data_plane": plane, "rekey_bytes": REKEY_BYTES, "ciphers": ciphers}
            agent = ConfiguredAgent(self.system, name, OWNER, settings, self.new_folder(name))
            agent.start()
            self._agents[name] = agent
        return self._agents[name]

    def target(self, plane: str) -> AgentOf:
        """The target agent of this data plane. It takes every cipher: the source chooses."""
        return self.agent(plane, EVERY_CIPHER, f"target-{plane}")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to make a forward; `open` gives a context in which it stands."""

    name: str
    open: Callable[[Lab], Opening]
    cipher: str
    tells: Tells = EVERYTHING
    tells_ciphers: bool = True

    def __str__(self) -> str:
        return self.name


@contextlib.contextmanager
def between_agents(lab: Lab, source_plane: str, target_plane: str, cipher: str) -> Iterator[Opened]:
    """Two agents of these data planes. They do not tell which cipher they have agreed upon."""
    source = lab.agent(source_plane, [cipher], f"source-{source_plane}-{_short(cipher)}")
    target = lab.target(target_plane)
    source_io = partial(lab.system.api(OWNER).post, "space-io", source.id, "port")
    ports = Ports(*free_ports(len(lab.doors.addresses)))
    for local, remote in zip(ports, lab.doors.ports, strict=True):
        source_io("forward", body={"local_port": local, "space": target.name, "remote_port": remote})
    yield ports, None
    for local in ports:
        source_io("stop", body={"local_port": local})


@contextlib.contextmanager
def openssh_client(lab: Lab, plane: str, cipher: str) -> Iterator[Opened]:
    """OpenSSH's ssh to the endpoint of an agent."""
    target = lab.target(plane)
    key = lab.system.certificate(OWNER, lab.new_folder("ssh"))
    options = ["-c", cipher, "-o", f"RekeyLimit={REKEY_BYTES}"]
    alias = f"{target.name}.{OWNER}.eu.knot"
    with ssh_forwarding(lab.system, key, alias, target.endpoint()[1], lab.doors.addresses, options) as (ssh, ports):
        yield Ports(*ports), lambda: _ciphers_in(ssh)


@contextlib.contextmanager
def paramiko_client(lab: Lab, plane: str, cipher: str) -> Iterator[Opened]:
    """paramiko to the endpoint of an agent."""
    endpoint = lab.target(plane).endpoint()[1]
    key = lab.system.certificate(OWNER, lab.new_folder("paramiko"))
    what = {"endpoint": endpoint, "key": str(key), "cipher": cipher, "rekey_bytes": REKEY_BYTES}
    with _program(lab, paramiko_forward.__file__, key.with_name("paramiko.log"), what) as (running, ports):
        yield ports, lambda: [json.loads(line)["keys"] for line in running.lines() if line.startswith('{"keys"')]


@contextlib.contextmanager
def openssh_server(lab: Lab, plane: str, cipher: str) -> Iterator[Opened]:
    """Our data path to OpenSSH's sshd."""
    sshd = Sshd(lab.new_folder("sshd"))
    with sshd.serving(lab.system, f"Ciphers {cipher}", f"RekeyLimit {REKEY_BYTES}") as (running, port):
        what = {
            "server": port, "login": RUNNER, "key": str(sshd.client_key), "host_ca": sshd.host_ca, "names": sshd.names,
            "plane": plane, "rekey_bytes": REKEY_BYTES,
        }  # fmt: skip
        with _program(lab, knot_forward.__file__, sshd.folder / "forward.log", what) as (_, ports):
            yield ports, lambda: _ciphers_in(running)


@contextlib.contextmanager
def _program(lab: Lab, file: str, log: Path, what: dict[str, object]) -> Iterator[tuple[Running, Ports]]:
    """Run a forwarder of ours until the context is left."""
    what["destinations"] = lab.doors.addresses
    running = Running([sys.executable, file, json.dumps(what)], log, lab.system.environment({}))
    try:
        yield running, Ports(*json.loads(running.wait_for('"ports"'))["ports"])
    finally:
        running.kill()


def _ciphers_in(running: Running) -> list[str]:
    """The ciphers in the debugging log of OpenSSH, one for each key exchange."""
    found = (re.search(r"kex: server->client cipher: (\S+)", line) for line in running.lines())
    return [match[1] for match in found if match]


def _short(cipher: str) -> str:
    return cipher.partition("@")[0]


def _agents(source: str, target: str, cipher: str) -> Variant:
    opener = partial(between_agents, source_plane=source, target_plane=target, cipher=cipher)
    return Variant(f"{source}-{target}-{_short(cipher)}", opener, cipher, tells_ciphers=False)


def _with(program: str, opener: Callable[..., Opening], plane: str, cipher: str, tells: Tells = EVERYTHING) -> Variant:
    return Variant(f"{program}-{plane}-{_short(cipher)}", partial(opener, plane=plane, cipher=cipher), cipher, tells)


VARIANTS = [
    *(_agents("fast", "fast", cipher) for cipher in EVERY_CIPHER),
    *(_agents("fast", "stock", cipher) for cipher in (AES_GCM, CHACHA)),
    *(_agents("stock", "fast", cipher) for cipher in (AES_GCM, CHACHA)),
    *(_with("ssh", openssh_client, "fast", cipher, OPENSSH_CLIENT) for cipher in EVERY_CIPHER),
    _with("ssh", openssh_client, "stock", AES_GCM, OPENSSH_CLIENT),
    *(_with("paramiko", paramiko_client, "fast", cipher) for cipher in (AES_GCM, AES_CTR)),
    *(_with("sshd", openssh_server, "fast", cipher, OPENSSH_SERVER) for cipher in EVERY_CIPHER),
    _with("sshd", openssh_server, "stock", AES_GCM, OPENSSH_SERVER),
]
