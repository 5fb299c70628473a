"""Forwards of spaces, from a script.

In a space the calls go through its agent and need no settings; they serve for every space of the same owner and zone.
Elsewhere they go to the server that `knot login` has kept, or that KNOT_SERVER (or KNOT_URL) and KNOT_TOKEN name. The
rule is that of the `knot` command. A space is named by its name or its id. Results are the bodies of the HTTP API.

Every call opens its own connection and closes it, so that threads may call at the same time. Errors are KnotErrors:
BadInput for arguments that cannot be, before anything is sent; NotFound, Conflict and others as the server answers;
Unavailable where nobody does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from pydantic import BaseModel, ValidationError

from knot.bodies import Applied, AppliedForward, ApplyError, Counters, Forward, ForwardEntry, ForwardList, LinkStatus
from knot_ssh.doors import given, open_ports
from knot_ssh.errors import BadInput
from knot_ssh.names import space_reference
from knot_ssh.wire import ApplyRequest, ForwardRequest, StopRequest, first_complaint

__all__ = [
    "Applied",
    "AppliedForward",
    "ApplyError",
    "Counters",
    "Forward",
    "ForwardEntry",
    "ForwardList",
    "LinkStatus",
    "port_apply",
    "port_forward",
    "port_list",
    "port_stop",
]

Model = TypeVar("Model", bound=BaseModel)


def port_forward(
    source: str, local_port: int, target: str, remote_port: int, persistent: bool = False, force: bool = False
) -> Forward:
    """Make `local_port` of `source` be `remote_port` of `target`; the port is bound when this returns.

    The same local port again replaces. `persistent` keeps the forward across restarts of the source's agent, and makes
    it also while that is not running; `force` makes it also while the target is not. Raises NotFound, OtherZone,
    NotRunning or PortTaken, and then nothing has changed.
    """
    values = {
        "local_port": local_port,
        "space": target,
        "remote_port": remote_port,
        "persistent": persistent,
        "force": force,
    }
    name, request = _space(source, "source"), _checked(ForwardRequest, values)
    with open_ports(given()) as ports:
        return cast(Forward, ports.forward(name, request.model_dump(mode="json")))


def port_list(name: str) -> ForwardList:
    """The forwards of a space, ordered by local port; of one that is not running, the persistent ones. Raises NotFound."""
    name = _space(name, "name")
    with open_ports(given()) as ports:
        return cast(ForwardList, ports.list(name))


def port_stop(name: str, local_port: int, *, drain: bool = False) -> Forward:
    """Stop the forward on this port and reset its connections; gives the forward as it was.

    With `drain` open connections go on until they end by themselves: the forward is `draining` until then, and in the
    list. Raises NotFound where there is none.
    """
    name, request = _space(name, "name"), _checked(StopRequest, {"local_port": local_port, "drain": drain})
    with open_ports(given()) as ports:
        return cast(Forward, ports.stop(name, int(request.local_port), drain=request.drain))


def port_apply(source: str, forwards: Sequence[ForwardEntry], *, dry_run: bool = False) -> Applied:
    """Replace all forwards of `source` by these; gives what has changed.

    Forwards that are there already stay as they are, and so do those of the agent's own settings file. Raises BadInput,
    NotFound or OtherZone for a list that can never be, and then nothing has changed; what fails for the moment is in
    `errors`. With `dry_run` nothing changes, and the result is what would.
    """
    if not isinstance(forwards, (list, tuple)):
        raise BadInput("forwards: must be a list of forwards; an empty one stops all")
    name, request = _space(source, "source"), _checked(ApplyRequest, {"forwards": forwards, "dry_run": dry_run})
    with open_ports(given()) as ports:
        entries = [entry.model_dump(mode="json") for entry in request.forwards]
        return cast(Applied, ports.apply(name, entries, dry_run=request.dry_run))


def _space(text: object, what: str) -> str:
    """A space's name or id; raises BadInput."""
    if not isinstance(text, str):
        raise BadInput(f"{what}: must be text, a space's name or id")
    return str(space_reference(text))


def _checked(model: type[Model], values: object) -> Model:
    """The values as a request; raises BadInput naming the first that cannot be."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput(first_complaint(error)) from None
