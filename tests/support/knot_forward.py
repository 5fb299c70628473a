"""Forwards of our own data path over one connection to any SSH server, as a program.

    knot_forward.py '{"server": 22, "login": "alice", "key": "id_alice", "host_ca": "ssh-ed25519 ...", "names": ["..."],
                      "plane": "fast", "rekey_bytes": 3000000, "destinations": [["127.0.0.1", 3000], ["::1", 3001]]}'

It prints JSON, one object a line: {"ports": [...]}, the local port for each destination, once it is ready. `names` are the
principals that the server's host certificate must have. Ended by a signal.
"""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from pathlib import Path

from knot_keys.certificates import check_host, read_certificate
from knot_keys.connections import ClientConnection, Credential, connect
from knot_keys.keyfiles import load_key, parse_public_key
from knot_keys.revocation import NOTHING_REVOKED
from knot_ssh.addresses import Address
from knot_ssh.dataplane import plane as dataplane
from knot_ssh.dataplane.channel import Channel
from knot_ssh.dataplane.channels import Channels
from knot_ssh.dataplane.counters import Tally
from knot_ssh.dataplane.listening import born_to_reset
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.dataplane.windows import Budget

Destination = tuple[str, int]


class Forward:
    """Carries each connection that a socket accepts over the SSH connection to one destination."""

    def __init__(self, plane: DataPlane, listener: socket.socket, connection: ClientConnection, to: Destination) -> None:
        self.plane = plane
        self.tally = Tally()
        self._connection = connection
        self._to = to
        self._channels = Channels()
        self._listening = plane.listen(born_to_reset(listener), self._accepted)

    def close(self) -> None:
        self._listening.close()

    def _accepted(self, sock: socket.socket) -> None:
        channel = Channel(self, sock)
        self._channels.add(channel)
        channel.ask(self._connection, *self._to)

    @property
    def budget(self) -> Budget:
        return self.plane.budget

    def channel_unanswered(self, channel: Channel, sock: socket.socket) -> None:
        sock.close()

    def channel_opened(self, channel: Channel) -> None:
        pass

    def channel_refused(self, channel: Channel, reason: str) -> None:
        self.tally.refuse(reason)

    def channel_gone(self, channel: Channel) -> None:
        self._channels.remove(channel)


async def run(
    plane: DataPlane, server: int, login: str, client: Credential, host_ca: str, names: list[str], to: list[Destination]
) -> None:
    """Connect, listen, and serve until the connection is lost."""
    cas = [parse_public_key(host_ca)]
    connection = await connect(
        plane,
        Address("127.0.0.1", server),
        login,
        lambda shown: check_host(shown, cas, names, NOTHING_REVOKED),
        credential=client,
    )
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=256) for _ in to]
    forwards = [Forward(plane, listener, connection, place) for listener, place in zip(listeners, to, strict=True)]
    print(json.dumps({"ports": [listener.getsockname()[1] for listener in listeners]}), flush=True)
    await connection.wait_gone()
    for forward in forwards:
        forward.close()


def main() -> None:
    wanted = json.loads(sys.argv[1])
    client = Credential(load_key(Path(wanted["key"])), read_certificate(Path(f"{wanted['key']}-cert.pub").read_text()))
    connecting = partial(
        run, server=wanted["server"], login=wanted["login"], client=client,
        host_ca=wanted["host_ca"], names=wanted["names"], to=wanted["destinations"],
    )  # fmt: skip
    dataplane.run(connecting, kind=wanted["plane"], ssh_options={"rekey_bytes": wanted["rekey_bytes"]})
    sys.exit("the connection was lost")


if __name__ == "__main__":
    main()
