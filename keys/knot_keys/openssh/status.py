"""What stock ssh has been given, read from the files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from knot_keys.certificates import expires_at, read_certificate, starts_at
from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.openssh.places import Places
from knot_keys.openssh.state import State, local_time, read_state
from knot_ssh.errors import KnotError


def report(places: Places, now: float) -> dict[str, Any]:
    """Everything as JSON takes it, times in seconds since 1970; raises NotSetUp, or KnotError for a damaged file."""
    state = read_state(places)
    certificate = read_certificate(_text(places.certificate))
    start, end = int(starts_at(certificate)), int(expires_at(certificate))
    return {
        "server": state.server,
        "hub": state.hub,
        "host_ca": fingerprint(parse_public_key(state.host_cas[0])),
        "host_cas": [fingerprint(parse_public_key(ca)) for ca in state.host_cas],
        "identity": str(state.key_file(places)),
        "fingerprint": fingerprint(certificate.key),
        "principals": list(certificate.principals),
        "valid_after": start,
        "valid_before": end,
        "valid": start <= now < end,
        "krl": str(places.krl) if places.krl.exists() else None,
        "spaces": _spaces(state),
    }


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    until = local_time(found["valid_before"]) + ("" if found["valid"] else " (not valid now)")
    rows = [
        ("server", found["server"]),
        ("hub", found["hub"]),
        *(("host CA", ca) for ca in found["host_cas"]),
        ("key", f"{found['identity']} {found['fingerprint']}"),
        ("principals", ", ".join(found["principals"])),
        ("valid from", local_time(found["valid_after"])),
        ("valid until", until),
        ("revoked", found["krl"] or "no list"),
        *(("space", f"{space['name']}.knot, {space['full_name']}") for space in found["spaces"]),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _spaces(state: State) -> list[dict[str, str]]:
    return [{"name": name.partition(".")[0], "full_name": name, "id": space_id} for name, space_id in state.spaces.items()]


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise KnotError(f"cannot read {path}: {reason}; run `knot ssh refresh`") from None
