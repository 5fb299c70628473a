"""A space is renamed: forwards and open connections go on, new ones work, and what is listed has the new name."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knot_keys.certificates import read_certificate
from knot_ssh.errors import BadInput, NameTaken, NotFound
from knot_ssh.ports import PortsOfServer
from tests.faults.sites import NOWHERE
from tests.support.ledger import Ledger, Line, Probes
from tests.support.relay import Relay, relaying
from tests.support.services import answering, ask, free_port, serving
from tests.support.system import AgentOf, Running, System, running_system
from tests.support.waiting import until

PATHS = ["direct", "relay"]
RENAMES = 20


class Scene:
    """A system in which carol's spaces are made, called and renamed."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.api = system.api("carol")
        self._number = 0

    def agent(self, path: str = "direct", *, hub: str = "") -> AgentOf:
        """A new space whose agent runs, and is reached by this path; it reaches the hub at that address, if one is given."""
        self._number += 1
        agent = self.system.space(f"first-{self._number}", "carol", run=False)
        self.options = self.settings(agent, path, hub)
        agent.start(self.token(agent), options=self.options)
        return agent

    def settings(self, agent: AgentOf, path: str, hub: str = "") -> tuple[str, ...]:
        agent.folder.parent.mkdir(exist_ok=True)
        file = agent.folder.with_suffix(".yaml")
        file.write_text("{}" if path == "direct" else f"advertise: [{NOWHERE}]")
        return ("--config", str(file), *(("--server", hub) if hub else ()))

    def token(self, agent: AgentOf) -> str:
        return self.system.knot("space", "token", agent.id, user="carol")

    def rename(self, agent: AgentOf, name: str = "") -> str:
        """Give it another name, by default a new one, as users do; gives the name."""
        self._number += 1
        name = name or f"later-{self._number}"
        before, agent.name = self.name(agent), name
        said = self.system.knot("space", "rename", before, name, user="carol")
        assert said == f"Renamed the space {before} to {name}."
        assert self.name(agent) == name
        return name

    def name(self, agent: AgentOf) -> str:
        return self.names()[agent.id][0]

    def names(self) -> dict[str, tuple[str, str]]:
        """Name and zone of each of carol's spaces, by its id."""
        return {str(space["id"]): (str(space["name"]), str(space["zone"])) for space in self.system.spaces("carol")}

    def forward(self, source: AgentOf, target: str, port: int, *, mode: str = "", **options: bool) -> int:
        """Forward a free port; gives it once its target is reached, by this path if one is given."""
        local = free_port()
        order = {"local_port": local, "space": target, "remote_port": port, **options}
        PortsOfServer(self.api).forward(source.id, order)
        if mode:
            until(lambda: self.forwarded(source, local)["mode"] == mode, what=f"reached by {mode}")
        return local

    def forwarded(self, source: AgentOf, local: int) -> dict[str, Any]:
        """How the forward stands, as the agent itself says."""
        return next(forward for forward in source.forwards() if forward["local_port"] == local)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_system(tmp_path_factory.mktemp("rename")) as system:
        yield Scene(system)


def certified_names(agent: AgentOf) -> list[str]:
    """The principals of its host certificate."""
    return list(read_certificate((agent.folder / "host_key-cert.pub").read_text()).principals)


def flows(lines: list[Line]) -> None:
    """Every stream of these has gone on since now."""
    before = [stream.received for line in lines for stream in line.streams]
    streams = [stream for line in lines for stream in line.streams]
    until(lambda: all(s.received > count for s, count in zip(streams, before, strict=True)), what=f"they go on: {lines}")
    assert all(line.is_live for line in lines)


def new_ones(ledger: Ledger, local: int) -> None:
    """A new connection is served at once, and whole."""
    line = ledger.open(local)
    until(lambda: line.is_served or line.is_over, what="it is served")
    assert line.is_live
    ledger.finish([line])


def all_whole(probes: Probes) -> None:
    assert probes.settled().lines
    assert not probes.lost()


