"""What the command line says about forwards; scripts read it, so the wording stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from knot_ssh.addresses import Address
from knot_ssh.names import BIND_HOST

Entry = dict[str, Any]
"""A forward as the HTTP API answers it."""

WIDE = [
    "PORT", "TARGET", "PERSISTENT", "ORIGIN", "STATE", "MODE", "ADDRESS", "ROUND TRIP", "UP SINCE", "OPEN", "TOTAL", "REFUSED",
    "SENT", "RECEIVED", "COUNTED SINCE", "LAST ERROR",
]  # fmt: skip


def established(source: str | None, entry: Entry) -> str:
    """A forward was made: it works, or will once its space runs."""
    verb = "stored for when the space runs" if entry.get("state") == "stopped" else "established"
    place = f"{source}:" if source else ""
    return f"Port forward {verb}: {place}{arrow(entry)}"


def stopped(source: str | None, local_port: int) -> str:
    return f"Port forward on port {local_port} stopped{in_space(source)}."


def arrow(entry: Entry) -> str:
    """`8080 -> backend-api:3000`"""
    return f"{entry['local_port']} -> {entry['space']}:{entry['remote_port']}"


def in_space(source: str | None) -> str:
    return f" in space '{source}'" if source else ""


def listing(source: str | None, forwards: Sequence[Entry]) -> Iterator[str]:
    """The lines of a list."""
    if not forwards:
        yield f"No active port forwards{in_space(source)}."
        return
    yield f"Active port forwards{in_space(source)}:"
    for entry in forwards:
        yield f"  {_bound(entry)} -> {entry['space']}:{entry['remote_port']}{_remarks(entry)}"


def file_trouble(error: str) -> str:
    """The agent's settings file cannot be followed at the moment."""
    return f"The agent's settings file has a mistake; its forwards stay as they last were: {error}"


def left_alone(source: str | None, forwards: Sequence[Entry]) -> str:
    """Some forwards are out of `apply`'s reach."""
    ports = ", ".join(str(entry["local_port"]) for entry in forwards)
    return f"Left alone{in_space(source)}, for the agent's settings file makes them: {ports}"


def plan(standing: Sequence[Entry], applied: Entry) -> Iterator[str]:
    """What `apply` would do, as a diff by port: `-` for what stands, `+` for what would."""
    before = {entry["local_port"]: entry for entry in standing if entry["state"] != "draining" and entry["origin"] != "file"}
    after = {entry["local_port"]: entry for entry in applied["applied"]}
    gone = {entry["local_port"]: entry for entry in applied["stopped"]}
    for port in sorted({*after, *gone}):
        old, new = gone.get(port) or before.get(port), after.get(port)
        if old and not (new and _planned(old) == _planned(new)):  # one that was not bound is made anew
            yield f"- {_planned(old)}"
        if new:
            yield f"+ {_planned(new)}"


def wide_row(entry: Entry) -> list[str]:
    """What the wide table shows of a forward; nothing is counted while its agent does not run."""
    counted, link = entry["counters"] or {}, entry["link"] or {}
    size = {name: _size(counted.get(name)) for name in ("sent", "received")}
    number = {name: str(counted.get(name, "-")) for name in ("open", "total", "refused")}
    return [
        _bound(entry),
        f"{entry['space']}:{entry['remote_port']}",
        "yes" if entry["persistent"] else "no",
        entry["origin"],
        entry["state"],
        entry["mode"] or "-",
        entry["address"] or "-",
        f"{link['round_trip'] * 1000:.1f} ms" if link.get("round_trip") else "-",
        str(link.get("up_since") or "-"),
        number["open"],
        number["total"],
        number["refused"],
        size["sent"],
        size["received"],
        str(counted.get("since", "-")),
        counted.get("last_error") or entry["reason"] or "-",
    ]


def _bound(entry: Entry) -> str:
    """The local port, after its address where that is not the usual one."""
    bound = Address(entry["bind"], entry["local_port"])
    return str(bound.port) if bound.host == BIND_HOST else str(bound)


def _planned(entry: Entry) -> str:
    return arrow(entry) + (" (persistent)" if entry["persistent"] else "")


def _remarks(entry: Entry) -> str:
    """What stands behind a forward in the list, in parentheses."""
    remarks = ["file"] if entry["origin"] == "file" else []
    if entry["persistent"]:
        remarks.append("persistent")
    if entry["mode"]:
        remarks.append(entry["mode"])
    if entry["state"] == "draining" and entry["counters"]:
        remarks.append(f"draining, {entry['counters']['open']} open")
    elif entry["state"] != "listening":
        remarks.append(entry["state"])
    text = ", ".join(remarks)
    if entry["reason"] and entry["reason"] != entry["state"]:
        text = f"{text}; {entry['reason']}" if text else entry["reason"]
    return f" ({text})" if text else ""


def _size(count: int | None) -> str:
    from rich.filesize import decimal

    return "-" if count is None else decimal(count)
