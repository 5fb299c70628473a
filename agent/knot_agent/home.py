"""The agent's data folder: its keys, its certificates, and which space it is.

    agent.json               which token was redeemed, and the membership it gave: the one file that switches
    identity-<token>         the enrolled key (and -cert.pub, its client certificate)
    host_key                 the endpoint's key (and -cert.pub, its host certificate)
    host_key.next            the one that takes its place when the hub says so
    agent.sock               the socket for the command line

A key's file is named after the token that it was made for. So a join that was cut short is taken up again with the same
key, which the hub answers in the same way, and a new token makes a new key without touching the old one.
"""

from __future__ import annotations

import os
from pathlib import Path

import asyncssh
from pydantic import BaseModel, ConfigDict, ValidationError

from knot_agent.memory import MEMORY_FILE
from knot_keys.certificates import read_certificate
from knot_keys.connections import Credential
from knot_keys.keyfiles import load_key, load_or_create_key, public_line
from knot_keys.keyring import NEXT
from knot_ssh.errors import Conflict, KnotError
from knot_ssh.files import (
    WRITABLE_BITS,
    check_folder,
    check_private_file,
    lock_folder,
    make_private_folder,
    read_secret,
    replace_file,
)
from knot_ssh.wire import Certificates, Membership

STATE_FILE = "agent.json"
HOST_KEY_FILE = "host_key"
NEXT_HOST_KEY_FILE = HOST_KEY_FILE + NEXT


class _State(BaseModel):
    model_config = ConfigDict(extra="ignore")

    token_id: str
    membership: Membership


class Home:
    """One agent's folder, used by one agent at a time."""

    def __init__(self, folder: Path) -> None:
        """Make or open the folder; raises KnotError when another agent uses it, LooseFile when others can read its secrets."""
        make_private_folder(folder)
        check_folder(folder)
        self.folder = folder
        self._lock = lock_folder(folder, "agent")
        try:
            self._check_files()
            self._state = self._read_state()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another agent use the folder."""
        os.close(self._lock)

    @property
    def membership(self) -> Membership | None:
        """The space this agent has joined; None before it has."""
        return self._state.membership if self._state else None

    @property
    def token_id(self) -> str | None:
        """The id of the token it joined with."""
        return self._state.token_id if self._state else None

    def key_for(self, token_id: str) -> asyncssh.SSHKey:
        """The key to enrol with this token, made when asked for the first time."""
        return load_or_create_key(self._identity(token_id), "knot agent")

    def joined(self, token_id: str, membership: Membership) -> None:
        """Switch to this membership, in one step; keys of earlier ones are removed."""
        if token_id != self.token_id:
            self._certificate_file(HOST_KEY_FILE).unlink(missing_ok=True)
        self._state = _State(token_id=token_id, membership=membership)
        replace_file(self.folder / STATE_FILE, self._state.model_dump_json(indent=2).encode() + b"\n")
        for path in self.folder.glob("identity-*"):
            if not path.name.startswith(self._identity(token_id).name):
                path.unlink()

    def update(self, membership: Membership) -> None:
        """Remember what the hub says of this space now."""
        if self._state and membership != self._state.membership:
            self.joined(self._state.token_id, membership)

    def identity(self) -> Credential:
        """The enrolled key, with its certificate where there is one."""
        return self._credential(self._identity(self._joined().token_id).name)

    def host(self) -> Credential:
        """The endpoint's key, with its certificate where there is one."""
        return self._credential(HOST_KEY_FILE)

    def prepare_host_key(self) -> str:
        """The next host key's public line; the key is made when asked for the first time."""
        return public_line(load_or_create_key(self._next_host_key, "knot agent"))

    def activate_host_key(self, line: str) -> None:
        """Show the prepared key from now on, if this is it; raises Conflict where it is not. Once is as good as twice."""
        path = self.folder / HOST_KEY_FILE
        if path.exists() and public_line(load_key(path)) == line:
            return
        if not self._next_host_key.exists() or self.prepare_host_key() != line:
            raise Conflict("that is not the host key that this agent has prepared; prepare another")
        self._next_host_key.replace(path)
        self._next_host_key.with_name(f"{NEXT_HOST_KEY_FILE}.pub").unlink(missing_ok=True)
        replace_file(path.with_name(f"{HOST_KEY_FILE}.pub"), line.encode() + b"\n")

    @property
    def _next_host_key(self) -> Path:
        return self.folder / NEXT_HOST_KEY_FILE

    def keep(self, certificates: Certificates) -> None:
        """Store new certificates beside their keys."""
        identity = self._identity(self._joined().token_id).name
        replace_file(self._certificate_file(identity), certificates.client.encode() + b"\n")
        replace_file(self._certificate_file(HOST_KEY_FILE), certificates.host.encode() + b"\n")

    def _check_files(self) -> None:
        """What is remembered is no secret, but it says what is revoked."""
        check_private_file(self.folder / MEMORY_FILE, WRITABLE_BITS)
        secret = [self.folder / STATE_FILE, self.folder / HOST_KEY_FILE, *self.folder.glob("identity-*")]
        for path in secret:
            if path.suffix != ".pub":
                check_private_file(path)

    def _joined(self) -> _State:
        if self._state is None:
            raise KnotError("this agent has not joined a space")
        return self._state

    def _credential(self, name: str) -> Credential:
        key = load_or_create_key(self.folder / name, "knot agent")
        try:
            certificate = read_certificate(self._certificate_file(name).read_text("ascii"))
        except (KnotError, OSError, UnicodeDecodeError):
            return Credential(key)  # missing or damaged: the hub gives another
        return Credential(key, certificate if certificate.key == key.convert_to_public() else None)

    def _identity(self, token_id: str) -> Path:
        return self.folder / f"identity-{token_id}"

    def _certificate_file(self, name: str) -> Path:
        return self.folder / f"{name}-cert.pub"

    def _read_state(self) -> _State | None:
        path = self.folder / STATE_FILE
        if not path.exists():
            return None
        try:
            return _State.model_validate_json(read_secret(path))
        except ValidationError:
            raise KnotError(f"{path} is damaged: remove the folder and join again with a new token") from None