# What goes on


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("which", ["target", "source"])
def test_open_and_new_connections(scene: Scene, path: str, which: str) -> None:
    """Open connections to and from a renamed space go on, and new ones are served before, during and after."""
    source, target = scene.agent(), scene.agent(path)
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode=path)
        lines = [ledger.served(local) for _ in range(4)]
        with ledger.probing(local, every=0.05) as probes:
            scene.rename(target if which == "target" else source)
            new_ones(ledger, local)
            flows(lines)
        all_whole(probes)
        until(lambda: scene.forwarded(source, local)["mode"] == path, what="the same path")
        ledger.finish(lines)


@pytest.mark.parametrize("path", PATHS)
def test_back_and_forth(scene: Scene, path: str) -> None:
    """Twenty renames under open and new connections: none is lost, and each name is listed, and certified, at once."""
    source, target = scene.agent(), scene.agent(path)
    names = [target.name, f"{target.name}-again"]
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode=path)
        line = ledger.served(local)
        with ledger.probing(local, every=0.05) as probes:
            for number in range(1, RENAMES + 1):
                name = names[number % 2]
                scene.api.patch("api", "spaces", target.id, body={"name": name})
                assert certified_names(target) == [target.id, f"{name}.carol.eu.knot"]
                until(lambda name=name: scene.forwarded(source, local)["space"] == name, what="the name is listed")  # type: ignore[misc]
                new_ones(ledger, local)
            assert name == names[0]
        all_whole(probes)
        flows([line])
        ledger.finish([line])


def test_both_at_once(scene: Scene) -> None:
    """Source and target renamed at the same time: relayed streams go on, and the hub's relay knows the new name alone."""
    source, target = scene.agent(), scene.agent("relay")
    old = target.name
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode="relay")
        lines = [ledger.served(local) for _ in range(2)]
        scene.rename(target)
        scene.rename(source)
        flows(lines)
        new_ones(ledger, local)
        ledger.finish(lines)
    with pytest.raises(NotFound):
        scene.forward(source, old, 1)
    assert scene.forward(source, target.name, 1)


# What is said


def test_listed_under_the_new_name(scene: Scene) -> None:
    """In the space and from elsewhere, for passing and stored forwards, without a restart; and in the space list."""
    source, target = scene.agent(), scene.agent()
    passing = scene.forward(source, target.name, 1)
    stored = scene.forward(source, target.name, 2, persistent=True)
    name = scene.rename(target)

    def listed() -> set[str]:
        return {forward["space"] for forward in source.forwards()}

    until(lambda: listed() == {name}, what="the new name is listed")
    from_elsewhere = scene.system.knot("port", "list", source.name, user="carol")
    assert f"{passing} -> {name}:1" in from_elsewhere
    assert f"{stored} -> {name}:2 (persistent" in from_elsewhere
    assert f'"{name}"' in (source.folder / "memory.json").read_text()
    source.stop()
    assert f"{stored} -> {name}:2" in scene.system.knot("port", "list", source.name, user="carol")


def test_answer(scene: Scene) -> None:
    """PATCH answers the space as it is listed; by name and by id; with the name that it has already nothing changes."""
    agent = scene.agent()
    for reference, name in ((agent.name, "patched"), (agent.id, "patched-again"), (agent.id, "patched-again")):
        answer = scene.api.patch("api", "spaces", reference, body={"name": name})
        listed = [space | {"last_seen": answer["last_seen"]} for space in scene.system.spaces("carol")]
        assert answer in listed  # but for when it was seen, which may change meanwhile
        assert (answer["id"], answer["name"], answer["running"]) == (agent.id, name, True)


