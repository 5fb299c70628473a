"""The words of the system as values: checked once, when made, and safe to print, store and sign from then on.

Owner, zone and space names are DNS labels (RFC 1123 section 2.1, lower case). A label can hold no path, no principal
separator, no white space and no control character, so nothing that is built from labels needs escaping.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from knot_ssh.errors import BadInput

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
TOKEN_ID = r"[0-9a-f]{12}"
"""The public part of an API token: what it is found by."""
QUOTED_LIMIT = 80
"""Characters of a wrong name that an error repeats."""
RESERVED = frozenset({"join"})
"""`join` is a login of the hub; a space of that name could not be told from it."""

SUFFIX = "knot"
HUB_PRINCIPAL = "hub.knot"
"""The one principal of the hub's host certificate, whatever address was dialled."""
RELAY_PORT = 22
"""The port of a fully qualified name that stands for the space's endpoint, when asked of the hub."""

BIND_HOST = "127.0.0.1"
"""Where local ports are bound, unless an agent's settings file says otherwise."""
PORT_MIN = 1
PORT_MAX = 65535

_LABEL = re.compile(LABEL)
_UUID = re.compile(UUID)
_TOKEN_ID = re.compile(TOKEN_ID)


class Text(str):
    """A checked string: made only through its class, equal to and printed as the plain text."""

    __slots__ = ()
    what: ClassVar[str] = "text"
    pattern: ClassVar[str] = ""
    """What the text must match as a whole, in the syntax that Python and ECMA-262 share."""

    def __new__(cls, text: str) -> Self:
        complaint = cls.complaint(text)
        if complaint:
            raise BadInput(f"{cls.what} {_shown(text)} {complaint}")
        return super().__new__(cls, text)

    @classmethod
    def complaint(cls, text: str) -> str:
        """What is wrong with this text, as the end of a sentence; empty when nothing is."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: type[Any], _handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema  # only programs that already use pydantic come here

        return core_schema.no_info_after_validator_function(
            _raising_value_error(cls),
            core_schema.str_schema(strict=True, max_length=255, metadata={"pattern": cls.pattern}),
            serialization=core_schema.plain_serializer_function_ser_schema(str, return_schema=core_schema.str_schema()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: object) -> dict[str, Any]:
        return {"type": "string", "pattern": f"^{cls.pattern}$", "description": cls.__doc__}


class Label(Text):
    """A DNS label: lower-case letters, digits and inner hyphens, 63 at most; neither a UUID nor `join`."""

    __slots__ = ()
    pattern = rf"(?!join$|{UUID}$){LABEL}"

    @classmethod
    def complaint(cls, text: str) -> str:
        if not _LABEL.fullmatch(text):
            return "must be 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends"
        if text in RESERVED:
            return "is reserved; choose another"
        if _UUID.fullmatch(text):
            return "looks like a space id; choose another"
        return ""


class SpaceName(Label):
    """The name of a space, unique for its owner (a DNS label)."""

    __slots__ = ()
    what = "space name"


class Owner(Label):
    """The user that a space belongs to (a DNS label)."""

    __slots__ = ()
    what = "user name"


class Zone(Label):
    """The trust domain that a space lives in (a DNS label)."""

    __slots__ = ()
    what = "zone name"


class TokenName(Label):
    """What a user calls an API token (a DNS label that is no token's id)."""

    __slots__ = ()
    what = "token name"
    pattern = rf"(?!join$|{UUID}$|{TOKEN_ID}$){LABEL}"

    @classmethod
    def complaint(cls, text: str) -> str:
        return super().complaint(text) or ("looks like a token id; choose another" if _TOKEN_ID.fullmatch(text) else "")


class SpaceId(Text):
    """What identifies a space: a UUID in lower case, never given out twice."""

    __slots__ = ()
    what = "space id"
    pattern = UUID

    @classmethod
    def complaint(cls, text: str) -> str:
        return "" if _UUID.fullmatch(text) else "is not a UUID in lower case"

    @classmethod
    def new(cls) -> SpaceId:
        return cls(str(uuid.uuid4()))


class Port(int):
    """A TCP port, 1 to 65535."""

    __slots__ = ()

    def __new__(cls, number: int) -> Self:
        if not PORT_MIN <= number <= PORT_MAX:
            raise BadInput(f"port {_shown(str(number))} must be a whole number from {PORT_MIN} to {PORT_MAX}")
        return super().__new__(cls, number)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a port from plain decimal digits; `+1`, ` 1`, `1_0` and other scripts' digits are refused."""
        if not re.fullmatch(r"[0-9]{1,5}", text):
            raise BadInput(f"port {_shown(text)} must be a whole number from {PORT_MIN} to {PORT_MAX}")
        return cls(int(text))

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: type[Any], _handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.int_schema(strict=True, ge=PORT_MIN, le=PORT_MAX),
            serialization=core_schema.plain_serializer_function_ser_schema(int, return_schema=core_schema.int_schema()),
        )


def space_reference(text: str) -> SpaceName | SpaceId:
    """Read what a user wrote for a space: its id or its name. No text is both."""
    return SpaceId(text) if _UUID.fullmatch(text) else SpaceName(text)


@dataclass(frozen=True, slots=True, order=True)
class Principal:
    """`owner@zone`: who a certificate stands for. Two spaces may be joined when theirs are equal."""

    owner: Owner
    zone: Zone

    @classmethod
    def parse(cls, text: str) -> Principal:
        """Read `owner@zone`; raises BadInput for anything else."""
        owner, at, zone = text.partition("@")
        if not at:
            raise BadInput(f"principal {_shown(text)} is not owner@zone")
        return cls(Owner(owner), Zone(zone))

    def __str__(self) -> str:
        return f"{self.owner}@{self.zone}"


def qualified_name(space: SpaceName, principal: Principal) -> str:
    """`<space>.<owner>.<zone>.knot`, the name that no other space has at the same time."""
    return f"{space}.{principal.owner}.{principal.zone}.{SUFFIX}"


def _shown(text: str) -> str:
    """The text as an error may quote it: escaped and short."""
    return repr(text if len(text) <= QUOTED_LIMIT else text[:QUOTED_LIMIT] + "...")


def _raising_value_error(parse: type[Text]) -> Any:
    """pydantic wants ValueError from a validator; ours raise BadInput."""

    def check(text: str) -> Text:
        try:
            return parse(text)
        except BadInput as error:
            raise ValueError(str(error)) from None

    return check
