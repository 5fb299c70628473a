"""How the HTTP API's client knows its server: by TLS and the system's roots, or by one CA of the user's own.

There is no way to switch checks off. Without TLS a token goes to this machine alone, unless somebody says that the way there
is private.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from knot_ssh.addresses import Address
from knot_ssh.errors import BadInput

if TYPE_CHECKING:
    import ssl

CA_VARIABLE = "KNOT_CA_FILE"
PLAIN_VARIABLE = "KNOT_ALLOW_PLAIN_HTTP"


@dataclass(frozen=True, slots=True)
class Trust:
    """`ca_file`: a PEM file with the one CA that the server must be certified by, instead of the system's."""

    ca_file: Path | None = None
    allow_plain_http: bool = False

    def check(self, server: str) -> None:
        """Raise BadInput for a URL to which a token would cross a network in the clear."""
        parts = urlsplit(server)
        if parts.scheme == "https" or self.allow_plain_http or Address(parts.hostname or "", 0).is_loopback:
            return
        raise BadInput(
            f"{server} is no https: the token would cross the network in the clear. Use the server's https URL, or allow it "
            f"where the way there is private (`knot login --allow-plain-http`, or {PLAIN_VARIABLE}=1)"
        )

    def context(self) -> ssl.SSLContext:
        """What connections are checked with; raises BadInput for a CA file that cannot be used."""
        import ssl

        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError:
            raise BadInput(f"the CA file {self.ca_file} holds no PEM certificate") from None
        except OSError as error:
            raise BadInput(f"cannot read the CA file {self.ca_file}: {error.strerror}") from None

    def over(self, other: Trust) -> Trust:
        """This, and what the other says where this says nothing."""
        return Trust(self.ca_file or other.ca_file, self.allow_plain_http or other.allow_plain_http)


BY_SYSTEM = Trust()
"""The system's roots."""


def trust_said() -> Trust:
    """What the environment says."""
    file = os.environ.get(CA_VARIABLE)
    return Trust(Path(file) if file else None, os.environ.get(PLAIN_VARIABLE, "").lower() in {"1", "true", "yes"})