def test_refusals(scene: Scene) -> None:
    """A name that is taken, no name, no such space, and another owner's: refused, and nothing has changed."""
    agent, other = scene.agent(), scene.agent()
    before = scene.names()
    with pytest.raises(NameTaken):
        scene.api.patch("api", "spaces", agent.id, body={"name": other.name})
    for name in ("No Name", "join", other.id, "", 1, None):
        with pytest.raises(BadInput):
            scene.api.patch("api", "spaces", agent.id, body={"name": name})
    for body in ({}, {"zone": None}, {"name": "x", "zone": "No Zone"}, {"name": "x", "owner": "mallory"}):
        with pytest.raises(BadInput):
            scene.api.patch("api", "spaces", agent.id, body=body)
    with pytest.raises(NotFound):
        scene.api.patch("api", "spaces", "absent", body={"name": "x"})
    with pytest.raises(NotFound):
        scene.system.api("mallory").patch("api", "spaces", agent.id, body={"name": "x"})
    assert scene.names() == before
    said = scene.system.knot("space", "rename", agent.name, other.name, user="carol", code=1)
    assert f"you have a space {other.name!r} already" in said


# Who is away


@pytest.mark.parametrize("path", PATHS)
def test_target_that_does_not_run(scene: Scene, path: str) -> None:
    """A target renamed while its agent does not run is reached when it does, and is certified under the new name."""
    source, target = scene.agent(), scene.agent(path)
    options = scene.options
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode=path)
        target.stop()
        name = scene.rename(target)
        target.start(options=options)
        ledger.finish([ledger.served(local)])
        until(lambda: f"{name}.carol.eu.knot" in certified_names(target), what="it is certified under the new name")
        assert scene.forwarded(source, local)["space"] == name


@pytest.mark.parametrize("path", PATHS)
def test_source_that_does_not_run(scene: Scene, path: str) -> None:
    """A source that does not run while its target, and itself, are renamed restores its forward and reaches the target."""
    source = scene.agent()
    target = scene.agent(path)
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode=path, persistent=True)
        source.stop()
        name = scene.rename(target)
        scene.rename(source)
        source.start()
        ledger.finish([ledger.served(local)])
        assert scene.forwarded(source, local)["space"] == name


@pytest.mark.parametrize("path", ["relay"])
def test_both_restart_afterwards(scene: Scene, path: str) -> None:
    """After a rename agents and server restart, and all is as it was."""
    source, target = scene.agent(), scene.agent(path)
    options = scene.options
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode=path, persistent=True)
        name = scene.rename(target)
        target.stop()
        source.stop()
        scene.system.server.stop()  # type: ignore[union-attr]
        scene.system.start()
        target.start(options=options)
        source.start()
        ledger.finish([ledger.served(local)])
        assert scene.forwarded(source, local)["space"] == name
        assert certified_names(target) == [target.id, f"{name}.carol.eu.knot"]


# Who is cut off from the server


class Way:
    """A way to the hub that can be cut."""

    def __init__(self, relay: Relay, hub: int) -> None:
        self._relay = relay
        self._hub = hub
        self.address = f"127.0.0.1:{relay.port}"

    def cut(self) -> None:
        self._relay.lead_to(1)
        self._relay.cut("reset")

    def mend(self) -> None:
        self._relay.lead_to(self._hub)


@pytest.fixture
def way(scene: Scene) -> Iterator[Way]:
    hub = int(scene.system.hub.rpartition(":")[2])
    with relaying(hub) as relay:
        yield Way(relay, hub)


def test_source_that_is_cut_off(scene: Scene, way: Way) -> None:
    """A source that knows the old name alone reaches the renamed target on a new link, too, and learns the name later."""
    source = scene.agent(hub=way.address)
    target, listen = scene.agent(), f"127.0.0.1:{free_port()}"
    target.stop()
    target.start(listen=listen)
    old = target.name
    with Ledger() as ledger:
        local = scene.forward(source, old, ledger.service().port, mode="direct")
        line = ledger.served(local)
        way.cut()
        until(lambda: not source.is_running(), what="the server knows")
        name = scene.rename(target)
        assert certified_names(target) == [target.id, f"{name}.carol.eu.knot"]
        flows([line])
        new_ones(ledger, local)
        ledger.finish([line])
        target.stop()
        target.start(listen=listen)
        ledger.finish([ledger.served(local)])
        assert scene.forwarded(source, local)["space"] == old
        way.mend()
        until(lambda: scene.forwarded(source, local)["space"] == name, what="the new name is listed")
        new_ones(ledger, local)


