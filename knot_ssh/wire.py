"""The messages between command line, server and agents: the bodies of the HTTP API and the parameters of JSON-RPC.

One definition for every door, so that the same request means the same wherever it comes in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)

from knot_ssh.addresses import Address
from knot_ssh.errors import SENTENCE_LIMIT, BadInput
from knot_ssh.names import BIND_HOST, LABEL, PORT_MAX, QUOTED_LIMIT, Owner, Port, SpaceId, SpaceName, Zone, space_reference
from knot_ssh.words import printable


def _checked_reference(text: str) -> str:
    try:
        return str(space_reference(text))
    except BadInput as error:
        raise ValueError(str(error)) from None


FORWARDS_MAX = 1024
"""Forwards that one space may have by command, and as many again by its agent's file: a list of all fits into one message
between hub and agent (`rpc.LINE_LIMIT`)."""
TARGETS_MAX = 4096
"""Spaces of which one agent may want to hear."""
COUNT_MAX = 1 << 20
"""Forwards, links or open connections of one agent that a report may speak of: more than its system has descriptors."""
INCREMENT_MAX = 1 << 40
"""Bytes or connections that one report may add; what is more is left to the next. A TiB is two minutes at 70 Gbit/s."""
JOIN_LOGIN = "join"
"""The login name at the hub for who holds a join token; who holds an enrolled key logs in as the space's id."""
JOIN_SUBSYSTEM = "knot-join"
CONTROL_SUBSYSTEM = "knot-control"
"""The hub's subsystems (RFC 4254 section 6.5), for agents: both speak JSON-RPC."""
JOIN_SSHD_SUBSYSTEM = "knot-join-sshd"
HOST_CERTIFICATE_SUBSYSTEM = "knot-host-certificate"
KRL_SUBSYSTEM = "knot-krl"
TRUST_SUBSYSTEM = "knot-trust"
"""The same for machines with an ordinary sshd: a request on stdin if it takes one, the answer on stdout, an exit status."""

SpaceReference = Annotated[
    str,
    Field(max_length=63, description="A space's name or id.", json_schema_extra={"pattern": f"^(?!join$){LABEL}$"}),
    AfterValidator(_checked_reference),
]


def _checked_address(text: str) -> str:
    try:
        return str(Address.parse(text))
    except BadInput as error:
        raise ValueError(str(error)) from None


HostPort = Annotated[str, Field(max_length=300), AfterValidator(_checked_address)]


def _short_together(addresses: list[str]) -> list[str]:
    if sum(map(len, addresses)) > ADDRESSES_LENGTH:
        raise ValueError(f"must be shorter: at most {ADDRESSES_LENGTH} characters for all addresses together")
    return addresses


ADDRESSES_MAX = 16
ADDRESSES_LENGTH = 1000
"""Addresses of one agent, and characters of all: they go with each forward to it, and all forwards of a space have to fit into
one message (`rpc.LINE_LIMIT`)."""
Addresses = Annotated[list[HostPort], Field(max_length=ADDRESSES_MAX), AfterValidator(_short_together)]


class Message(BaseModel):
    """An unknown field or a value of another type is an error, not a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Message):
    """For requests without parameters."""


def _fit_for_people(text: str) -> str:
    return printable(text, SENTENCE_LIMIT)


Sentence = Annotated[str, AfterValidator(_fit_for_people)]
"""Text from the other side, as a terminal may show it."""


# Forwards


class ForwardRequest(Message):
    """A forward to make on a source space: its local port is to be that port of the target space."""

    local_port: Port
    space: SpaceReference = Field(description="The target space: its name or id.")
    remote_port: Port
    persistent: StrictBool = Field(default=False, description="Keep the forward across restarts of the source's agent.")
    force: StrictBool = Field(default=False, description="Make it even when the target is not running.")


class StopRequest(Message):
    """The forward to stop."""

    local_port: Port
    drain: StrictBool = Field(
        default=False, description="Let open connections end by themselves; until then the forward is `draining`."
    )


class ApplyRequest(Message):
    """All forwards that a source space is to have, but for those of its agent's file. Whatever else it has is stopped."""

    forwards: list[ForwardRequest] = Field(max_length=FORWARDS_MAX)
    dry_run: StrictBool = Field(default=False, description="Answer what would happen, and change nothing.")


class AppliedForward(Message):
    """A forward as `apply` answers it."""

    local_port: Port
    space: SpaceName = Field(description="The target's name.")
    remote_port: Port
    persistent: StrictBool


