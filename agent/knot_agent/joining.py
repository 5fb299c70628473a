"""Joining: show a token to the hub it names, prove to hold a key, and learn which space this is."""

from __future__ import annotations

import contextlib

import asyncssh

from knot_keys.certificates import UNKNOWN_CA, check_hub
from knot_keys.connections import WrongHost, close, connect
from knot_keys.jointoken import JoinToken
from knot_keys.keyfiles import public_line
from knot_keys.possession import for_joining, prove
from knot_ssh.addresses import Address
from knot_ssh.dataplane.plane import DataPlane
from knot_ssh.errors import JoinRefused
from knot_ssh.rpc import Peer
from knot_ssh.tasks import Tasks
from knot_ssh.wire import JOIN_LOGIN, JOIN_SUBSYSTEM, JoinChallenge, JoinRequest, Membership, Nothing

OLD_TOKEN = ". Where this is our hub, its CA was changed since the token was made: make a new one with `knot space token NAME`"
"""What to do about a hub whose certificate is by a CA that the token does not name."""


async def join(plane: DataPlane, hub: Address, token: JoinToken, key: asyncssh.SSHKey) -> Membership:
    """Enrol the key. Raises JoinRefused (the token is no good), WrongHost (not the token's hub) or Unavailable."""
    try:
        connection = await connect(plane, hub, JOIN_LOGIN, lambda shown: check_hub(shown, token.host_cas), password=str(token))
    except asyncssh.PermissionDenied:
        raise JoinRefused("the hub does not know that join token; make a new one with `knot space token NAME`") from None
    except WrongHost as error:
        raise WrongHost(f"{error}{OLD_TOKEN if str(error).endswith(UNKNOWN_CA) else ''}") from None
    tasks = Tasks()
    try:
        stdin, stdout, _ = await connection.open_session(subsystem=JOIN_SUBSYSTEM, encoding=None)
        peer = Peer(stdout, stdin, {})
        tasks.start(peer.run())
        challenge = await peer.ask("join.challenge", Nothing(), JoinChallenge)
        signature = prove(key, for_joining(challenge.nonce, token.id))
        request = JoinRequest(public_key=public_line(key), signature=signature)
        membership = await peer.ask("join.enrol", request, Membership)
    finally:
        await tasks.cancel()
        with contextlib.suppress(asyncssh.Error, OSError):
            await close(connection)
    if set(map(public_line, token.host_cas)).isdisjoint(membership.host_cas):
        raise JoinRefused("the hub's answer names another CA than the join token")
    return membership