def test_source_that_restarts_cut_off(scene: Scene, way: Way) -> None:
    """A source that starts without the server, and remembers the old name alone, reaches the renamed target all the same."""
    source = scene.agent(hub=way.address)
    options = scene.options
    target = scene.agent()
    old = target.name
    with Ledger() as ledger:
        local = scene.forward(source, old, ledger.service().port, mode="direct", persistent=True)
        way.cut()
        until(lambda: not source.is_running(), what="the server knows")
        name = scene.rename(target)
        source.stop()
        source.start_without_waiting(options=options)
        line = ledger.served(local)
        assert scene.forwarded(source, local)["space"] == old
        way.mend()
        until(lambda: scene.forwarded(source, local)["space"] == name, what="the new name is listed")
        flows([line])
        ledger.finish([line])


def test_target_that_is_cut_off(scene: Scene, way: Way) -> None:
    """A target that is renamed while it is cut off is reached on a new link, with its old certificate; it takes the name
    over when it is back."""
    source = scene.agent()
    target = scene.agent(hub=way.address)
    old = target.name
    with Ledger() as ledger:
        local = scene.forward(source, old, ledger.service().port, mode="direct", persistent=True)
        way.cut()
        until(lambda: not target.is_running(), what="the server knows")
        name = scene.rename(target)
        new_ones(ledger, local)
        source.stop()
        source.start()
        ledger.finish([ledger.served(local)])
        assert certified_names(target) == [target.id, f"{old}.carol.eu.knot"]
        until(lambda: scene.forwarded(source, local)["space"] == name, what="the new name is listed")
        line = ledger.served(local)
        way.mend()
        until(lambda: certified_names(target) == [target.id, f"{name}.carol.eu.knot"], what="it has taken the name over")
        flows([line])
        new_ones(ledger, local)
        ledger.finish([line])


def test_relayed_target_that_is_cut_off(scene: Scene, way: Way) -> None:
    """A target that is reached by relay, and renamed while it is cut off, is relayed to under its new name when it is back."""
    source, target = scene.agent(), scene.agent("relay", hub=way.address)
    with Ledger() as ledger:
        local = scene.forward(source, target.name, ledger.service().port, mode="relay")
        way.cut()
        until(lambda: not target.is_running(), what="the server knows")
        name = scene.rename(target)
        way.mend()
        until(target.is_running, what="it is back")
        ledger.finish([ledger.served(local)])
        assert scene.forwarded(source, local)["space"] == name
        again = scene.forward(source, name, ledger.service().port, mode="relay")
        new_ones(ledger, again)


# Names that were another's


def test_old_name_is_held_back(scene: Scene) -> None:
    """A name that was given up is not given out to another space while a certificate for it is good; its space may have it
    back, and once that is deleted it is free."""
    agent, other = scene.agent(), scene.agent()
    old = agent.name
    scene.rename(agent)
    said = [scene.system.knot("space", "create", old, "--zone", "eu", user="carol", code=1)]
    said.append(scene.system.knot("space", "rename", other.name, old, user="carol", code=1))
    for sentence in said:
        assert f"the name {old!r} is held back until 20" in sentence
    scene.rename(agent, old)
    scene.rename(agent)
    scene.system.knot("space", "delete", agent.name, user="carol")
    scene.rename(other, old)
    assert other.is_running()


def test_deleted_name_is_free(scene: Scene) -> None:
    """A space of the name of a deleted one can be made at once, as ever, and does not inherit forwards."""
    source, target = scene.agent(), scene.agent()
    local = scene.forward(source, target.name, 1, persistent=True)
    name = scene.rename(target)
    scene.system.knot("space", "delete", name, user="carol")
    assert scene.system.space(name, "carol").id != target.id
    source.stop()
    source.start()
    until(lambda: scene.forwarded(source, local)["state"] == "failed", what="the target is gone")
    assert scene.forwarded(source, local)["space"] == name


# Stock clients