class ApplyError(Message):
    """Why a forward could not be made; what stood on that port before still stands."""

    local_port: Port
    error: Sentence
    code: Sentence = Field(description="Names the kind of error, for scripts.")


class Applied(Message):
    """What has changed, each list ordered by local port. Forwards that were there already are in none of them."""

    applied: list[AppliedForward] = Field(description="New, or changed in place.")
    stopped: list[AppliedForward] = Field(description="Not wanted any more.")
    errors: list[ApplyError]


class Counters(Message):
    """What has passed since `since`. `sent` is towards the target, `received` comes from it."""

    sent: int = Field(description="Bytes.")
    received: int = Field(description="Bytes.")
    open: int = Field(description="Connections that are open now.")
    total: int = Field(description="Connections that were opened.")
    refused: int = Field(description="Connections that could not be carried.")
    last_error: Sentence | None = Field(default=None, description="Why the last of those could not.")
    since: AwareDatetime


class LinkStatus(Counters):
    """The agent's connection to the target's agent, which all forwards to that target share."""

    up_since: AwareDatetime | None = Field(default=None, description="Since when the target is reached in this way.")
    round_trip: float | None = Field(default=None, description="Seconds to the target's agent and back, at best.")


Origin = Literal["command", "file"]
"""Where a forward comes from: the command line, the API or a script; or the agent's own settings file."""


class ForwardStatus(Message):
    """A forward as `list` shows it."""

    local_port: Port
    bind: Sentence = Field(default=BIND_HOST, description="The address that the local port is bound at.")
    origin: Origin = Field(default="command", description="`file`: the agent's settings file, which alone can change it.")
    space: SpaceReference = Field(description="The target's name.")
    space_id: SpaceId | None = Field(description="The target's id; null while no server has told it.")
    remote_port: Port
    persistent: StrictBool
    mode: Literal["direct", "relay"] | None = Field(default=None, description="How the target is reached at this moment.")
    state: Literal["starting", "listening", "waiting", "failed", "draining", "stopped"]
    reason: Sentence | None = Field(default=None, description="Why it waits or failed.")
    address: Sentence | None = Field(default=None, description="The address in use: the target's, or the hub's for `relay`.")
    counters: Counters | None = Field(default=None, description="Of this forward, while its agent runs.")
    link: LinkStatus | None = Field(default=None, description="Of the link below it, while there is one.")


class ForwardList(Message):
    """The forwards of one space, ordered by local port."""

    forwards: list[ForwardStatus]
    file_error: Sentence | None = Field(
        default=None,
        description="What is wrong with the agent's settings file, and where: its forwards stay as they last were.",
    )


class OnSpace(Message):
    """A request about the forwards of one space; without `source` it is the space of the agent that asks."""

    source: SpaceReference | None = None


class ForwardCall(OnSpace):
    """Make a forward on the source space."""

    forward: ForwardRequest


class StopCall(OnSpace, StopRequest):
    """Stop a forward of the source space."""


class ApplyCall(OnSpace):
    """Replace the forwards of the source space."""

    request: ApplyRequest


# Between hub and agent


class Target(Message):
    """What a source agent must know of a target space to reach it."""

    id: SpaceId
    name: SpaceName
    owner: Owner
    zone: Zone
    addresses: list[str] = Field(description="host:port, where the agent says its endpoint can be dialled.")
    running: StrictBool
    gone: StrictBool = Field(default=False, description="The space was deleted; only its name is remembered.")
    moved: StrictBool = Field(default=False, description="It is gone from this zone, and lies in another one now.")


class ForwardOrder(Message):
    """The hub's word to the source agent: hold this forward."""

    local_port: Port
    target: Target
    remote_port: Port
    persistent: StrictBool
    made: str = Field(default="", max_length=64, description="Which making of a stored forward this is; a new one each time.")


class ForwardStarted(Message):
    """The agent's answer once the port is bound; `replaced` is what stood on that port before."""

    status: ForwardStatus
    replaced: ForwardOrder | None = None


class WantedForward(Message):
    """One of the forwards that are to be."""

    order: ForwardOrder
    force: StrictBool


class ApplyOrder(Message):
    """The hub's word to the source agent: hold these forwards, and no others but those of your file."""

    forwards: list[WantedForward]
    dry_run: StrictBool


