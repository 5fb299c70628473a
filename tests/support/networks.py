"""A network of namespaces on this machine whose cables can be pulled, parted from each other and made slow.

    bridge ── server            every namespace has an `eth0` with an address of its own on one bridge,
       ├───── near              and a loopback of its own; `parted` ones reach everybody but each other
       └───── far

Nothing of it touches the machine's own network: the bridge lies in a namespace, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNET = 0x40000000
"""See setns(2)."""
SUBNET = "10.213.0"
PREFIX = "knot-test"
NAMED = re.compile(rf"{PREFIX}-(\d+)-\d+-\w+")
"""The namespaces of a run hold the process id of its pytest."""
BRIDGE = "br0"
PORT = "eth0"
BURST = "32kb"
LATENCY = "200ms"
"""How long a packet may wait in front of a slow cable before it is dropped."""

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()


def reason_without_networks() -> str | None:
    """Why no namespaces can be made here; None where they can."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    if not shutil.which("ip") or not shutil.which("tc"):
        return "iproute2 is not installed"
    try:
        with network("only"):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the kernel makes no network namespaces, veth pairs and bridges: {_complaint(error)}"


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace, with its address on the network."""

    name: str
    address: str

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread there: sockets made and processes started meanwhile belong to the place for good."""
        with _open("/proc/thread-self/ns/net") as before, _open(f"/run/netns/{self.name}") as here:
            _enter(here)
            try:
                yield
            finally:
                _enter(before)


def inside(place: Place | None) -> contextlib.AbstractContextManager[None]:
    """The same; without a place the thread stays where it is."""
    return place.inside() if place else contextlib.nullcontext()


class Network:
    """Made by `network`. A change has been made when its method returns; who is concerned learns of it from silence."""

    def __init__(self, tag: str, names: tuple[str, ...]) -> None:
        self._hub = f"{tag}-bridge"
        self._places = {name: Place(f"{tag}-{name}", f"{SUBNET}.{number}") for number, name in enumerate(names, 1)}
        self._parted: set[str] = set()

    def __getitem__(self, name: str) -> Place:
        return self._places[name]

    def unplug(self, name: str) -> None:
        """Pull the cable behind the socket in the wall: the place still has a carrier, and no answer."""
        self._port(name, "nomaster")

    def plug(self, name: str) -> None:
        """Put it back."""
        self._port(name, "master", BRIDGE)
        self._isolate(name)

    def part(self, *names: str) -> None:
        """Let these reach everybody else, but none of each other."""
        self._parted.update(names)
        for name in names:
            self._isolate(name)

    def join(self, *names: str) -> None:
        """Let these reach each other again."""
        self._parted.difference_update(names)
        for name in names:
            self._isolate(name)

    def slow_down(self, name: str, rate: str) -> None:
        """Let the place send and receive no more than this, such as `8mbit`."""
        shape = ("root", "tbf", "rate", rate, "burst", BURST, "latency", LATENCY)
        _run("tc", "-n", self[name].name, "qdisc", "replace", "dev", PORT, *shape)
        _run("tc", "-n", self._hub, "qdisc", "replace", "dev", name, *shape)

    def speed_up(self, name: str) -> None:
        """Undo that."""
        _run("tc", "-n", self[name].name, "qdisc", "del", "dev", PORT, "root")
        _run("tc", "-n", self._hub, "qdisc", "del", "dev", name, "root")

    def build(self) -> None:
        _run("ip", "netns", "add", self._hub)
        _run("ip", "-n", self._hub, "link", "add", BRIDGE, "type", "bridge", "forward_delay", "0")
        _run("ip", "-n", self._hub, "link", "set", BRIDGE, "up")
        for name, place in self._places.items():
            _run("ip", "netns", "add", place.name)
            _run("ip", "-n", place.name, "link", "add", PORT, "type", "veth", "peer", "name", name, "netns", self._hub)
            self._port(name, "master", BRIDGE, "up")
            _run("ip", "-n", place.name, "addr", "add", f"{place.address}/24", "dev", PORT)
            for device in ("lo", PORT):
                _run("ip", "-n", place.name, "link", "set", device, "up")

    def tear_down(self) -> None:
        for name in (*(place.name for place in self._places.values()), self._hub):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def _isolate(self, name: str) -> None:
        self._port(name, "type", "bridge_slave", "isolated", "on" if name in self._parted else "off")

    def _port(self, name: str, *words: str) -> None:
        _run("ip", "-n", self._hub, "link", "set", name, *words)


@contextlib.contextmanager
def network(*names: str) -> Iterator[Network]:
    """One with these places; nothing is left of it, nor of those whose pytest was killed."""
    _sweep()
    made = Network(f"{PREFIX}-{os.getpid()}-{next(_numbers)}", names)
    try:
        made.build()
        yield made
    finally:
        made.tear_down()


def _sweep() -> None:
    listing = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    for found in NAMED.finditer(listing):
        if not Path("/proc", found[1]).exists():
            subprocess.run(["ip", "netns", "del", found[0]], check=False, capture_output=True)


@contextlib.contextmanager
def _open(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


def _complaint(error: OSError | subprocess.CalledProcessError) -> str:
    return str(error.stderr).strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
