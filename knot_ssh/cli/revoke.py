"""`knot revoke …`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from knot_ssh.cli.connection import api, server_options
from knot_ssh.cli.params import OWNER, SPACE
from knot_ssh.cli.tables import show
from knot_ssh.errors import BadInput
from knot_ssh.names import Owner

FILE_LIMIT = 64 * 1024
"""Bytes of a certificate or key file; real ones have a few hundred."""
_SERIAL = re.compile(r"[0-9]{1,19}")
_reason = click.option("--reason", default="", help="Why, for the list and the audit record.")
_user = click.option("--user", type=OWNER, help="Whose it is, if not yours (administrators).")


@click.group()
@server_options
def revoke() -> None:
    """Make certificates, keys, spaces or users void at once, for good."""


@revoke.command()
@click.argument("serial_or_file", metavar="SERIAL|FILE")
@_user
@_reason
@server_options
@click.pass_context
def certificate(context: click.Context, serial_or_file: str, user: Owner | None, reason: str) -> None:
    """Revoke one certificate, by its serial or its file (…-cert.pub)."""
    _order(context, {"kind": "certificate", "serial": _serial(serial_or_file), "user": user}, reason)


@revoke.command()
@click.argument("name", type=SPACE)
@_user
@_reason
@server_options
@click.pass_context
def space(context: click.Context, name: str, user: Owner | None, reason: str) -> None:
    """Revoke a space's key, certificates and unused join tokens. It stays: `knot space token NAME` lets it join anew."""
    _order(context, {"kind": "space", "space": str(name), "user": user}, reason)


@revoke.command("user")
@click.argument("name", type=OWNER)
@_reason
@server_options
@click.pass_context
def revoke_user(context: click.Context, name: Owner, reason: str) -> None:
    """Revoke all that a user can show: certificates, their spaces' keys, join tokens, API tokens (administrators)."""
    _order(context, {"kind": "user", "user": name}, reason)


@revoke.command()
@click.argument("fingerprint_or_file", metavar="FINGERPRINT|FILE")
@_user
@_reason
@server_options
@click.pass_context
def key(context: click.Context, fingerprint_or_file: str, user: Owner | None, reason: str) -> None:
    """Revoke a public key, by its SHA256 fingerprint or its file (….pub): every certificate for it, now and later."""
    shown = fingerprint_or_file
    is_key = shown.startswith(("SHA256:", "ssh-", "ecdsa-"))
    if not is_key and not Path(shown).exists():
        raise BadInput(f"{shown} is neither a fingerprint like SHA256:…, nor a file like id_ed25519.pub")
    line = shown if is_key and not Path(shown).exists() else _public_line(_read(shown), shown)
    _order(context, {"kind": "key", "key": line, "user": user}, reason)


@revoke.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@server_options
@click.pass_context
def list_revocations(context: click.Context, as_json: bool) -> None:
    """List what is revoked now, why, and until when it would have been good."""
    listing = api(context).get("api", "revocations")
    if as_json:
        click.echo(json.dumps(listing, indent=2))
        return
    if not listing["revocations"]:
        click.echo("Nothing is revoked.")
        return
    show(["KIND", "WHAT", "OWNER", "FOR", "UNTIL", "REASON"], map(_row, listing["revocations"]))


def _order(context: click.Context, order: dict[str, Any], reason: str) -> None:
    body = {name: value for name, value in {**order, "reason": reason}.items() if value is not None}
    click.echo(_told(api(context).post("api", "revocations", body=body)))


def _told(voided: dict[str, int]) -> str:
    """What was voided, without what was not."""
    words = {"certificates": "certificate", "keys": "enrolled key", "join_tokens": "join token", "api_tokens": "API token"}
    parts = [_counted(voided[name], word) for name, word in words.items() if voided[name]]
    return f"Revoked {', '.join(parts) or 'nothing that is in use now'}; told {_counted(voided['agents_told'], 'agent')}."


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    holder = _holder(entry["key_id"])
    return entry["kind"], entry["what"], entry["owner"], holder, entry["until"] or "for good", entry["reason"]


def _holder(key_id: str) -> str:
    """Whose a certificate is, in short; `--json` has all of its key id."""
    role, *_owner, space, _id = key_id.split("/") if key_id else ("-", "-", "-")
    return f"{role} {space}" if space != "-" else role


def _serial(text: str) -> str:
    """The serial that this is, or that of the certificate in this file; raises BadInput."""
    if _SERIAL.fullmatch(text):
        return text
    if not Path(text).exists():
        raise BadInput(f"{text} is neither a serial nor a file like id_ed25519-cert.pub")
    import asyncssh
    from asyncssh.public_key import SSHOpenSSHCertificate

    try:
        found = asyncssh.import_certificate(_read(text))
    except (asyncssh.KeyImportError, ValueError):
        found = None
    if not isinstance(found, SSHOpenSSHCertificate):
        raise BadInput(f"{text} is not an OpenSSH certificate; name a serial, or a file like id_ed25519-cert.pub")
    return str(found._serial)


def _public_line(text: str, file: str) -> str:
    """The file's one line; whatever is no public key is not sent anywhere. Raises BadInput."""
    lines = text.strip().splitlines()
    if len(lines) != 1 or "PRIVATE KEY" in text or "-cert-" in lines[0].split(" ", 1)[0]:
        raise BadInput(f"{file} is not a public key; name a fingerprint like SHA256:…, or a file like id_ed25519.pub")
    return lines[0]


def _read(name: str) -> str:
    try:
        with Path(name).open("rb") as file:
            return file.read(FILE_LIMIT).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {name}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