class ReplacedForward(Message):
    """A forward that now stands, and what stood on its port before."""

    order: ForwardOrder
    replaced: ForwardOrder | None = None


class ApplyAnswer(Message):
    """What the agent has made of it, each list ordered by local port."""

    applied: list[ReplacedForward]
    stopped: list[ForwardOrder]
    errors: list[ApplyError]


class TargetQuestion(Message):
    """Asks the hub for a target by its id, or by its name among the spaces of the agent's owner and zone."""

    space: SpaceReference


class JoinChallenge(Message):
    """The hub's first word to who has shown a join token: sign this."""

    nonce: str


class JoinRequest(Message):
    """The key to enrol, with proof that the sender holds its private half."""

    public_key: str = Field(max_length=2048, description="OpenSSH public key line, ssh-ed25519.")
    signature: str = Field(max_length=512, description="Base64 of the key's signature over the challenge.")


CAS_MAX = 4
"""CAs of one kind that may be trusted at a time; a rotation has two."""
Cas = Annotated[list[str], Field(min_length=1, max_length=CAS_MAX)]


class Membership(Message):
    """What an agent is, told at joining: its space, and the CAs it trusts (OpenSSH public key lines).

    Of each kind the first CA is the one that signs: who has a certificate by another one is to renew it.
    """

    space_id: SpaceId
    space: SpaceName
    owner: Owner
    zone: Zone
    user_cas: Cas
    host_cas: Cas
    distrusted: list[str] = Field(
        default=[], max_length=64, description="Fingerprints of CAs given up by force: what was made under them ends at once."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_one_each(cls, fields: Any) -> Any:
        """What was written while there could be but one of each."""
        if not isinstance(fields, dict) or "user_ca" not in fields:
            return fields
        others = {name: value for name, value in fields.items() if name not in ("user_ca", "host_ca")}
        return others | {"user_cas": [fields["user_ca"]], "host_cas": [fields.get("host_ca")]}


class HostKey(Message):
    """A host key that an agent is to show, or has made for that (an OpenSSH public key line)."""

    public_key: str = Field(max_length=2048)


class Trust(Message):
    """What an agent says it trusts by now: fingerprints of CAs of either kind."""

    cas: list[Annotated[str, Field(max_length=64, pattern=r"^SHA256:[A-Za-z0-9+/]+$")]] = Field(max_length=2 * CAS_MAX)


class StoppedForward(Message):
    """A persistent forward that was stopped while the hub was away."""

    local_port: Port
    target_id: SpaceId
    remote_port: Port
    made: str = Field(default="", max_length=64)


class Hello(Message):
    """The agent's first word on its control link."""

    version: str = Field(max_length=64, description="Of the agent's software; the hub's log shows it.")
    addresses: Addresses
    stopped: list[StoppedForward] = Field(
        default=[], max_length=PORT_MAX, description="To be forgotten, unless they were made anew since."
    )
    targets: list[SpaceId] = Field(
        default=[], max_length=TARGETS_MAX, description="Spaces that it has links to, and wants to hear of."
    )


class Revoked(Message):
    """What is void: certificates by serial, enrolled keys by SHA256 fingerprint."""

    serials: list[int]
    keys: list[str]
    whole: StrictBool = Field(default=True, description="This is all; else it adds to what was said before.")


class Welcome(Message):
    """The hub's answer: everything that may have changed while the agent was away."""

    membership: Membership
    forwards: list[ForwardOrder] = Field(description="The stored forwards; the only persistent ones that are to live.")
    revoked: Revoked
    names: dict[SpaceId, SpaceName] = Field(default={}, description="What the targets of the hello are called now.")
    spread: float = Field(
        default=0, ge=0, le=3600, description="Seconds over which the fleet's agents are to spread when the hub comes back."
    )


class Spread(Message):
    """The fleet has grown: the same, anew."""

    spread: float = Field(ge=0, le=3600)


Count = Annotated[StrictInt, Field(ge=0, le=COUNT_MAX)]
Increment = Annotated[StrictInt, Field(ge=0, le=INCREMENT_MAX)]


class ForwardStates(Message):
    """How many forwards an agent has in each state."""

    starting: Count = 0
    listening: Count = 0
    waiting: Count = 0
    failed: Count = 0
    draining: Count = 0


class LinkModes(Message):
    """How many links an agent has by how their targets are reached; `down`: not at this moment."""

    direct: Count = 0
    relay: Count = 0
    down: Count = 0


class Carried(Message):
    """What an agent's forwards have carried since it reported last, those that have been stopped since included."""

    sent: Increment = Field(default=0, description="Bytes towards targets.")
    received: Increment = Field(default=0, description="Bytes from targets.")
    opened: Increment = Field(default=0, description="Connections.")
    refused: Increment = Field(default=0, description="Connections that could not be carried.")


class AgentReport(Message):
    """What an agent says of itself, for the server's metrics: how it stands now, and what was carried since it last did."""

    forwards: ForwardStates
    links: LinkModes
    open: Count = Field(description="Connections that are open now.")
    carried: Carried


ADDRESS_MAX, HOST_MAX, REASON_MAX = 64, 255, 80
"""Characters of an address, of a name that a peer asked for, and of a reason."""
SEEN_MAX = 64
"""What an agent has seen that one message may tell."""
Serial = Annotated[str, Field(pattern=r"^[0-9]{1,20}$", description="A certificate's, as text: JSON's numbers are too small.")]


class Seen(Message):
    """Something that an agent has seen, for the audit record; `ago` in seconds, for it may have waited for the hub."""

    ago: float = Field(default=0, ge=0, le=1e9, allow_inf_nan=False)


class LinkSeen(Seen):
    """Somebody has logged in to the agent's endpoint."""

    what: Literal["link opened"] = "link opened"
    serial: Serial
    mode: Literal["direct", "relay"]
    address: str = Field(max_length=ADDRESS_MAX)


class RefusalSeen(Seen):
    """The agent's endpoint has turned somebody away: at login, or a channel to `host` and `port`."""

    what: Literal["refused"] = "refused"
    door: Literal["endpoint", "channel"]
    reason: str = Field(max_length=REASON_MAX)
    address: str = Field(max_length=ADDRESS_MAX)
    serial: Serial | None = None
    host: str | None = Field(default=None, max_length=HOST_MAX)
    port: StrictInt | None = Field(default=None, ge=0, lt=1 << 32)


class ForwardSeen(Seen):
    """A forward that the agent has made or stopped without the hub."""

    what: Literal["forward made", "forward stopped"]
    by: Literal["file", "command"]
    local_port: Port
    remote_port: Port
    target_id: SpaceId | None = None


class AuditReport(Message):
    """What an agent has seen, for the audit record, and how much it has left out."""

    seen: list[Annotated[LinkSeen | RefusalSeen | ForwardSeen, Field(discriminator="what")]] = Field(max_length=SEEN_MAX)
    left_out: Count = 0


class CertificateRequest(Message):
    """Asks the hub to certify the enrolled key as client and this key as host, with proof that the sender holds it."""

    host_key: str = Field(max_length=2048, description="OpenSSH public key line, ssh-ed25519.")
    signature: str = Field(max_length=512, description="Base64 of the host key's signature over the space's id.")


class Certificates(Message):
    """An agent's certificates, OpenSSH lines as in `*-cert.pub`."""

    client: str
    host: str


class Farewell(Message):
    """The hub's last word: this key is no longer that of the space."""

    reason: str


# Errors


def first_complaint(error: ValidationError) -> str:
    """One line for the first thing that is wrong: where, and what."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return complaint(first["loc"], first["type"], first["msg"])


_SENTENCES = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be true or false",
    "timezone_aware": "must name its time zone, like 2026-11-20T09:30:00Z",
    "list_type": "must be a list, like [a, b]",
    "model_type": "must be keys with values",
    "model_attributes_type": "must be keys with values",
    "dict_type": "must be keys with values",
}
"""pydantic's kinds of errors in plain words; its own message serves for the others."""
_BEGINNINGS = {"Value error, ": "", "Input should be": "must be", "String should": "must"}
"""How its messages begin, and how ours do."""
_BEGINNING = re.compile("|".join(f"^{begin}" for begin in _BEGINNINGS))


def complaint(place: Sequence[str | int], kind: str, message: str) -> str:
    """One of pydantic's errors as we say it."""
    where = shown(".".join(str(step) for step in place))
    text = _SENTENCES.get(kind) or _BEGINNING.sub(lambda found: _BEGINNINGS[found[0]], message)
    return f"{where}: {text}" if where else text


def shown(text: str) -> str:
    """A sender's text as an error may repeat it: short, printable, on one line."""
    short = text if len(text) <= QUOTED_LIMIT else text[:QUOTED_LIMIT] + "..."
    return short if short.isascii() and short.isprintable() else ascii(short)
