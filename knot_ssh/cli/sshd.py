"""The script that makes a machine with an ordinary sshd a space: a template, and the checked values that go into it.

The script is run as root on another machine. So whatever a server has said is read by the grammar that it must have, and
nothing of it can end a quoted word, a line of a configuration or a comment (`sshd.sh` puts all of them in single quotes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Self

from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput, KnotError
from knot_ssh.names import Owner, Principal, SpaceId, SpaceName, Zone, qualified_name

TEMPLATE, REFRESH = "sshd.sh", "sshd_refresh.sh"
"""The script, and what it leaves on the machine to run from then on; its head, with what holds there, is written there."""
_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}")
"""An ed25519 public key line without comment: 51 bytes in base64."""
_TOKEN = re.compile(r"knotjoin_[A-Za-z0-9_-]{96}(?:[A-Za-z0-9_-]{43})?")
"""With one host CA or, while that is changed for another, with two."""
_PLACE = re.compile(r"@([A-Z_]+)@")


@dataclass(frozen=True, slots=True)
class SshdScript:
    """What a machine must know to join as a space."""

    space_id: SpaceId
    space: SpaceName
    principal: Principal
    hub: Address
    user_cas: tuple[str, ...]
    host_cas: tuple[str, ...]
    token: str = field(repr=False)

    @classmethod
    def of(cls, space: Mapping[str, Any], invitation: Mapping[str, Any], ca: Mapping[str, Any]) -> Self:
        """Read what the API has answered: an entry of its spaces, a join token, the CAs. Raises KnotError."""
        try:
            return cls(
                space_id=SpaceId(space["id"]),
                space=SpaceName(space["name"]),
                principal=Principal(Owner(space["owner"]), Zone(space["zone"])),
                hub=Address.parse(invitation["hub"], what="the hub's address"),
                user_cas=_keys(ca, "user_ca"),
                host_cas=_keys(ca, "host_ca"),
                token=_matching(_TOKEN, invitation["join_token"]),
            )
        except (KeyError, TypeError, BadInput):
            raise KnotError("the server answered what no script can be made of; is it of this version?") from None

    def text(self) -> str:
        """The script, for `sh`."""
        values = {
            "FULL_NAME": qualified_name(self.space, self.principal),
            "SPACE_ID": str(self.space_id),
            "PRINCIPAL": str(self.principal),
            "HUB_HOST": self.hub.host,
            "HUB_PORT": str(self.hub.port),
            "USER_CA": "\n".join(self.user_cas),
            "HOST_CA": "\n".join(self.host_cas),
            "TOKEN": self.token,
            "REFRESH": _read(REFRESH).rstrip("\n"),
        }
        return _PLACE.sub(lambda place: values[place[1]], _read(TEMPLATE))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _keys(ca: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """All CAs of one kind, the active one first."""
    lines = dict.fromkeys([ca[name], *ca.get(f"{name}s", [])])
    return tuple(_matching(_KEY, line) for line in lines)


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise BadInput("not as it must be")
    return text