class Ssh:
    """Stock ssh with carol's certificate, through the hub."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        key = scene.system.certificate("carol", folder)
        hub = scene.system.hub.rpartition(":")[2]
        (folder / "known_hosts").write_text(f"@cert-authority * {scene.api.get('api', 'ca')['host_ca']}\n")
        common = {
            "User": "knot",
            "IdentityFile": key,
            "CertificateFile": f"{key}-cert.pub",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
            "UserKnownHostsFile": folder / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "ExitOnForwardFailure": "yes",
            "RekeyLimit": "1M",
        }
        blocks: dict[str, dict[str, object]] = {
            "hub": {"HostName": "127.0.0.1", "Port": hub, "HostKeyAlias": "hub.knot"},
            "*.knot": {"ProxyJump": "hub"},
            "*": common,
        }
        lines = [
            f"Host {name}\n" + "".join(f" {key} {value}\n" for key, value in block.items()) for name, block in blocks.items()
        ]
        (folder / "config").write_text("".join(lines))
        self._folder = folder
        self._system = scene.system

    def command(self, *words: str) -> list[str]:
        return ["ssh", "-F", str(self._folder / "config"), *words]

    def says(self, name: str, port: int) -> str:
        """What the space of this full name answers on a port; what ssh complains of, if it does not."""
        done = subprocess.run(self.command("-W", f"localhost:{port}", name), capture_output=True, timeout=30, check=False)
        return (done.stdout or done.stderr).decode()

    @contextlib.contextmanager
    def forwarding(self, name: str, port: int) -> Iterator[int]:
        local = free_port()
        command = self.command("-v", "-N", "-L", f"127.0.0.1:{local}:localhost:{port}", name)
        running = Running(command, self._folder / "ssh.log", self._system.environment({}))
        try:
            running.wait_for("Local forwarding listening")
            yield local
        finally:
            running.kill()


@pytest.mark.skipif(not shutil.which("ssh"), reason="OpenSSH's ssh is not installed")
def test_stock_ssh(scene: Scene, tmp_path: Path) -> None:
    """ssh -J through the hub reaches the new name at once, which the host certificate carries, and the old one no more; what
    is open goes on across exchanges of keys."""
    target, ssh = scene.agent(), Ssh(scene, tmp_path)
    old = f"{target.name}.carol.eu.knot"
    with Ledger() as ledger, serving(answering(b"here")) as port:
        assert ssh.says(old, port) == "here"
        with ssh.forwarding(old, ledger.service().port) as local:
            line = ledger.served(local, rate=4e6)
            for _ in range(3):
                name = f"{scene.rename(target)}.carol.eu.knot"
                assert ssh.says(name, port) == "here"
            assert "no space of yours" in ssh.says(old, port)
            before = line.down.received
            until(lambda: line.down.received > before + 3_000_000, what="keys were exchanged")
            ledger.finish([line])


def test_registration_of_stock_ssh(scene: Scene, tmp_path: Path) -> None:
    """What `ssh -R` has registered under the old name is relayed to under the new one."""
    source, target = scene.agent(), scene.agent("relay")
    identity, _ = target.identity()
    old = f"{target.name}.carol.eu.knot"
    Ssh(scene, tmp_path)
    command = ["ssh", "-v", "-N", "-F", "none", "-p", scene.system.hub.rpartition(":")[2], "-i", str(identity)]
    for option in ("IdentitiesOnly=yes", "CertificateFile=none", "BatchMode=yes", "ExitOnForwardFailure=yes"):
        command += ["-o", option]
    command += ["-o", f"UserKnownHostsFile={tmp_path / 'known_hosts'}", "-o", "HostKeyAlias=hub.knot"]
    address, port = target.endpoint()
    running = Running(
        [*command, f"{target.id}@127.0.0.1", "-R", f"{old}:22:{address}:{port}"], tmp_path / "log", scene.system.environment({})
    )
    scene.system.processes.append(running)
    running.wait_for("remote forward success")
    scene.rename(target)
    with serving(answering(b"by stock ssh")) as service:
        assert ask(scene.forward(source, target.name, service, mode="relay")) == b"by stock ssh"
    running.wait_for("client_request_forwarded_tcpip")
    running.kill()
